"""What a file may have a decoder do beside decoding pixels: reads, scans, values, tiles. Knows formats, no Pillow.

A decoder believes what a file says of itself. Each bound is far beyond what is found in pictures, and keeps a file of
some megabytes from taking minutes or gigabytes.
"""

import contextlib
import io
import re
import struct
from collections.abc import Iterator

import numpy as np

MAX_READS = 100_000  # of a file, by Pillow's own code: it skips padding byte by byte, and reads chunks of nothing
MAX_READS_OF_RUNS = 4_000_000  # of a BMP, whose runs Pillow reads by the byte: about a second
MAX_VALUES = 100_000  # of a field of a TIFF, or of EXIF: Pillow makes objects of all, 3 to 8 us and 250 bytes each
MAX_SCANS = 100  # of a JPEG, as libtiff allows: each takes a pass over the whole picture, and a few dozen bytes
MARKER = re.compile(rb"\xff([^\x00\xff])")
HAS_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE))  # what libjpeg skips over
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
SCAN = START_OF_SCAN << 8 | 0xFF  # as a little-endian word
TIFF_MARKS = (b"II", b"MM")  # the order of its bytes
BYTES = frozenset((1, 2, 7))  # of TIFF's types, which Pillow leaves in one piece
TILE_WIDTH, TILE_LENGTH = 322, 323  # of its tags
BIG = 43  # of TIFF's versions: offsets of 8 bytes
TYPES = {1: 1, 6: 1, 3: 2, 8: 2, 4: 4, 9: 4, 16: 8, 17: 8}  # whole numbers of TIFF's, and their bytes
STRANGE_PX = 2**32


class Reader(io.BytesIO):
    """A file in memory that can be read so often and no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS_OF_RUNS if data.startswith(b"BM") else MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read.

        Raises: OSError: it has been read too often.
        """
        self._left -= 1
        if self._left < 0:
            raise OSError("the file is made of too many small parts")
        return super().read(size)


def has_too_many_scans(jpeg: bytes) -> bool:
    """Walk a JPEG's markers to the end of its first picture; a decoder would make a pass for each scan."""
    if count_scans(jpeg) <= MAX_SCANS:  # no walk: in a photo of 5 MB it takes 36 ms, and this 0.6
        return False
    scans, position = 0, 0
    while scans <= MAX_SCANS and (found := MARKER.search(jpeg, position)):
        marker, position = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            break
        scans += marker == START_OF_SCAN
        if marker in HAS_LENGTH:
            position += int.from_bytes(jpeg[position : position + 2])
    return scans > MAX_SCANS


def count_scans(jpeg: bytes) -> int:
    """Count what looks like the start of a scan, at even and at odd places: eight times as fast as bytes.count."""
    words = (np.frombuffer(jpeg, "<u2", (len(jpeg) - first) // 2, first) for first in (0, 1))
    return sum(int(np.count_nonzero(one == SCAN)) for one in words)


def has_too_many_values(tiff: bytes) -> bool:
    """Look for a field with too many values in a TIFF, which has one for each strip or tile, or in EXIF."""
    with contextlib.suppress(struct.error, IndexError):  # it is cut short: Pillow reads what is before that, too
        return any(count > MAX_VALUES and kind not in BYTES for _, kind, count, _ in _fields(tiff))
    return False


def tile_px(tiff: bytes) -> int:
    """Count the pixels of a TIFF's tiles, which are decoded whole, however small the picture; 0 where it has none.

    Readers disagree on which of several fields counts, and on their types: here the largest does, and a strange one is
    larger than any picture.

    Raises: struct.error: it is cut short, or Pillow and libtiff would read different fields.
    """
    if tiff[3] == BIG:
        raise struct.error("Pillow takes a big TIFF of the other byte order for a small one")
    sides = {TILE_WIDTH: 0, TILE_LENGTH: 0}
    is_little = tiff.startswith(b"II")
    for tag, kind, _, value in _fields(tiff):
        if tag in sides:
            size = TYPES.get(kind, len(value) + 1)
            side = int.from_bytes(value[:size], "little" if is_little else "big") if size <= len(value) else STRANGE_PX
            sides[tag] = max(sides[tag], side)
    return sides[TILE_WIDTH] * sides[TILE_LENGTH]


def _fields(tiff: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the fields of a TIFF's first picture as Pillow finds them: tag, type, count, and values or their place."""
    order = "<" if tiff.startswith(b"II") else ">"
    is_big = tiff[2] == BIG
    offset, counted, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    (first,) = struct.unpack_from(order + offset, tiff, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + counted, tiff, first)
    start, length = first + struct.calcsize(order + counted), struct.calcsize(order + entry)
    for index in range(count):
        yield struct.unpack_from(order + entry, tiff, start + index * length)
