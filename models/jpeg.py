"""JPEGs by libjpeg-turbo itself: Pillow decodes with it, too, but reads headers in Python and copies pixels.

What is the same to the last bit, and nothing else: what libjpeg-turbo has to warn of, Pillow bears or refuses.
"""

import io
import random
from functools import cache

import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

PLAIN = "PLAIN JPEG"  # to Pillow, a format of its own
START, SCAN = b"\xff\xd8\xff", b"\xff\xda"
# Frames, tables, comments, and what programs say of themselves: but for APP1, where a picture's orientation is.
SEGMENTS = frozenset((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE))
MOST_SEGMENTS = 64
IN_COLOUR = ("YCbCr", "RGB")
TRIED_PX, TRIED_SUBSAMPLING = (61, 47), ("4:4:4", "4:2:2", "4:2:0")


class PlainJpeg(JpegImageFile):
    """A JPEG in colour whose header says no more than what the pixels are.

    Source: Pillow's handbook, writing your own image plugin.
    """

    def _open(self) -> None:
        data = self.fp.read() if self.fp else b""
        if not _is_plain(data):
            raise SyntaxError("Pillow has to look at the header")
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise SyntaxError("the header is flawed") from error
        if colours not in IN_COLOUR:
            raise SyntaxError("it is not in colour")
        self._mode, self._size = "RGB", (width, height)
        self.tile = [ImageFile._Tile("jpeg", (0, 0, width, height), 0, ("RGB", ""))]


Image.register_open(PLAIN, PlainJpeg, lambda prefix: prefix.startswith(START))


def decode(image: Image.Image) -> Image.Image:
    """Decode a flawless JPEG in colour; anything else is returned as it is, for Pillow to decode."""
    file = image.fp if isinstance(image, JpegImageFile) and image.mode == "RGB" else None
    if file is None or not decodes_as_pillow():
        return image
    file.seek(0)
    data = file.read()
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:  # which is the one that was held to its limits
            return image
        pixels = simplejpeg.decode_jpeg(data, "RGBX")  # as Pillow keeps RGB: the same memory becomes the picture
    except ValueError:
        return image
    decoded = Image.fromarrow(Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1), "RGB", image.size)
    decoded.info, decoded.format = image.info, image.format
    return decoded


@cache
def decodes_as_pillow() -> bool:
    """Try once whether this Pillow gives the same: it may be built with another library."""
    noise = random.Random(0).randbytes(3 * TRIED_PX[0] * TRIED_PX[1])  # noqa: S311 a pattern
    for subsampling in TRIED_SUBSAMPLING:
        file = io.BytesIO()
        Image.frombytes("RGB", TRIED_PX, noise).save(file, "JPEG", subsampling=subsampling)
        if not np.array_equal(simplejpeg.decode_jpeg(file.getvalue()), np.asarray(Image.open(file))):
            return False
    return True


def _is_plain(data: bytes) -> bool:
    """Walk the segments up to the first scan.

    Raises: IndexError: there is none.
    """
    position = 2
    for _ in range(MOST_SEGMENTS):
        if data[position] != START[0] or data[position + 1] not in SEGMENTS:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return data[position : position + 2] == SCAN
