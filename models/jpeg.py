"""JPEGs by libjpeg-turbo itself. Pillow decodes with it, too, but reads headers in Python and copies pixels.

What is the same to the last bit, and nothing else: what libjpeg-turbo has to warn of, Pillow bears or refuses.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

MARKER, SCAN = 0xFF, b"\xff\xda"
# Frames, tables, comments, and what programs say of themselves: but for APP1, where a picture's orientation is.
SEGMENTS = frozenset((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE))
MOST_SEGMENTS = 64
IN_COLOUR = ("YCbCr", "RGB")


def plain_size(jpeg: bytes) -> tuple[int, int] | None:
    """Tell width and height, in pixels, of a JPEG in colour whose header says no more than what the pixels are."""
    if not _is_plain(jpeg):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return None
    return (width, height) if colours in IN_COLOUR else None


def decode(jpeg: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Decode a flawless JPEG in colour of this size, which has been held to its limits.

    Shapes: -> (h, w, 4), RGB and one that is not read, as Pillow keeps RGB.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if (width, height) != size:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGBX")
    except ValueError:
        return None
    return pixels


def _is_plain(jpeg: bytes) -> bool:
    """Walk the segments up to the first scan."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        marker = jpeg[position : position + 2]
        if len(marker) < 2 or marker[0] != MARKER or marker[1] not in SEGMENTS:
            break
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return jpeg[position : position + 2] == SCAN
