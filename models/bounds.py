"""Limits on what a file can make a decoder do besides decoding pixels: reads, scans, metadata, tiles. No Pillow here.

A decoder believes what a file says about itself. Each limit is far beyond what real pictures need, and keeps a crafted
file of some megabytes from taking seconds or gigabytes.
"""

import io
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.tiff import SUBDIRECTORIES, UNCOMPRESSED, all_fields, compressions, numbers_of, tile_px, tile_size

MAX_READS = 100_000  # of a file by Pillow, which skips padding byte by byte and reads each empty chunk
MAX_READS_OF_RUNS = 2_000_000  # of a BMP, whose runs Pillow reads byte by byte: about half a second
MAX_PX_OF_RUNS = 10_000_000  # in it: Pillow adds those that are missing one by one
RUNS = (1, 2)  # compressions of a BMP
MAX_TIMES_READ = 4  # of the whole file: by those who look at its header, our own decoder and Pillow's
SPARE_BYTES = 2**20  # beside them, for small files whose strips Pillow reads 64 KB at a time
MAX_VALUES = 100_000  # of a TIFF's or EXIF's fields together; a number takes Pillow about 0.3 us
FIELD_VALUES = 10  # that a field counts for: it takes Pillow as long
FRACTION_VALUES = 10  # that a fraction counts for, likewise
MAX_PARSED_BYTES = 1_000_000  # of those JPEG segments that Pillow takes apart in Python, about 0.1 s per megabyte
MAX_COMPRESSED = 100  # chunks of a PNG beside its pixels: a kilobyte each, and a megabyte or 1 ms when decompressed
MAX_CHUNKS = 10_000  # of a WebP, a few and one for each frame; libwebp walks them while Python waits
MAX_SCANS = 100  # of a JPEG, as in libtiff: a scan of a few dozen bytes takes a pass over the whole picture
MAX_SCANNED_PX = 10**9  # in all of them together: 2 s
REAL_SCANS = 20  # that any JPEG may have; progressive ones have about ten
MARKER = re.compile(rb"\xff([^\x00\xff])")
MARKER_OF_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # others have no content: nothing to skip
SEARCHED = 2**19  # bytes at once for one of them, some 5 ms in which no other thread runs
MAX_MARKERS = 100_000  # of them to the end of a JPEG: real ones have a few hundred
# Segments that libjpeg skips.
HAS_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE))
PARSED = frozenset((*range(0xC0, 0xD0), 0xDB)) - {0xC4, 0xC8, 0xCC}  # by Pillow: frames and quantization tables
HEADER = PARSED | {0xC4, 0xCC, *range(0xDC, 0xE0), *range(0xE0, 0xF0), 0xFE}  # what Pillow reads or skips over
ARITHMETIC = frozenset((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))  # frames coded so, which may take 0.8 s per megabyte
# Such a frame of one to four colours, somewhere in a TIFF: in coded pixels, none of these follows FF.
ARITHMETIC_FRAME = re.compile(rb"\xff[\xc9-\xcb\xcd-\xcf]\x00[\x0b\x0e\x11\x14][\x08\x0c]")
APP1, APP13 = 0xE1, 0xED
EXIF, PHOTOSHOP = b"Exif\0\0", b"Photoshop 3.0\0"
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
SCAN = START_OF_SCAN << 8 | 0xFF  # as a little-endian word
JPEG_MARK, PNG_MARK, RIFF_MARK = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF"
RIFF_HEAD = 12  # bytes before a WebP's chunks
COMPRESSED = (b"iCCP", b"zTXt", b"iTXt")  # of PNG's chunks
TIFF_MARKS = (b"II", b"MM")  # the order of its bytes
BYTES, FRACTIONS = frozenset((1, 2, 7)), frozenset((5, 10))  # TIFF types; bytes are kept in one piece
DEEPEST = 2  # EXIF's own directory is in the first one, and interoperability's in that
ROWS = 278  # of TIFF's tags
PART_PLACES = (273, 324)  # where strips and tiles begin
PART_SIZES = (279, 325)  # of strips and of tiles, in bytes
JPEGS = frozenset((6, 7))
CCITT = frozenset((2, 3, 4, 32771))  # libtiff takes 16 bytes for each pixel of a row, beside those of the tile
MORE_PX = 4  # in a TIFF's tiles together than in the picture, at most
FEW_PX = 2**24  # that the tiles of any picture may have


