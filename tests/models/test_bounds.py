"""What files ask of decoders beside decoding their pixels is bounded, and honest ones do not notice."""

import struct
import zlib

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.bounds import MAX_READS, Reader, count_scans, has_too_many_scans, tile_px
from models.errors import InputTooLarge, InvalidInput
from models.image import decode

LIMITS = {"max_pixels": 10_000_000, "max_aspect_ratio": 20.0}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
SHORT, LONG, LONG8 = 3, 4, 16
DEFLATE = 8


@given(st.lists(st.sampled_from([0xFF, 0xDA, 0x00]), min_size=2).map(bytes))
def test_scans_are_counted_at_every_place(data: bytes) -> None:
    """As bytes.count does, which takes eight times as long."""
    assert count_scans(data) == data.count(b"\xff\xda")


@pytest.mark.timeout(60)
def test_padding_between_markers_is_walked_once() -> None:
    """Two megabytes of it, which a marker's pattern could try to match from every byte of: nine hours."""
    data = b"\xff\xd8\xff\xfe\x01\x2e" + 150 * b"\xff\xda" + 2_000_000 * b"\xff" + b"\x00\xff\xd9"

    assert not has_too_many_scans(data)


def tiff(*entries: tuple[int, int, int], data: bytes = b"", order: str = "<") -> bytes:
    """Write a TIFF of one directory, its entries as they are given: tag, type, value."""
    mark = b"II" if order == "<" else b"MM"
    written = b""
    for tag, kind, value in entries:
        field = struct.pack(order + ("HH" if kind == SHORT else "I"), *((value, 0) if kind == SHORT else (value,)))
        written += struct.pack(order + "HHI", tag, kind, 1) + field
    directory = struct.pack(order + "H", len(entries)) + written + bytes(4)
    return mark + struct.pack(order + "HI", 42, 8) + directory + data


def tiled(side_px: int) -> bytes:
    """Write a TIFF of 64 x 64 pixels in one tile of that side."""
    data = zlib.compress(bytes(side_px * side_px))
    fixed = [(WIDTH, LONG, 64), (HEIGHT, LONG, 64), (BITS, SHORT, 8), (COMPRESSION, SHORT, DEFLATE)]
    fixed += [(PHOTOMETRIC, SHORT, 1), (SAMPLES, SHORT, 1), (TILE_WIDTH, LONG, side_px), (TILE_LENGTH, LONG, side_px)]
    begins = 8 + 2 + 12 * (len(fixed) + 2) + 4
    return tiff(*fixed, (TILE_OFFSETS, LONG, begins), (TILE_BYTES, LONG, len(data)), data=data)


def test_tile_larger_than_a_picture_may_be_is_refused_unread() -> None:
    """It is decoded whole: 64 x 64 pixels took a gigabyte."""
    assert decode(tiled(128), **LIMITS).size == (64, 64)

    with pytest.raises(InputTooLarge, match="tiles"):
        decode(tiled(4096), **LIMITS)


@pytest.mark.parametrize("order", ["<", ">"])
def test_largest_of_several_tile_sides_counts(order: str) -> None:
    """libtiff and Pillow take the first that they can read, which need not be the same one."""
    sides = [(TILE_WIDTH, SHORT, 64), (TILE_WIDTH, LONG, 70_000), (TILE_LENGTH, SHORT, 100)]

    assert tile_px(tiff(*sides, order=order)) == 7_000_000
    assert tile_px(tiff(*sides, (TILE_LENGTH, LONG8, 8), order=order)) > 10**12  # a field that points elsewhere
    assert tile_px(tiff((WIDTH, LONG, 64), order=order)) == 0


def test_tiff_that_pillow_writes_has_no_tiles() -> None:
    """Whatever is found there is not taken for one."""
    for compression in ("raw", "tiff_lzw", "jpeg"):
        assert tile_px(factories.encoded(factories.noise(50, 40), "TIFF", compression=compression)) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + 4_000_000 * b"\xff" + b"\x00",
        b"\x89PNG\r\n\x1a\n" + 400_000 * (bytes(4) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))),
    ],
    ids=["padding", "empty chunks"],
)
def test_file_of_too_many_small_parts_is_refused(data: bytes) -> None:
    """Pillow would read on for seconds, in Python."""
    with pytest.raises(InvalidInput):
        decode(data, **LIMITS)


def test_reader_reads_as_often_as_it_may() -> None:
    """And gives what a file would."""
    reader = Reader(bytes(MAX_READS) + b"rest")

    assert {reader.read(1) for _ in range(MAX_READS)} == {b"\x00"}
    with pytest.raises(OSError, match="small parts"):
        reader.read()


def test_picture_of_many_strips_is_read() -> None:
    """A row each, uncompressed, which is a read each."""
    picture = factories.noise(60, 3000).resize((60, 1200), Image.Resampling.NEAREST)
    data = factories.encoded(picture, "TIFF", tiffinfo={278: 1})

    assert decode(data, **LIMITS).tobytes() == picture.tobytes()
