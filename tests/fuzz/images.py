"""Fuzz decoding: any bytes become Pillow's upright RGB and the patches of its resize, or are refused as an input.

python tests/fuzz/images.py --seconds 240 --seed 1
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import atheris
import numpy as np

with atheris.instrument_imports(include=["PIL", "models"]):
    from PIL import Image

    from models import jpeg
    from models.errors import InvalidInput
    from models.image import decode, to_patches
    from models.spec import ViltSpec

from runner import fuzz

MAX_PIXELS, MAX_ASPECT_RATIO = 1_000_000, 20.0  # small, so that many are tried in a second
SPEC = ViltSpec()
ORIENTATION = 0x0112
JPEG = b"\xff\xd8"
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "webp", "jpeg")


def decoding(data: bytes) -> None:
    picture = picture_or_none(data)
    if data.startswith(JPEG):
        with patch("models.image.decodes_as_pillow", lambda: False), patch("models.image.PLAIN_JPEG", "JPEG"):
            pillows = picture_or_none(data)
        assert (picture and picture.tobytes()) == (pillows and pillows.tobytes())
    if picture is None:
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height <= MAX_PIXELS
    patches = to_patches(picture, SPEC)
    assert patches.grid in SPEC.grids
    assert patches.patches.shape == (len(patches.position_ids), SPEC.patch_values)
    (rows, columns), side = patches.grid, SPEC.patch_px
    tiles = patches.patches.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    resized = picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    assert np.array_equal(tiles.reshape(rows * side, columns * side, 3), np.asarray(resized))


def picture_or_none(data: bytes) -> Image.Image | None:
    with contextlib.suppress(InvalidInput):
        return decode(data, max_pixels=MAX_PIXELS, max_aspect_ratio=MAX_ASPECT_RATIO)
    return None


def pictures() -> Iterator[bytes]:
    """Write a picture in every format, mode, compression and layout that Pillow writes."""
    smooth = Image.linear_gradient("L").resize((40, 30))
    picture = Image.merge(
        "RGB", (smooth, smooth.transpose(Image.Transpose.ROTATE_180), Image.effect_noise((40, 30), 50))
    )
    frames = {"save_all": True, "append_images": [picture.rotate(180)]}
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    ways: dict[str, tuple[tuple[str, ...], tuple[dict[str, object], ...]]] = {
        "JPEG": (("L", "RGB", "CMYK"), ({}, {"progressive": True}, {"exif": exif}, {"restart_marker_blocks": 1})),
        "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), ({}, {"exif": exif}, {"transparency": 0})),
        "WEBP": (("RGB", "RGBA"), ({}, {"lossless": True}, {"exif": exif}, frames)),
        "GIF": (("1", "L", "P", "RGBA"), ({}, frames, {"transparency": 0})),
        "BMP": (("1", "L", "P", "RGB", "RGBA"), ({},)),
        "TIFF": (
            ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
            (
                *({"compression": kind} for kind in TIFF_COMPRESSIONS),
                {"compression": "group4"},
                {"tiled": True},
                frames,
            ),
        ),
        "MPO": (("RGB",), (frames,)),
    }
    for subsampling in ("411", "440"):  # which Pillow does not write
        yield jpeg.encode(np.asarray(picture), subsampling)
    for file_format, (modes, variants) in ways.items():
        for mode in modes:
            for options in variants:
                file = io.BytesIO()
                try:
                    picture.convert("L" if mode == "I;16" else mode).convert(mode).save(file, file_format, **options)
                except (OSError, ValueError, TypeError, KeyError, RuntimeError, SystemError):
                    continue  # not every format writes every mode in every way
                yield file.getvalue()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    fuzz("images", decoding, pictures())
