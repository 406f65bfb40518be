"""What files can ask of decoders besides decoding their pixels is bounded, and real pictures do not notice."""

import contextlib
import io
import resource
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import factories
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from models.bounds import (
    CCITT,
    MAX_READS,
    MAX_VALUES,
    Reader,
    _segments,
    count_scans,
    has_more_scans,
    has_too_large_tiles,
    has_too_many_scans,
    has_too_many_values,
    most_scans,
)
from models.errors import InputTooLarge, InvalidInput
from models.image import FORMATS, decode, identify, load
from models.tiff import tile_px

LIMITS = {"max_pixels": 10_000_000, "max_aspect_ratio": 20.0}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
STRIP_OFFSETS, ORIENTATION, ROWS, STRIP_BYTES = 273, 274, 278, 279
EXIF_PLACE, GPS_PLACE, INTEROP_PLACE, RESOLUTION, UNIT = 34665, 34853, 40965, 282, 296
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
SIZE_OF = {SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1}
DEFLATE = 8


@given(st.lists(st.sampled_from([0xFF, 0xDA, 0x00]), min_size=2).map(bytes))
def test_scans_are_counted_at_every_place(data: bytes) -> None:
    """As bytes.count does, which takes eight times as long."""
    assert count_scans(data) == data.count(b"\xff\xda")


@pytest.mark.parametrize(("pixels", "most"), [(640 * 480, 100), (20_000_000, 50), (50_000_000, 20), (10**9, 20)])
def test_larger_jpeg_may_have_fewer_scans(pixels: int, most: int) -> None:
    """95 scans of 49 million pixels took ten seconds."""
    assert most_scans(pixels) == most