class Reader(io.BytesIO):
    """A file in memory that allows a limited number of reads, and of bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS_OF_RUNS if data.startswith(b"BM") else MAX_READS
        self._left_bytes = MAX_TIMES_READ * len(data) + SPARE_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the file.

        Raises: OSError: too many reads, or too many bytes in all.
        """
        self._left -= 1
        if self._left < 0:
            raise OSError("the file is made of too many small parts")
        data = super().read(size)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise OSError("the file has parts that are read over and over")
        return data


def has_too_much_metadata(data: bytes) -> bool:
    """Check whether Pillow would spend more than about 0.2 s on the metadata of a JPEG, PNG, TIFF or WebP."""
    if data.startswith(JPEG_MARK):
        return _has_too_large_a_header(data)
    if data.startswith(RIFF_MARK):
        return _has_too_many_chunks(data)
    if data.startswith(PNG_MARK):
        return _has_too_many_compressed(data)
    return data.startswith(TIFF_MARKS) and has_too_many_values(data, DEEPEST)


def has_too_many_values(tiff: bytes, depth: int = 0) -> bool:
    """Check whether a TIFF, or EXIF, has too many values; with a depth, its subdirectories included.

    Pillow reads those of a TIFF, and none of EXIF in another format. A TIFF's fields of bytes may not be larger than
    the file together: libtiff reads those that Pillow skips, so many fields in one place would take gigabytes.
    """
    total, held = 0, 0
    for tag, kind, count, _ in all_fields(tiff, depth):
        is_bytes = kind in BYTES
        total += FIELD_VALUES + (0 if is_bytes else count * (FRACTION_VALUES if kind in FRACTIONS else 1))
        held += count if is_bytes else 0
        places = 0 if is_bytes or tag not in SUBDIRECTORIES else count  # of several, Pillow takes the first
        if total > MAX_VALUES or (depth and (held > len(tiff) or places > 1)):
            return True
    return False


