"""Decode JPEGs with libjpeg-turbo directly. Pillow uses it, too, but reads headers in Python and copies pixels.

Only JPEGs for which both give the same bits: if libjpeg-turbo warns of a flaw, Pillow decides what becomes of the file.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

MARKER, JFIF, SCAN, END = 0xFF, 0xE0, b"\xff\xda", b"\xff\xd9"
FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # one pass or several, Huffman coding
# And tables, comments; others can hold what Pillow acts on, such as an orientation.
SEGMENTS = FRAMES | {0xC4, 0xDB, 0xDD, JFIF, 0xFE}
MOST_SEGMENTS = 64
JFIF_BYTES = 16  # of the segment, after its marker; Pillow may refuse a shorter one
BITS = 8  # of a sample
IN_COLOUR = ("YCbCr", "RGB")
PX_PER_BYTE = 512  # at most: a block of 64 pixels takes at least a bit
END_WITHIN = 4096  # bytes before the end of the file


def plain_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return width and height, in pixels, of a JPEG in colour whose header only describes its pixels; else None."""
    if not _is_plain(jpeg):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
    except Exception:  # it is flawed, or has a sampling that simplejpeg has no name for
        return None
    return (width, height) if colours in IN_COLOUR else None


def decode(jpeg: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Decode a flawless JPEG of this size, which has been checked against the limits; return None for any other.

    A file that is clearly cut short is not decoded: libjpeg-turbo would go on to the last row, and only then warn.

    Shapes: -> (h, w, 4), RGB and an unused byte, as Pillow stores RGB.
    """
    width, height = size
    if width * height > PX_PER_BYTE * len(jpeg) or jpeg.rfind(END, -END_WITHIN) < 0:
        return None
    try:
        if simplejpeg.decode_jpeg_header(jpeg)[:2] != (height, width):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGBX")
    except Exception:  # as above
        return None
    return pixels


def encode(pixels: NDArray[np.uint8], subsampling: str) -> bytes:
    """Encode a picture for trying decoders: Pillow cannot write every subsampling that it reads.

    Shapes: pixels (h, w, 3).
    """
    data: bytes = simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling)
    return data


def _is_plain(jpeg: bytes) -> bool:
    """Walk the segments up to the first scan."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        head = jpeg[position : position + 5]
        if len(head) < 5 or head[0] != MARKER or head[1] not in SEGMENTS:
            break
        length = int.from_bytes(head[2:4])
        if (head[1] in FRAMES and head[4] != BITS) or (head[1] == JFIF and length < JFIF_BYTES):
            break
        position += 2 + length
    return jpeg[position : position + 2] == SCAN