@pytest.mark.timeout(60)
def test_padding_between_markers_is_walked_once() -> None:
    """Two megabytes of it, which a marker's pattern could try to match from every byte of: nine hours."""
    data = b"\xff\xd8\xff\xfe\x01\x2e" + 150 * b"\xff\xda" + 2_000_000 * b"\xff" + b"\x00\xff\xd9"

    assert not has_more_scans(data, 100)


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
    with pytest.raises(InputTooLarge, match="metadata") as caught:
        decode(crowded(19_600_000 // SIZE_OF[kind], tag, kind, big=big), **LIMITS)

    assert caught.value.code == "too_many_values"


def test_fields_are_counted_to_where_a_tiff_is_cut_short() -> None:
    """As Pillow reads it; bytes are no values."""
    assert has_too_many_values(crowded(MAX_VALUES + 1, STRIP_OFFSETS)[:30])
    assert not has_too_many_values(crowded(MAX_VALUES + 1, STRIP_OFFSETS)[:20])
    assert not has_too_many_values(crowded(1_000_000, 700, UNDEFINED))
    assert not has_too_many_values(b"II")


def test_fields_and_their_values_are_added_up() -> None:
    """Seven fields count for ten each, six of them for a number more; a fraction counts for ten."""
    room = MAX_VALUES - 76

    assert not has_too_many_values(crowded(room, STRIP_OFFSETS))
    assert has_too_many_values(crowded(room + 1, STRIP_OFFSETS))
    assert not has_too_many_values(crowded(room // 10, ORIENTATION, RATIONAL))
    assert has_too_many_values(crowded(room // 10 + 1, ORIENTATION, RATIONAL))


def directory(*fields: tuple[int, int, int, int | bytes], begins: int = 8, order: str = "<") -> bytes:
    """Write a directory that begins there: tag, type, count, and a number or what is behind the directory."""
    behind = begins + 2 + 12 * len(fields) + 4
    written, values = struct.pack(order + "H", len(fields)), b""
    for tag, kind, count, value in fields:
        inline = value if isinstance(value, int) else behind + len(values)
        packed = struct.pack(order + ("HH" if kind == SHORT else "I"), *((inline, 0) if kind == SHORT else (inline,)))
        written += struct.pack(order + "HHI", tag, kind, count) + packed
        values += value if isinstance(value, bytes) else b""
    return written + bytes(4) + values


def head(order: str = "<") -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)


def fractions(count: int) -> bytes:
    return b"\1\2\3\4" * (2 * count)


def nested(below: bytes, *more: tuple[int, int, int, int | bytes], place: int = EXIF_PLACE) -> bytes:
    """Write EXIF whose first directory has an orientation and says where another one is."""
    begins = 8 + 2 + 12 * (2 + len(more)) + 4
    return head() + directory((ORIENTATION, SHORT, 1, 6), (place, LONG, 1, begins), *more) + below


def tiff_with(place: int, below: Callable[[int], bytes]) -> bytes:
    """Write a TIFF of 64 x 64 pixels, and a subdirectory behind them."""
    pixels = 8 + 2 + 12 * 9 + 4
    fields = [(WIDTH, LONG, 1, 64), (HEIGHT, LONG, 1, 64), (BITS, SHORT, 1, 8), (COMPRESSION, SHORT, 1, 1)]
    fields += [(PHOTOMETRIC, SHORT, 1, 1), (STRIP_OFFSETS, LONG, 1, pixels), (SAMPLES, SHORT, 1, 1)]
    fields += [(STRIP_BYTES, LONG, 1, 4096), (place, LONG, 1, pixels + 4096)]
    return head() + directory(*fields) + bytes(4096) + below(pixels + 4096)


def tiff_of_bytes(count: int, size: int, kind: int) -> bytes:
    """Write a TIFF of 64 x 64 deflated pixels and fields that no reader knows, all of the same bytes."""
    pixels = zlib.compress(bytes(4096))
    begins = 8 + 2 + 12 * (8 + count) + 4
    fields = [(WIDTH, LONG, 1, 64), (HEIGHT, LONG, 1, 64), (BITS, SHORT, 1, 8), (COMPRESSION, SHORT, 1, DEFLATE)]
    fields += [(PHOTOMETRIC, SHORT, 1, 1), (STRIP_OFFSETS, LONG, 1, begins), (SAMPLES, SHORT, 1, 1)]
    fields += [(STRIP_BYTES, LONG, 1, len(pixels)), *((50_000 + tag, kind, size, begins) for tag in range(count))]
    return (head() + directory(*fields) + pixels).ljust(begins + size, b"\1")


@pytest.mark.parametrize("tag", [WIDTH, COMPRESSION, STRIP_OFFSETS, STRIP_BYTES, 278])
@pytest.mark.parametrize("count", [0, 1, 2, 2**32 - 1])
@pytest.mark.parametrize("kind", [BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8])
def test_field_of_another_type_is_refused_or_read(tag: int, count: int, kind: int) -> None:
    """As any damaged file: never by another error."""
    data = bytearray(factories.encoded(factories.noise(60, 40), "TIFF", compression="jpeg"))
    (begins,) = struct.unpack_from("<I", data, 4)
    (fields,) = struct.unpack_from("<H", data, begins)
    places = [begins + 2 + 12 * index for index in range(fields)]
    (place,) = (one for one in places if struct.unpack_from("<H", data, one)[0] == tag)
    struct.pack_into("<HI", data, place + 2, kind, count)

    with contextlib.suppress(InputTooLarge, InvalidInput):
        decode(bytes(data), **LIMITS)


@pytest.mark.parametrize("kind", [BYTE, ASCII, UNDEFINED])
def test_fields_of_bytes_are_no_larger_than_a_tiff(kind: int) -> None:
    """Those of a profile or a preview are in it once."""
    assert decode(tiff_of_bytes(1, 1_000_000, kind), **LIMITS).size == (64, 64)

    with pytest.raises(InputTooLarge) as caught:
        decode(tiff_of_bytes(2, 1_000_000, kind), **LIMITS)
    assert caught.value.code == "too_many_values"


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """Write a JPEG of 60 x 40 pixels with these segments in place of its own first one."""
    data = factories.encoded(factories.noise(60, 40), "JPEG")
    written = (bytes((0xFF, marker)) + struct.pack(">H", 2 + len(content)) + content for marker, content in segments)
    return data[:2] + b"".join(written) + data[20:]


def exif_segments(exif: bytes, size: int = 65_000) -> list[tuple[int, bytes]]:
    return [(0xE1, b"Exif\0\0" + exif[start : start + size]) for start in range(0, len(exif), size)]


def png_with(kind: bytes, *contents: bytes) -> bytes:
    """Write a PNG of 60 x 40 pixels with these chunks of one kind."""
    data = factories.encoded(factories.noise(60, 40), "PNG")
    written = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for content in contents
    )
    return data[:33] + b"".join(written) + data[33:]


def webp_with(chunks: int) -> bytes:
    """Write a WebP of 60 x 40 pixels and so many chunks of nothing."""
    pixels = factories.encoded(factories.noise(60, 40), "WEBP", lossless=True)[12:]
    head = b"VP8X" + struct.pack("<IIHBHB", 10, 0, 59, 0, 39, 0)
    body = b"WEBP" + head + pixels + chunks * b"XXXX\0\0\0\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def large(form: str, exif: bytes) -> bytes:
    return factories.encoded(factories.noise(60, 40), form, exif=b"Exif\0\0" + exif, lossless=True)


MEGABYTE = zlib.compress(bytes(1_000_000))
MANY_FIELDS = head() + directory(*((tag, LONG, 1, 6) for tag in range(1, 65_536)))
MANY_FRACTIONS = head() + directory(
    (ORIENTATION, SHORT, 1, 6), *((40_000 + tag, RATIONAL, 99_000, fractions(99_000)) for tag in range(24))
)
HUGE = 2_390_000  # fractions: 19 MB
HUGE_BELOW = nested(directory((40_000, RATIONAL, HUGE, fractions(HUGE)), begins=38))
HUGE_RESOLUTION = head() + directory((UNIT, SHORT, 1, 2), (RESOLUTION, RATIONAL, HUGE, fractions(HUGE)))
HUGE_ORIENTATION = head() + directory((ORIENTATION, RATIONAL, HUGE // 2, fractions(HUGE // 2)))
RAW = b"Raw profile type exif\0\nexif\n 9\n" + (b"Exif\0\0" + HUGE_ORIENTATION).hex().encode()
# With what each took before it was bounded, in seconds.
CRAFTED: dict[str, Callable[[], bytes]] = {
    "PNG, 24 fields of 99,000 fractions: 50": lambda: large("PNG", MANY_FRACTIONS),
    "PNG, fractions in a subdirectory: 52": lambda: large("PNG", HUGE_BELOW),
    "PNG, 65,535 fields: 2": lambda: large("PNG", MANY_FIELDS),
    "PNG, an orientation of fractions as text: 5": lambda: png_with(b"tEXt", RAW),
    "PNG, 16,000 profiles of a megabyte: 30": lambda: png_with(b"iCCP", *16_000 * [b"a\0\0" + MEGABYTE]),
    "PNG, 16,000 texts of a megabyte without a name: 30": lambda: png_with(b"zTXt", *16_000 * [b"\0\0" + MEGABYTE]),
    "WebP, fractions in a subdirectory: 50": lambda: large("WEBP", HUGE_BELOW),
    "JPEG, a resolution of fractions: 20": lambda: jpeg_with(*exif_segments(HUGE_RESOLUTION)),
    "JPEG, EXIF in 24,000 segments: 28": lambda: jpeg_with(*exif_segments(bytes(18_000_000), 750)),
    "JPEG, frames of 21,000 colours: 4": lambda: jpeg_with(
        *290 * [(0xC0, struct.pack(">BHHB", 8, 40, 60, 3) + bytes(64_998))]
    ),
    "JPEG, quantization tables: 2": lambda: jpeg_with(*290 * [(0xDB, 1_000 * bytes(65))]),
    "JPEG, Photoshop's resources: 2": lambda: jpeg_with(
        *290 * [(0xED, b"Photoshop 3.0\0" + 5_400 * b"8BIM\4\4\0\0\0\0\0\0")]
    ),
    "TIFF, fractions in EXIF's subdirectory: 15": lambda: tiff_with(
        EXIF_PLACE, lambda begins: directory((40_000, RATIONAL, HUGE, fractions(HUGE)), begins=begins)
    ),
    "TIFF, 900 fields of the same 2 MB: 11": lambda: tiff_of_bytes(900, 2_000_000, BYTE),
    "WebP, 2.4 million empty chunks: 0.2 in which nothing else runs": lambda: webp_with(2_400_000),
    "TIFF, 60,000 fields in GPS's subdirectory: 1": lambda: tiff_with(
        GPS_PLACE, lambda begins: directory(*((tag, LONG, 1, 6) for tag in range(1, 60_001)), begins=begins)
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", CRAFTED.values(), ids=CRAFTED)
def test_crafted_metadata_costs_little_time_and_memory(make: Callable[[], bytes]) -> None:
    """Refused, or read without it: in both cases at once."""
    data = make()
    assert len(data) < 20_000_000
    decode(factories.encoded(Image.new("RGB", (8, 8)), "PNG"), **LIMITS)  # what is imported only once
    before, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()

    with contextlib.suppress(InputTooLarge):
        decode(data, **LIMITS)

    assert time.thread_time() - began_s < 0.3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # of kilobytes


@pytest.mark.parametrize("order", ["<", ">"])
def test_values_of_subdirectories_are_added_to_a_tiff_s(order: str) -> None:
    """EXIF's, which says where interoperability's are, and GPS's; in EXIF elsewhere nobody reads them."""
    count = MAX_VALUES // 30 - 20
    below = (40_000, RATIONAL, count, fractions(count))
    last = directory(below, begins=100_000, order=order).ljust(30_000, b"\0")
    middle = directory(below, (INTEROP_PLACE, LONG, 1, 100_000), begins=130_000, order=order).ljust(30_000, b"\0")
    first = directory((GPS_PLACE, LONG, 1, 100_000), (EXIF_PLACE, LONG, 1, 130_000), order=order)
    data = (head(order) + first).ljust(100_000, b"\0") + last + middle

    assert not has_too_many_values(data, 1)
    assert not has_too_many_values(data, 2)
    more = data.replace(struct.pack(order + "I", count), struct.pack(order + "I", count + 20))
    assert not has_too_many_values(more, 1)
    assert has_too_many_values(more, 2)
    assert not has_too_many_values(more)


def test_subdirectory_that_is_its_own_ends() -> None:
    """And one that is nowhere, and one of which several places are given: Pillow takes the first of them."""
    itself = head() + directory((EXIF_PLACE, LONG, 1, 8), (GPS_PLACE, LONG, 1, 8))

    assert not has_too_many_values(itself, 2)
    assert not has_too_many_values(head() + directory((EXIF_PLACE, LONG, 1, 10**9)), 2)
    assert has_too_many_values(head() + directory((EXIF_PLACE, LONG, 2, struct.pack("<II", 8, 8))), 2)


def camera_exif(orientation: int) -> Image.Exif:
    """Make what a camera writes: its name, exposure, a note of its maker's, where it was."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[271], exif[272], exif[RESOLUTION], exif[UNIT] = "A maker", "A camera", 72.0, 2
    exif.get_ifd(EXIF_PLACE).update({33434: 0.01, 36867: "2024:01:01 00:00:00", 37500: bytes(range(256)) * 120})
    exif.get_ifd(EXIF_PLACE)[42034] = (24.0, 70.0, 2.8, 4.0)
    exif.get_ifd(GPS_PLACE).update({1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 36.0)})
    return exif


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_s_metadata_turns_as_pillow_s_exif_transpose(form: str, orientation: int) -> None:
    """All that a camera writes is read, and the pixels are those of Pillow's own function, for every orientation."""
    data = factories.encoded(factories.noise(60, 40), form, exif=camera_exif(orientation), lossless=True)

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))

    assert np.array_equal(np.asarray(decode(data, **LIMITS)), np.asarray(expected.convert("RGB")))


def test_exif_in_several_segments_is_read() -> None:
    """As some programs write it when it is longer than a segment can be; a thumbnail is at its end."""
    exif = head() + directory((ORIENTATION, SHORT, 1, 6), (40_000, UNDEFINED, 150_000, bytes(150_000)))

    assert decode(jpeg_with(*exif_segments(exif)), **LIMITS).size == (40, 60)
    assert decode(jpeg_with(*exif_segments(b"Exif\0\0" + exif)), **LIMITS).size == (40, 60)


PIECES = st.one_of(
    st.tuples(st.sampled_from([*range(0xC0, 0x100), 0x01]), st.binary(max_size=9)).map(
        lambda piece: bytes((0xFF, piece[0])) + struct.pack(">H", 2 + len(piece[1])) + piece[1]
    ),
    st.sampled_from([b"\xff", b"\0", b"\xff\0", b"\xff\xe1\0\0", b"\xff\xe1\0\1", b"\xff\xd8", b"Exif\0\0"]),
)


@given(st.lists(PIECES, max_size=6).map(b"".join))
def test_segments_of_a_header_are_those_that_pillow_finds(pieces: bytes) -> None:
    """Whatever lies between them; where Pillow refuses the file, ours may go on."""
    data = factories.encoded(Image.new("RGB", (8, 8)), "JPEG")
    data = data[:2] + pieces + data[2:]
    try:
        image = JpegImageFile(io.BytesIO(data))
    except Exception:
        assert sum(1 for _ in _segments(data)) < len(data)
        return

    kept = [data[start:end] for marker, start, end in _segments(data) if 0xE0 <= marker <= 0xEF or marker == 0xFE]
    assert kept == [content for _, content in image.applist]


@pytest.mark.parametrize("form", FORMATS)
def test_metadata_of_noise_is_not_too_much(form: str) -> None:
    """Pixels that look like anything are taken for nothing else."""
    picture = Image.frombytes("RGB", (300, 200), np.random.default_rng(0).bytes(180_000))

    assert decode(factories.encoded(picture, form), **LIMITS).size == (300, 200)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientation_of_too_many_values_turns_nothing(form: str) -> None:
    """With one prefix or with two, as Pillow bears both."""
    picture = factories.noise(60, 40)

    for prefix in (b"", b"Exif\0\0"):
        data = factories.encoded(picture, form, exif=prefix + HUGE_ORIENTATION, lossless=True)
        assert decode(data, **LIMITS).tobytes() == picture.tobytes()


def test_orientation_as_text_turns_unless_it_is_too_long() -> None:
    """ImageMagick keeps EXIF so."""
    exif = b"Exif\0\0" + head() + directory((ORIENTATION, SHORT, 1, 6))
    text = b"Raw profile type exif\0\nexif\n 9\n" + exif.hex().encode()

    assert decode(png_with(b"tEXt", text), **LIMITS).size == (40, 60)
    assert decode(png_with(b"tEXt", text + bytes(200_000).hex().encode()), **LIMITS).size == (60, 40)


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


def test_reader_reads_as_much_as_it_may() -> None:
    """Each of those who look at a file may read all of it."""
    reader = Reader(bytes(2_000_000))

    for _ in range(4):
        reader.seek(0)
        assert len(reader.read()) == 2_000_000
    reader.seek(0)
    with pytest.raises(OSError, match="over and over"):
        reader.read()


def runs_bmp(picture: Image.Image) -> bytes:
    """Write a BMP of 256 colours as runs of a pixel each."""
    rows = np.asarray(picture).tolist()
    runs = b"".join(b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in reversed(rows)) + b"\0\1"
    return bmp(picture.size, runs)


def empty_rows_bmp(size: tuple[int, int]) -> bytes:
    """Write a BMP whose rows are of one pixel, so that those that follow it are missing."""
    return bmp(size, size[1] * b"\1\1\0\0" + b"\0\1")


def bmp(size: tuple[int, int], runs: bytes, compression: int = 1) -> bytes:
    """Write a BMP of 256 colours in runs, which Pillow reads and does not write."""
    palette = b"".join(bytes((value, value, value, 0)) for value in range(256))
    begins = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, compression, len(runs), 2835, 2835, 256, 0)
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


LARGE = {"max_pixels": 50_000_000, "max_aspect_ratio": 20.0}  # as the server's


def parted(
    size: tuple[int, int],
    compression: int,
    *parts: tuple[int, int | list[int]],
    blob: bytes,
    bits: int = 8,
    kind: int = LONG,
    order: str = "<",
) -> bytes:
    """Write a TIFF in grey whose strips or tiles are described by these fields, and are somewhere in the blob at 8."""
    fields = [(WIDTH, LONG, [size[0]]), (HEIGHT, LONG, [size[1]]), (BITS, SHORT, [bits]), (SAMPLES, SHORT, [1])]
    fields += [(COMPRESSION, SHORT, [compression]), (PHOTOMETRIC, SHORT, [1])]
    fields += [(tag, kind, value if isinstance(value, list) else [value]) for tag, value in parts]
    begins, written = 8 + len(blob) + len(blob) % 2, []
    behind = begins + 2 + 12 * len(fields) + 4
    values = b""
    for tag, form, numbers in sorted(fields):
        packed = struct.pack(f"{order}{len(numbers)}{'HIQ'[(SHORT, LONG, LONG8).index(form)]}", *numbers)
        place = struct.pack(order + "I", behind + len(values)) if len(packed) > 4 else packed.ljust(4, b"\0")
        values += packed if len(packed) > 4 else b""
        written.append(struct.pack(order + "HHI", tag, form, len(numbers)) + place)
    mark = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, begins)
    counted = struct.pack(order + "H", len(fields))
    return mark + blob.ljust(begins - 8, b"\0") + counted + b"".join(written) + bytes(4) + values


def shared_strips(count: int = 31_000, **options: Any) -> bytes:
    """Write strips of a row of 1,600 pixels, all in one megabyte that holds little else than empty blocks."""
    packer = zlib.compressobj()
    raw = packer.compress(bytes(1600)) + packer.flush(zlib.Z_SYNC_FLUSH)
    blob = raw[:2] + 200_000 * b"\0\0\0\xff\xff" + raw[2:]
    parts = (ROWS, 1), (STRIP_OFFSETS, count * [8]), (STRIP_BYTES, count * [len(blob)])
    return parted((1600, count), DEFLATE, *parts, blob=blob, **options)


def tiles(size: tuple[int, int], tile: tuple[int, int], compression: int, order: str = "<") -> bytes:
    """Write tiles that are all of the same bytes, however many are needed; bilevel ones have too few of them."""
    is_bilevel = compression in CCITT
    blob = 1000 * b"\x80" if is_bilevel else zlib.compress(bytes(tile[0] * tile[1]), 9)
    count = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    parts = (
        (TILE_WIDTH, tile[0]),
        (TILE_LENGTH, tile[1]),
        (TILE_OFFSETS, count * [8]),
        (TILE_BYTES, count * [len(blob)]),
    )
    return parted(size, compression, *parts, blob=blob, bits=1 if is_bilevel else 8, order=order)


def walked(marker: bytes, count: int) -> bytes:
    """Write a JPEG of 60 x 40 pixels, with so many markers at its end and a comment that looks like scans."""
    data = jpeg_with((0xFE, 200 * b"\xff\xda"))
    return data[:-2] + count * marker + data[-2:]


def many_scans(size: tuple[int, int] = (7000, 1000), strips: int = 7, more: int = 90) -> bytes:
    """Write strips that are the same JPEG, which repeats its last scan, and room for as many JPEGs."""
    jpeg = factories.encoded(Image.new("L", size, 60), "JPEG", progressive=True)
    jpeg = jpeg[:-2] + more * jpeg[jpeg.rindex(b"\xff\xda") : -2] + jpeg[-2:]
    parts = (ROWS, size[1]), (STRIP_OFFSETS, strips * [8]), (STRIP_BYTES, strips * [len(jpeg)])
    return parted((size[0], strips * size[1]), 7, *parts, blob=jpeg.ljust(strips * len(jpeg)))


def arithmetic(marker: int = 0xC9) -> bytes:
    """Write a JPEG of 49 million pixels that claims to be coded arithmetically, which any bytes can be."""
    data = factories.encoded(Image.new("RGB", (7000, 7000)), "JPEG").replace(
        b"\xff\xc0\0\x11", b"\xff%c\0\x11" % marker
    )
    noise = np.random.default_rng(0).bytes(15_000_000).replace(b"\xff", b"")
    return data[:-2] + noise + data[-2:]


# With what each took before it was bounded, in seconds.
CRAFTED_PIXELS: dict[str, Callable[[], bytes]] = {
    "TIFF, 31,000 strips in the same megabyte: 248": shared_strips,
    "TIFF, 1,250 tiles of which a 3,000th is seen: 66": lambda: tiles((20_000, 1000), (16, 3_100_000), DEFLATE),
    "TIFF, the same uncompressed strip 1,000 times: 26": lambda: parted(
        (1600, 1600),
        1,
        *((ROWS, 1599), (STRIP_OFFSETS, 1000 * [8]), (STRIP_BYTES, 1000 * [1600 * 1600])),
        blob=bytes(1600 * 1600),
    ),
    "JPEG, 9 million restart markers: 9": lambda: walked(b"\xff\xd0", 9_000_000),
    "JPEG, 9 million markers of nothing: 6": lambda: walked(b"\xff\x02", 9_000_000),
    "TIFF, 98 scans of 7 strips each: 10": many_scans,
    "BMP, 50 million pixels in runs of one: 13": lambda: empty_rows_bmp((31_000, 1600)),
    "JPEG, coded arithmetically: 15": arithmetic,
    "TIFF, a tile a row high and 50 million pixels wide: 0.8 GB": lambda: tiles((1000, 1000), (49_984_000, 1), 4),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", CRAFTED_PIXELS.values(), ids=CRAFTED_PIXELS)
def test_crafted_pixels_cost_little_time_and_memory(make: Callable[[], bytes]) -> None:
    """Refused, or decoded: in both cases soon."""
    data = make()
    assert len(data) < 20_000_000
    before, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()

    with contextlib.suppress(InvalidInput, InputTooLarge):
        decode(data, **LARGE)

    assert time.thread_time() - began_s < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # of kilobytes


@pytest.mark.parametrize("kind", [LONG, LONG8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_strips_in_one_place_are_refused(kind: int, order: str) -> None:
    """Whatever their sizes are written as; two may be in the same."""
    assert decode(shared_strips(2, order=order), max_pixels=10**6, max_aspect_ratio=1600.0).size == (1600, 2)

    with pytest.raises(InputTooLarge, match="strips") as caught:
        decode(shared_strips(100, kind=kind, order=order), **LARGE)
    assert caught.value.code == "image_too_large"


COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd", "jpeg")
BILEVEL = ("tiff_ccitt", "group3", "group4", "packbits", "raw")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("rows", [1, 8, 300])
@pytest.mark.parametrize(
    ("mode", "compression"), [*(("RGB", one) for one in COMPRESSIONS), *(("1", one) for one in BILEVEL)]
)
def test_tiff_that_pillow_writes_is_read(mode: str, compression: str, rows: int, orientation: int) -> None:
    """Flat and noisy pictures, in one strip or many."""
    for picture in (factories.noise(300, 200), Image.new("RGB", (300, 200), "gray")):
        written = picture.convert(mode)
        rows = max(rows, 8) if compression == "jpeg" else rows
        info = {ROWS: rows, ORIENTATION: orientation}
        data = factories.encoded(written, "TIFF", compression=compression, tiffinfo=info)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert np.array_equal(np.asarray(decode(data, **LIMITS)), np.asarray(expected))


@pytest.mark.parametrize("size", [(300, 200), (20, 1), (5000, 400), (640, 480)])
@pytest.mark.parametrize("tile", [(16, 16), (256, 256), (512, 128), (1024, 1024)])
def test_tiles_of_common_sizes_are_read(size: tuple[int, int], tile: tuple[int, int]) -> None:
    """Even if the picture is smaller than one."""
    assert decode(tiles(size, tile, DEFLATE).ljust(8_000_000), **LIMITS).size == size


@pytest.mark.parametrize("turn", [1, 6])
def test_tiles_that_overhang_are_refused(turn: int) -> None:
    """Their sizes are compared with the picture's before it is turned."""
    wide = tiff((ORIENTATION, SHORT, turn), (TILE_WIDTH, LONG, 20_000), (TILE_LENGTH, LONG, 256))

    assert not has_too_large_tiles(wide, (20_000, 1000), 50_000_000)
    assert has_too_large_tiles(wide, (1000, 20_000), 50_000_000)
    with pytest.raises(InputTooLarge, match="tiles have too many pixels"):
        decode(tiles((320, 320), (16, 400_000), DEFLATE).ljust(10**6), **LARGE)


@pytest.mark.parametrize("compression", [2, 3, 4, 32771])
def test_tile_of_a_fax_may_be_half_as_large(compression: int) -> None:
    """It takes up to 16 bytes a pixel."""
    data = tiff((COMPRESSION, SHORT, compression), (TILE_WIDTH, LONG, 10_000), (TILE_LENGTH, LONG, 1000))

    assert not has_too_large_tiles(data, (10_000, 1000), 20_000_000)
    assert has_too_large_tiles(data, (10_000, 1000), 19_000_000)


@pytest.mark.parametrize("marker", [0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_jpeg_that_is_coded_arithmetically_is_refused(marker: int) -> None:
    """In a TIFF, too; browsers do not show them either."""
    mark = b"\xff%c\0" % marker
    data = factories.encoded(factories.noise(60, 40), "JPEG").replace(b"\xff\xc0\0", mark)
    inside = factories.encoded(factories.noise(60, 40), "TIFF", compression="jpeg").replace(b"\xff\xc0\0", mark)

    for one in (data, inside):
        with pytest.raises(InvalidInput, match="arithmetically") as caught:
            decode(one, **LIMITS)
        assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("compression", [1, 2])
def test_large_bmp_of_runs_is_refused(compression: int) -> None:
    """One of plain pixels is read."""
    with pytest.raises(InputTooLarge, match="runs") as caught:
        decode(bmp((4000, 2501), b"\0\1", compression), **LARGE)
    assert caught.value.code == "image_too_large"

    assert decode(bmp((4000, 2501), bytes(4000 * 2501), 0), **LARGE).size == (4000, 2501)


def test_scans_are_counted_among_restart_markers() -> None:
    """As a camera writes those; what looks like a scan in a comment is none."""
    data = jpeg_with((0xFE, 200 * b"\xff\xda"))
    body = data.index(b"\xff\xda", 500)
    more = data[:body] + 101 * (b"\xff\xda\0\2" + 8 * b"ab\xff\xd0\xff\0\xff\x01") + data[-2:]

    assert not has_more_scans(data[:-2] + 1000 * b"\xff\xd0" + data[-2:], 100)
    assert has_more_scans(more, 100)
    assert not has_more_scans(more, 101)


def test_scans_in_a_tiff_are_limited_as_in_a_jpeg() -> None:
    """A thousand million pixels, strips that share them included."""
    assert decode(many_scans(more=0), **LARGE).size == (7000, 7000)
    assert decode(many_scans((64, 64), 7, more=90), **LARGE).size == (64, 448)

    with pytest.raises(InputTooLarge, match="JPEGs") as caught:
        decode(many_scans(more=20), **LARGE)
    assert caught.value.code == "too_many_scans"
    assert has_too_many_scans(b"\0\1".join(many_scans(more=20).rsplit(struct.pack("<H", STRIP_BYTES), 1)), (7000, 7000))


def test_webp_of_too_many_chunks_is_refused() -> None:
    """Those of its own included; an animation has one for each frame."""
    assert decode(webp_with(9_998), **LIMITS).tobytes() == factories.noise(60, 40).tobytes()

    with pytest.raises(InputTooLarge) as caught:
        decode(webp_with(9_999), **LIMITS)
    assert caught.value.code == "too_many_values"

    frames = [factories.noise(60, 40, seed=seed) for seed in range(200)]
    data = factories.encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data, **LIMITS).tobytes() == frames[0].tobytes()


def test_texts_are_not_copied_with_each_band() -> None:
    """32,000 of them, of a picture in 190 bands: three seconds."""
    picture, text = factories.noise(60, 40).convert("P"), PngImagePlugin.PngInfo()
    for number in range(100):
        text.add_text(f"k{number}", "v")
    plain, full = (
        factories.encoded(picture, "PNG", transparency=bytes(range(256)), pnginfo=one) for one in (None, text)
    )
    image = identify(full, **LIMITS)

    assert "k99" in image.info
    assert load(image).tobytes() == decode(plain, **LIMITS).tobytes()
    assert list(image.info) == ["transparency"]


def test_tiles_that_are_jpegs_are_read() -> None:
    """Each is one of its own, in its own place."""
    tile = factories.encoded(factories.noise(64, 64, "L"), "JPEG")
    places = [8 + index * len(tile) for index in range(6)]
    parts = (TILE_WIDTH, 64), (TILE_LENGTH, 64), (TILE_OFFSETS, places), (TILE_BYTES, 6 * [len(tile)])
    data = parted((180, 100), 7, *parts, blob=6 * tile)

    expected = np.tile(np.asarray(decode(tile, **LIMITS)), (2, 3, 1))[:100, :180]
    assert np.array_equal(np.asarray(decode(data, **LIMITS)), expected)