def most_scans(pixels: int) -> int:
    """Return how many scans a JPEG of that size may have."""
    return max(REAL_SCANS, min(MAX_SCANS, MAX_SCANNED_PX // pixels))


def has_more_scans(jpeg: bytes, most: int) -> bool:
    """Check how many scans a JPEG's first picture has: a decoder makes a pass over the whole picture for each."""
    if count_scans(jpeg) <= most:  # 0.6 ms for a photo of 5 MB, whose markers take 36 ms to walk
        return False
    scans, position = 0, 0
    for _ in range(MAX_MARKERS):
        found = MARKER_OF_SEGMENT.search(jpeg, position, position + SEARCHED)
        if scans > most or (not found and position + SEARCHED >= len(jpeg)):
            return scans > most
        if not found:
            position += SEARCHED - 1
            continue
        marker, position = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            return False
        scans += marker == START_OF_SCAN
        if marker in HAS_LENGTH:
            position += int.from_bytes(jpeg[position : position + 2])
    return True


def is_arithmetic(data: bytes) -> bool:
    """Check whether a JPEG, or one in a TIFF, is coded arithmetically: slow to decode, and no browser shows it."""
    if data.startswith(JPEG_MARK):
        return any(marker in ARITHMETIC for marker, _, _ in _segments(data))
    return bool(compressions(data) & JPEGS) and ARITHMETIC_FRAME.search(data) is not None


def count_scans(jpeg: bytes) -> int:
    """Count what looks like the start of a scan, at even and at odd places: eight times as fast as bytes.count."""
    return sum(int(np.count_nonzero(words == SCAN)) for words in _words(jpeg))


def has_too_many_scans(tiff: bytes, size: tuple[int, int]) -> bool:
    """Check whether the JPEGs in a TIFF of that size have too many scans, if strips or tiles share them, too.

    Raises: struct.error: as tile_size.
    """
    if not compressions(tiff) & JPEGS:
        return False
    rows = max((int(numbers[0]) for numbers in numbers_of(tiff, ROWS) if len(numbers)), default=0)
    part_px = tile_px(tiff) or size[0] * min(rows or size[1], size[1])
    found = np.sort(np.concatenate([2 * np.flatnonzero(words == SCAN) + odd for odd, words in enumerate(_words(tiff))]))
    places, sizes = (list(numbers_of(tiff, *tags)) for tags in (PART_PLACES, PART_SIZES))
    if len(places) == len(sizes) == 1 and len(places[0]) == len(sizes[0]):
        begins, lengths = (np.minimum(numbers[0], len(tiff)).astype(np.int64) for numbers in (places, sizes))
        scans = int((np.searchsorted(found, begins + lengths) - np.searchsorted(found, begins)).sum())
    else:  # readers disagree: each part may be the whole file
        scans = len(found) * max(1, sum(map(len, places)))
    return scans * part_px > MAX_SCANNED_PX


def has_too_large_tiles(tiff: bytes, size: tuple[int, int], max_pixels: int) -> bool:
    """Check whether a tile has too many pixels, or all tiles have far more than the picture, since they overhang.

    Raises: struct.error: as tile_size.
    """
    tile = tile_size(tiff)
    if not all(tile):
        return False
    across, down = (-(-whole // part) for whole, part in zip(size, tile, strict=True))
    most = max_pixels // 2 if compressions(tiff) & CCITT else max_pixels
    return tile[0] * tile[1] > most or across * down * tile[0] * tile[1] > max(MORE_PX * size[0] * size[1], FEW_PX)


def has_shared_parts(tiff: bytes) -> bool:
    """Check whether a TIFF's compressed strips or tiles are together more than twice as large as the file.

    Then many are in one place, and each is decompressed anew: a thousand of a megabyte, which may be a row each.
    """
    if not compressions(tiff) - {UNCOMPRESSED}:
        return False
    return sum(float(sizes.sum()) for sizes in numbers_of(tiff, *PART_SIZES)) > 2 * len(tiff)


def _words(jpeg: bytes) -> Iterator[NDArray[np.uint16]]:
    """Yield its words at even places, then those at odd ones."""
    for first in (0, 1):
        yield np.frombuffer(jpeg, "<u2", (len(jpeg) - first) // 2, first)


def _has_too_large_a_header(jpeg: bytes) -> bool:
    """Add up what Pillow takes apart; it joins EXIF of several segments, and reads values of it at once."""
    parsed, exif = 0, []
    for marker, start, end in _segments(jpeg):
        is_exif = marker == APP1 and jpeg.startswith(EXIF, start)
        if is_exif:
            exif.append(jpeg[start + len(EXIF) : end])
        if is_exif or marker in PARSED or (marker == APP13 and jpeg.startswith(PHOTOSHOP, start)):
            parsed += end - start
    if parsed > MAX_PARSED_BYTES:
        return True
    return bool(exif) and has_too_many_values(b"".join(exif).removeprefix(EXIF))


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield a JPEG's segments up to its first scan as Pillow finds them: marker, start and end of the content."""
    position = len(JPEG_MARK)
    for _ in range(MAX_READS):
        found = MARKER.search(jpeg, position)
        if not found or found[1][0] == START_OF_SCAN:
            return
        marker, position = found[1][0], found.end()
        if marker in HEADER:
            length = max(2, int.from_bytes(jpeg[position : position + 2]))
            yield marker, position + 2, position + length
            position += length


def _has_too_many_compressed(png: bytes) -> bool:
    position, count = len(PNG_MARK), 0
    for _ in range(MAX_READS):
        head = png[position : position + 8]
        if len(head) < 8:
            break
        count += head[4:] in COMPRESSED
        position += 8 + int.from_bytes(head[:4]) + 4  # content and checksum
    return count > MAX_COMPRESSED


def _has_too_many_chunks(webp: bytes) -> bool:
    position = RIFF_HEAD
    for _ in range(MAX_CHUNKS + 1):
        if position + 8 > len(webp):
            return False
        size = int.from_bytes(webp[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    return True
