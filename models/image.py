"""From image bytes to patches: any mode and orientation to RGB, the reference's resize, uint8 patches.

The only file that imports Pillow. Rescaling and normalisation are folded into the graph.
"""

import io
import random
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from models import jpeg
from models.bounds import (
    EXIF,
    MAX_PX_OF_RUNS,
    RUNS,
    Reader,
    has_more_scans,
    has_shared_parts,
    has_too_large_tiles,
    has_too_many_scans,
    has_too_many_values,
    has_too_much_metadata,
    is_arithmetic,
    most_scans,
)
from models.errors import InputTooLarge, InvalidInput
from models.resize import can_resize, resize
from models.spec import Grid, ViltSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PLAIN_JPEG = "PLAIN JPEG"  # registered with Pillow as a format of its own
# Pillow's own check, made exact. It comes before anything is allocated, which for a GIF is while its header is read.
TOO_MANY_PIXELS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# Anything else that Pillow warns of is a flaw in somebody's file, and not news for the operator.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # up to twice the limit it would only warn
# Keep each picture in one block of memory, as Pillow documents: otherwise its pixels cannot be read in place.
Image.core.set_use_block_allocator(1)  # type: ignore[attr-defined]
# Sizes that our own resize is tried on, (w, h) px to (w, h) px: narrower, wider, across first, down first.
TRIED = (((61, 47), (32, 32)), ((23, 40), (64, 64)), ((40, 90), (32, 32)))
TRIED_SUBSAMPLING = ("444", "422", "420", "440")  # JPEGs that our own decoder is tried on, of the first of those sizes
BAND_PX = 2**18  # of a picture that are converted at once
SPARE = 2  # a JPEG decoded at reduced size keeps this many pixels along a side for each one that the model reads
# What undoes each EXIF orientation. ImageOps.exif_transpose does the same, then decodes all of EXIF to write it anew.
UPRIGHT_BY: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
RAW_EXIF = "Raw profile type exif"  # EXIF as text, as ImageMagick writes it to a PNG
MAX_RAW_EXIF = 2**18  # characters: what came from a JPEG's segment has half as many


class PlainJpeg(JpegImageFile):
    """A JPEG of which only the size has to be known to open it.

    Source: Pillow's handbook, writing your own image plugin.
    """

    def _open(self) -> None:
        size = jpeg.plain_size(self.fp.read()) if self.fp else None
        if size is None:
            raise SyntaxError("not a plain JPEG")
        self._mode, self._size = "RGB", size
        self.tile = [ImageFile._Tile("jpeg", (0, 0, *size), 0, ("RGB", ""))]


# Not by register_open: then Pillow would try it for every caller that names no format.
Image.OPEN[PLAIN_JPEG] = PlainJpeg, lambda prefix: prefix.startswith(b"\xff\xd8\xff")


@dataclass(frozen=True, slots=True)
class ImagePatches:
    """One image as the graph reads it."""

    patches: NDArray[np.uint8]  # (P, 3 * patch_px ** 2), HWC order inside a patch
    position_ids: NDArray[np.int64]  # (P,), rows of the position table
    grid: Grid


