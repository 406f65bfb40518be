"""What a TIFF, or EXIF, says of itself: the fields of its directories, its tiles, how it is compressed. No Pillow here.

Readers disagree about fields that are there twice or have a strange type. bounds.py, which limits what a file may say,
has to be right about each of them.
"""

import contextlib
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SUBDIRECTORIES = frozenset((34665, 34853, 40965))  # tags whose value is where EXIF, GPS and interoperability begin
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags, too
COMPRESSION, UNCOMPRESSED = 259, 1
BIG = 43  # a version: offsets of 8 bytes
TYPES = {1: 1, 6: 1, 3: 2, 8: 2, 4: 4, 9: 4, 13: 4, 16: 8, 17: 8}  # of whole numbers, and their bytes
STRANGE_PX = 2**32


def tile_px(tiff: bytes) -> int:
    """Return the number of pixels in a tile of a TIFF, 0 if it has no tiles; a tile is decoded whole.

    Raises: struct.error: as tile_size.
    """
    width, length = tile_size(tiff)
    return width * length


def tile_size(tiff: bytes) -> tuple[int, int]:
    """Return width and length of a TIFF's tiles, 0 if it has none.

    Readers disagree on which of several fields counts, and on their types. Here the largest counts, and one of an
    unexpected type is taken to be larger than any picture.

    Raises: struct.error: the file is cut short, or Pillow and libtiff would read different fields.
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
    return sides[TILE_WIDTH], sides[TILE_LENGTH]


def compressions(tiff: bytes) -> set[int]:
    """Return what a TIFF says of how it is compressed; readers disagree on which of several fields counts."""
    return {int(one) for numbers in numbers_of(tiff, COMPRESSION) for one in numbers[:1]} or {UNCOMPRESSED}


def numbers_of(tiff: bytes, *tags: int) -> Iterator[NDArray[np.float64]]:
    """Yield the values of each field with one of these tags, as far as the file has them, whatever their type."""
    is_little = tiff.startswith(b"II")
    for tag, kind, count, value in all_fields(tiff, 0):
        if tag in tags and (size := TYPES.get(kind)):
            place = int.from_bytes(value, "little" if is_little else "big")
            held = value if size * count <= len(value) else memoryview(tiff)[place : place + size * count]
            order = "<" if is_little else ">"
            yield np.frombuffer(held, f"{order}u{size}", min(count, len(held) // size)).astype(np.float64)


def all_fields(tiff: bytes, depth: int, place: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the fields of a directory and of its subdirectories."""
    with contextlib.suppress(struct.error, IndexError):  # it is cut short: Pillow reads what is before that, too
        for tag, kind, count, value in _fields(tiff, place):
            yield tag, kind, count, value
            if depth and tag in SUBDIRECTORIES and kind in TYPES:
                below = int.from_bytes(value[: TYPES[kind]], "little" if tiff.startswith(b"II") else "big")
                yield from all_fields(tiff, depth - 1, below)


def _fields(tiff: bytes, place: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the fields of a directory, the first unless a place is given: tag, type, count, and values or their place.

    As Pillow finds them.
    """
    order = "<" if tiff.startswith(b"II") else ">"
    is_big = tiff[2] == BIG
    offset, counted, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    if place is None:
        (place,) = struct.unpack_from(order + offset, tiff, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + counted, tiff, place)
    start, length = place + struct.calcsize(order + counted), struct.calcsize(order + entry)
    for index in range(count):
        yield struct.unpack_from(order + entry, tiff, start + index * length)
