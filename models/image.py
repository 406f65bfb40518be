"""Image bytes to patches: every mode and orientation to RGB, the reference's resize, uint8 patches.

The only file that imports Pillow. Rescaling and normalisation are not here: they are folded into the graph.
"""

import io
import random
import re
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from models.errors import InputTooLarge, InvalidInput
from models.resize import can_resize, resize
from models.spec import Grid, ViltSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Pillow's own check, made exact: it looks before it allocates, which for a GIF is while the header is read.
TOO_MANY_PIXELS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # up to twice the limit it would only warn
MAX_SCANS = 100  # of a JPEG, as libtiff allows: each takes a pass over the whole picture, and a few dozen bytes
# One block of memory for every picture, as Pillow's documentation says: only so can its pixels be read in place.
Image.core.set_use_block_allocator(1)  # type: ignore[attr-defined]
# What our own resize is tried on, (w, h) px to (w, h) px: narrower, wider, across first, down first.
TRIED = (((61, 47), (32, 32)), ((23, 40), (64, 64)), ((40, 90), (32, 32)))
MARKER = re.compile(rb"\xff+([^\x00\xff])")
HAS_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE))  # what libjpeg skips over
SPARE = 2  # pixels along a side, for one that the model reads, that a JPEG keeps which is decoded smaller
UPRIGHT = 1  # of the EXIF orientations
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
SCAN = START_OF_SCAN << 8 | 0xFF  # as a little-endian word


@dataclass(frozen=True, slots=True)
class ImagePatches:
    """One image as the graph reads it."""

    patches: NDArray[np.uint8]  # (P, 3 * patch_px ** 2), HWC order inside a patch
    position_ids: NDArray[np.int64]  # (P,), rows of the position table
    grid: Grid


def decode(data: bytes, *, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    """Decode the first frame of an image to upright RGB, alpha on white.

    Raises: InvalidInput, InputTooLarge: as identify and load do.
    """
    return load(identify(data, max_pixels=max_pixels, max_aspect_ratio=max_aspect_ratio))


def identify(data: bytes, *, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    """Read an image's header and hold it to its limits; nothing is decoded.

    Raises: InvalidInput: not an image of a format in FORMATS, or one side beyond max_aspect_ratio times the other.
        InputTooLarge: more than max_pixels, or more than MAX_SCANS.
    """
    if not data:
        raise InvalidInput("empty_image", "The image is empty: send the bytes of an image file.")
    Image.MAX_IMAGE_PIXELS = max_pixels  # one for the process, as the server's setting is
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except TOO_MANY_PIXELS as error:
        raise InputTooLarge(
            "image_too_large", f"The image has too many pixels: at most {max_pixels:,} are read."
        ) from error
    except Exception as error:  # a decoder may fail in any way on hostile bytes
        raise InvalidInput(
            "invalid_image", "The image could not be identified: send JPEG, PNG, WebP, GIF, BMP or TIFF."
        ) from error
    width, height = image.size
    if max(width, height) > max_aspect_ratio * min(width, height):
        raise InvalidInput(
            "image_too_elongated",
            f"The image is {width} x {height} pixels; one side may be at most {max_aspect_ratio:g} times the other.",
        )
    if image.format in ("JPEG", "MPO") and _has_too_many_scans(data):
        raise InputTooLarge("too_many_scans", f"The JPEG image has more than {MAX_SCANS} scans.")
    return image


def load(image: Image.Image, scaled_for: ViltSpec | None = None) -> Image.Image:
    """Decode what was identified to upright RGB, alpha on white.

    With `scaled_for`, a JPEG at a half, quarter or eighth of its size, where that is enough for the model: not exact.

    Raises: InvalidInput: it is not whole.
    """
    try:
        if scaled_for:
            width, height = scaled_for.resized(*image.size)
            image.draft(None, (SPARE * width, SPARE * height))
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # as above
        raise InvalidInput(
            "invalid_image", f"The {image.format} image could not be decoded: it is damaged or cut short."
        ) from error


def to_patches(image: Image.Image, spec: ViltSpec) -> ImagePatches:
    """Resize an RGB image as the reference does and cut it into patches.

    Shapes: (w, h) px -> patches (P, 3 * patch_px ** 2).
    Source: transformers ViltImageProcessorPil: Pillow's bicubic, bit for bit.
    """
    width, height = resized = spec.resized(*image.size)
    in_place = resizes_as_pillow() and can_resize(image.size, resized)
    patches = (_own if in_place else _pillows)(image, resized, spec.patch_px)
    grid = (height // spec.patch_px, width // spec.patch_px)
    first = spec.first_position_row(grid)
    return ImagePatches(patches, np.arange(first, first + len(patches)), grid)


@cache
def resizes_as_pillow() -> bool:
    """Try once whether our own resize is compiled, and gives what this Pillow does."""
    side = ViltSpec().patch_px
    for size, resized in TRIED:
        image = Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1]))  # noqa: S311 a pattern
        if not can_resize(size, resized):
            return False
        if not np.array_equal(_own(image, resized, side), _pillows(image, resized, side)):
            return False
    return True


def warm_up(spec: ViltSpec) -> None:
    """Write and read a small picture in every format, so that no request pays for loading its decoder."""
    for name in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (2 * spec.patch_px, 2 * spec.patch_px)).save(file, name)
        to_patches(decode(file.getvalue(), max_pixels=10**6, max_aspect_ratio=1.0), spec)


def count_scans(data: bytes) -> int:
    """Count what looks like the start of a scan, at even and at odd places: eight times as fast as bytes.count."""
    words = (np.frombuffer(data, "<u2", (len(data) - first) // 2, first) for first in (0, 1))
    return sum(int(np.count_nonzero(one == SCAN)) for one in words)


def _own(image: Image.Image, size: tuple[int, int], side: int) -> NDArray[np.uint8]:
    _, pixels = image.__arrow_c_array__()
    return resize(pixels, image.size, size, side)


def _pillows(image: Image.Image, size: tuple[int, int], side: int) -> NDArray[np.uint8]:
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    columns, rows = size[0] // side, size[1] // side
    pixels = np.asarray(image).reshape(rows, side, columns, side, 3)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 3 * side * side)  # (P, 3 * side ** 2)


def _has_too_many_scans(data: bytes) -> bool:
    """Walk a JPEG's markers to the end of its first picture; a decoder would make a pass for each scan."""
    if count_scans(data) <= MAX_SCANS:  # no walk: in a photo of 5 MB it takes 36 ms, and this 0.6
        return False
    scans, position = 0, 0
    while scans <= MAX_SCANS and (found := MARKER.search(data, position)):
        marker, position = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            break
        scans += marker == START_OF_SCAN
        if marker in HAS_LENGTH:
            position += int.from_bytes(data[position : position + 2])
    return scans > MAX_SCANS


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; metadata that cannot be read turns nothing."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) == UPRIGHT:
            return image  # of which exif_transpose would make a copy
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata is no reason to refuse a whole picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip at 255
        gray = np.asarray(image, np.int64).clip(0, 65535)
        gray = np.where(gray == image.info.get("transparency"), 65535, gray)
        image = Image.fromarray((gray // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
