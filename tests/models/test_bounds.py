"""What files ask of decoders beside decoding their pixels is bounded, and honest ones do not notice."""

import struct
import zlib

import factories
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from models.bounds import MAX_READS, MAX_VALUES, Reader, count_scans, has_too_many_scans, has_too_many_values, tile_px
from models.errors import InputTooLarge, InvalidInput
from models.image import decode

LIMITS = {"max_pixels": 10_000_000, "max_aspect_ratio": 20.0}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
STRIP_OFFSETS, ORIENTATION, STRIP_BYTES = 273, 274, 279
SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 3, 4, 5, 7, 16
SIZE_OF = {SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1}
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


def crowded(count: int, tag: int, kind: int = LONG, *, big: bool = False) -> bytes:
    """Write a TIFF of 64 x 64 pixels with a field of so many values, and room for them."""
    counted, entry, following = ("Q", "HHQQ", 8) if big else ("H", "HHII", 4)
    fields = [(tag, kind, count, 4096), (WIDTH, LONG, 1, 64), (HEIGHT, LONG, 1, 64), (BITS, SHORT, 1, 8)]
    fields += [(COMPRESSION, SHORT, 1, 1), (PHOTOMETRIC, SHORT, 1, 1), (SAMPLES, SHORT, 1, 1)]
    head = b"II" + (struct.pack("<HHHQ", 43, 8, 0, 16) if big else struct.pack("<HI", 42, 8))
    written = b"".join(struct.pack("<" + entry, *field) for field in fields)
    directory = struct.pack("<" + counted, len(fields)) + written + bytes(following)
    return (head + directory).ljust(4096, b"\0") + SIZE_OF[kind] * count * b"\1"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("tag", "kind"),
    [(STRIP_OFFSETS, LONG), (STRIP_BYTES, LONG), (TILE_OFFSETS, LONG), (TILE_BYTES, SHORT), (ORIENTATION, RATIONAL)],
)
@pytest.mark.parametrize("big", [False, True])
def test_tiff_with_a_field_of_too_many_values_is_refused_unread(tag: int, kind: int, big: bool) -> None:
    """20 MB of where its strips are took 14 s and 1.2 GB, of fractions 20 s."""
    with pytest.raises(InputTooLarge, match="100,000 values") as caught:
        decode(crowded(19_600_000 // SIZE_OF[kind], tag, kind, big=big), **LIMITS)

    assert caught.value.code == "too_many_values"


def test_fields_are_counted_to_where_a_tiff_is_cut_short() -> None:
    """As Pillow reads it; bytes are no values."""
    assert has_too_many_values(crowded(MAX_VALUES + 1, STRIP_OFFSETS)[:30])
    assert not has_too_many_values(crowded(MAX_VALUES + 1, STRIP_OFFSETS)[:20])
    assert not has_too_many_values(crowded(MAX_VALUES, STRIP_OFFSETS))
    assert not has_too_many_values(crowded(1_000_000, 700, UNDEFINED))
    assert not has_too_many_values(b"II")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientation_of_too_many_values_turns_nothing(form: str) -> None:
    """It took a second for each 2.5 MB."""
    picture = factories.noise(60, 40)
    exif = crowded(2_000_000, ORIENTATION, RATIONAL)

    for prefix in (b"", b"Exif\0\0"):
        data = factories.encoded(picture, form, exif=prefix + exif, lossless=True)
        assert decode(data, **LIMITS).tobytes() == picture.tobytes()


def test_text_that_is_called_exif_turns_nothing() -> None:
    """PNG's texts and EXIF are in one dictionary of Pillow's."""
    picture, text = factories.noise(60, 40), PngImagePlugin.PngInfo()
    text.add_text("exif", "II*")

    assert decode(factories.encoded(picture, "PNG", pnginfo=text), **LIMITS).tobytes() == picture.tobytes()


def test_tiff_whose_readers_disagree_is_refused() -> None:
    """Pillow takes a big one of the other byte order for a small one, whose fields are elsewhere; libtiff does not."""
    fields = [(WIDTH, LONG, 64), (HEIGHT, LONG, 64), (BITS, SHORT, 8), (COMPRESSION, SHORT, 1), (PHOTOMETRIC, SHORT, 1)]
    small = tiff(*fields, (STRIP_OFFSETS, LONG, 8), (STRIP_BYTES, LONG, 4096), data=bytes(4096), order=">")
    assert decode(small, **LIMITS).size == (64, 64)
    data = small[:3] + b"\x2b" + small[4:]

    with pytest.raises(InvalidInput, match="identified"):
        decode(data, **LIMITS)
    with pytest.raises(struct.error, match="byte order"):
        tile_px(data)


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


def runs_bmp(picture: Image.Image) -> bytes:
    """Write a BMP of 256 colours as runs of a pixel each, which Pillow reads and does not write."""
    rows = np.asarray(picture).tolist()
    runs = b"".join(b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in reversed(rows)) + b"\0\1"
    palette = b"".join(bytes((value, value, value, 0)) for value in range(256))
    begins = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, *picture.size, 1, 8, 1, len(runs), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", begins + len(runs), 0, 0, begins) + head + palette + runs


def test_bmp_of_runs_is_read() -> None:
    """A dithered picture of 640 x 480, whose runs Pillow reads byte by byte."""
    picture = factories.noise(640, 480).convert("L")

    assert decode(runs_bmp(picture), **LIMITS).tobytes() == picture.convert("RGB").tobytes()


def test_picture_of_many_strips_is_read() -> None:
    """A row each, uncompressed, which is a read each."""
    picture = factories.noise(60, 3000).resize((60, 1200), Image.Resampling.NEAREST)
    data = factories.encoded(picture, "TIFF", tiffinfo={278: 1})

    assert decode(data, **LIMITS).tobytes() == picture.tobytes()