def decode(data: bytes, *, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    """Decode the first frame of an image to upright RGB, with white behind transparency.

    Raises: InvalidInput, InputTooLarge: as identify and load.
    """
    return load(identify(data, max_pixels=max_pixels, max_aspect_ratio=max_aspect_ratio))


def identify(data: bytes, *, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    """Read an image's header and check its limits, without decoding it.

    Raises: InvalidInput: not an image of a format in FORMATS; a JPEG coded arithmetically; one side beyond
            max_aspect_ratio times the other.
        InputTooLarge: the image or its tiles have too many pixels; too many scans; too much metadata.
    """
    if not data:
        raise InvalidInput("empty_image", "The image is empty: send the bytes of an image file.")
    if has_too_much_metadata(data):
        raise InputTooLarge(
            "too_many_values", "The image's metadata has too many fields or values: send the image without it."
        )
    Image.MAX_IMAGE_PIXELS = max_pixels  # one for the process, as the server's setting is
    try:
        image = Image.open(Reader(data), formats=(PLAIN_JPEG, *FORMATS))
        is_too_large = isinstance(image, TiffImageFile) and has_too_large_tiles(
            data, _before_turning(image), max_pixels
        )
        _check_coding(image, data)
    except InvalidInput:
        raise
    except TOO_MANY_PIXELS as error:
        raise InputTooLarge(
            "image_too_large", f"The image has too many pixels: at most {max_pixels:,} are allowed."
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
    if is_too_large:
        raise InputTooLarge("image_too_large", "The image's tiles have too many pixels: save it without tiles.")
    return image


def load(image: Image.Image, scaled_for: ViltSpec | None = None) -> Image.Image:
    """Decode an identified image to upright RGB, with white behind transparency.

    With `scaled_for`, a JPEG is decoded at a half, quarter or eighth of its size if that is enough for the model. The
    result is then not exact.

    Raises: InvalidInput: the file is damaged or cut short.
    """
    try:
        whole = image.size
        if scaled_for:
            width, height = scaled_for.resized(*whole)
            image.draft(None, (SPARE * width, SPARE * height))
        if image.size == whole:
            image = _by_libjpeg(image)
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
    """Check once whether our own resize is compiled and gives the same pixels as this Pillow."""
    side = ViltSpec().patch_px
    for size, resized in TRIED:
        image = _noise(size)
        if not can_resize(size, resized):
            return False
        if not np.array_equal(_own(image, resized, side), _pillows(image, resized, side)):
            return False
    return True


@cache
def decodes_as_pillow() -> bool:
    """Check once whether libjpeg-turbo gives the same pixels as this Pillow, which may use another library."""
    size, _ = TRIED[0]
    noise = np.asarray(_noise(size))
    for data in (jpeg.encode(noise, subsampling) for subsampling in TRIED_SUBSAMPLING):
        pixels = jpeg.decode(data, size)
        if pixels is None or not np.array_equal(pixels[..., :3], np.asarray(JpegImageFile(io.BytesIO(data)))):
            return False
    return True


def warm_up(spec: ViltSpec) -> None:
    """Write and read a small picture in every format, so that no request has to load a decoder."""
    for name in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (2 * spec.patch_px, 2 * spec.patch_px)).save(file, name)
        to_patches(decode(file.getvalue(), max_pixels=10**6, max_aspect_ratio=1.0), spec)


def _check_coding(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse what would take long to decode for its size.

    Raises: InvalidInput, InputTooLarge: as identify.
    """
    if image.format == "BMP" and image.info["compression"] in RUNS and image.width * image.height > MAX_PX_OF_RUNS:
        raise InputTooLarge(
            "image_too_large",
            f"A BMP image of runs may have at most {MAX_PX_OF_RUNS:,} pixels: save it in another format.",
        )
    if isinstance(image, TiffImageFile) and has_shared_parts(data):
        raise InputTooLarge(
            "image_too_large", "The TIFF image's strips or tiles are larger than its file: save it anew."
        )
    is_plain = isinstance(image, PlainJpeg)  # its frame has been looked at
    if isinstance(image, JpegImageFile | TiffImageFile) and not is_plain and is_arithmetic(data):
        raise InvalidInput(
            "invalid_image",
            "The JPEG image is coded arithmetically, which no browser shows: save it with Huffman coding.",
        )
    if isinstance(image, TiffImageFile) and has_too_many_scans(data, _before_turning(image)):
        raise InputTooLarge("too_many_scans", "The TIFF image's JPEGs have too many scans: save it with fewer.")
    if isinstance(image, JpegImageFile) and has_more_scans(data, most := most_scans(image.width * image.height)):
        raise InputTooLarge("too_many_scans", f"The JPEG image has more than {most} scans: save it with fewer.")


def _before_turning(image: TiffImageFile) -> tuple[int, int]:
    return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]


def _noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1]))  # noqa: S311 a pattern


def _by_libjpeg(image: Image.Image) -> Image.Image:
    """Decode a flawless JPEG in colour; return anything else unchanged, for Pillow to decode."""
    file = image.fp if isinstance(image, JpegImageFile) and image.mode == "RGB" else None
    if file is None or not decodes_as_pillow():
        return image
    file.seek(0)
    pixels = jpeg.decode(file.read(), image.size)
    if pixels is None:
        return image
    # The picture takes over this memory.
    decoded = Image.fromarrow(Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1), "RGB", image.size)
    decoded.info, decoded.format = image.info, image.format
    return decoded


def _own(image: Image.Image, size: tuple[int, int], side: int) -> NDArray[np.uint8]:
    _, pixels = image.__arrow_c_array__()
    return resize(pixels, image.size, size, side)


def _pillows(image: Image.Image, size: tuple[int, int], side: int) -> NDArray[np.uint8]:
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    columns, rows = size[0] // side, size[1] // side
    pixels = np.asarray(image).reshape(rows, side, columns, side, 3)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 3 * side * side)  # (P, 3 * side ** 2)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; ignore metadata that cannot be read."""
    try:
        exif = image.info.get("exif", b"").removeprefix(EXIF).removeprefix(EXIF)
        if has_too_many_values(exif) or len(image.info.get(RAW_EXIF, "")) > MAX_RAW_EXIF:
            return image
        turn = UPRIGHT_BY.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged metadata is no reason to refuse an intact picture
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert band by band, with one copy of the picture instead of five; other threads run in between."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # Each band copies it, which may hold thousands of texts.
    image.info = {key: value for key, value in image.info.items() if key == "transparency"}
    rgb = Image.new("RGB", image.size, None)
    rows = max(1, BAND_PX // image.width)
    for top in range(0, image.height, rows):
        band = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_band_to_rgb(image.crop(band)), band)
    return rgb


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion would clip them at 255
        gray = np.asarray(image, np.int64).clip(0, 65535)
        if (transparent := image.info.get("transparency")) is not None:
            gray = np.where(gray == transparent, 65535, gray)
        image = Image.fromarray((gray // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
