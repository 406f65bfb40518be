"""JPEGs by libjpeg-turbo itself: Pillow's pixels, and Pillow's say on what is flawed."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import factories
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

import models.image
from models.errors import InputTooLarge, InvalidInput
from models.image import PLAIN_JPEG, PlainJpeg, _by_libjpeg, decode, decodes_as_pillow, identify

LIMITS = {"max_pixels": 1_000_000, "max_aspect_ratio": 20.0}
PICTURE = factories.noise(200, 100)
PLAIN = factories.encoded(PICTURE, "JPEG")
LYING = Image.Exif()
LYING[factories.ORIENTATION] = 6
KINDS: dict[str, tuple[dict[str, Any], type]] = {
    "4:4:4": ({"subsampling": "4:4:4"}, PlainJpeg),
    "4:2:2": ({"subsampling": "4:2:2"}, PlainJpeg),
    "4:2:0": ({"subsampling": "4:2:0"}, PlainJpeg),
    "progressive": ({"progressive": True}, PlainJpeg),
    "restarts": ({"restart_marker_blocks": 3}, PlainJpeg),
    "RGB": ({"keep_rgb": True}, JpegImageFile),
    "comment": ({"comment": b"\xff\xda\xff\xe1"}, PlainJpeg),
    "EXIF": ({"exif": LYING}, JpegImageFile),
}


def pillows(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)))


def with_segment(marker: int, content: bytes) -> bytes:
    """Put a segment behind the first."""
    return PLAIN[:20] + bytes((0xFF, marker)) + (2 + len(content)).to_bytes(2) + content + PLAIN[20:]


def of_sampling_441() -> bytes:
    """Turn a 4:1:1 picture of one unit, of blocks in the same order; simplejpeg has no name for what comes out."""
    data = simplejpeg.encode_jpeg(np.asarray(factories.noise(32, 8)), colorsubsampling="411")
    frame = data.index(b"\xff\xc0") + 5
    assert data[frame : frame + 4] == b"\0\x08\0\x20"
    assert data[frame + 6] == 0x41
    return data[:frame] + b"\0\x20\0\x08" + data[frame + 4 : frame + 6] + b"\x14" + data[frame + 7 :]


@pytest.mark.parametrize(("options", "kind"), KINDS.values(), ids=KINDS)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150))
def test_colours_of_any_size_are_pillows(options: dict[str, Any], kind: type, width: int, height: int) -> None:
    """Sides that are no multiple of a block, or of two where colours are coarser; Pillow has nothing left to decode."""
    data = factories.encoded(factories.noise(width, height), "JPEG", **options)

    header = Image.open(io.BytesIO(data), formats=(PLAIN_JPEG, "JPEG"))
    found = _by_libjpeg(header)

    assert type(header) is kind
    assert type(found) is Image.Image
    assert np.array_equal(np.asarray(found), pillows(data))


@pytest.mark.parametrize("sampling", ["440", "411"])
@pytest.mark.parametrize("size", [(8, 8), (67, 43), (200, 100)], ids=str)
def test_coarser_colours_than_pillow_writes_are_pillows(sampling: str, size: tuple[int, int]) -> None:
    """As cameras write them, and who turns their pictures without decoding."""
    data = simplejpeg.encode_jpeg(np.asarray(factories.noise(*size)), colorsubsampling=sampling)

    assert np.array_equal(np.asarray(decode(data, **LIMITS)), pillows(data))


def test_sampling_without_a_name_is_left_to_pillow() -> None:
    """It is as good a picture as others."""
    data = of_sampling_441()

    assert np.array_equal(np.asarray(decode(data, **LIMITS)), pillows(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_left_to_pillow(mode: str) -> None:
    """Gray, and what is printed."""
    image = identify(factories.encoded(PICTURE.convert(mode), "JPEG"), **LIMITS)

    assert type(image) is JpegImageFile
    assert _by_libjpeg(image) is image


FLAWS: dict[str, Callable[[bytes], bytes]] = {
    "bytes before a marker": lambda data: data[:-2] + b"\0\0" + data[-2:],
    "bytes in the header": lambda data: data[:2] + b"\0\0" + data[2:],
    "no end": lambda data: data[:-2],
    "more behind it": lambda data: data + b"\0" * 9,
    "a scan of noise": lambda data: data[:-200] + bytes(198) + data[-2:],
    "header only": lambda data: data[: data.index(b"\xff\xda")],
    "cut in a segment": lambda data: data[:30],
    "many segments": lambda data: data[:2] + b"\xff\xfe\0\x02" * 1000 + data[2:],
    "12 bits": lambda data: data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "two frames": lambda data: data[:2] + data[(at := data.index(b"\xff\xc0")) : at + 19] + data[2:],
}


FLAWS |= {  # segments that are too short for what they say they are
    f"{content} in {marker:X}": lambda data, marker=marker, content=content: (  # type: ignore[misc]
        with_segment(marker, content)
    )
    for marker, content in (
        (0xE0, b"JFIF"),
        (0xE0, b"JFIF\0\1"),
        (0xEE, b"Adobe"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    )
}


@pytest.mark.parametrize("flawed", FLAWS.values(), ids=FLAWS)
def test_what_is_flawed_is_what_pillow_makes_of_it(flawed: Callable[[bytes], bytes]) -> None:
    """It bears some flaws and refuses others; there is one answer, whoever decodes."""
    data = flawed(PLAIN)
    try:
        expected = pillows(data)
    except OSError:
        with pytest.raises(InvalidInput):
            decode(data, **LIMITS)
    else:
        assert np.array_equal(np.asarray(decode(data, **LIMITS)), expected)


def test_size_is_held_to_the_limit_before_anything_is_decoded() -> None:
    """As with any other format."""
    place = PLAIN.index(b"\xff\xc0") + 5
    huge = PLAIN[:place] + b"\xea\x60\xea\x60" + PLAIN[place + 4 :]

    with pytest.raises(InputTooLarge):
        identify(huge, **LIMITS)


@pytest.mark.parametrize("cut", [lambda data: data[:-2], lambda data: data[:700] + data[-2:]], ids=["end", "most"])
def test_what_is_clearly_cut_short_is_not_begun(cut: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow stops there, or makes do; libjpeg-turbo would decode all rows first."""
    assert decodes_as_pillow()
    begun: list[object] = []
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *of: begun.append(of))

    with contextlib.suppress(InvalidInput):
        decode(cut(factories.encoded(Image.new("RGB", (3000, 300)), "JPEG")), **LIMITS)

    assert not begun


def test_others_who_open_a_picture_find_pillows_plugins() -> None:
    """Ours is for those alone who ask for it by name."""
    assert type(Image.open(io.BytesIO(PLAIN))) is JpegImageFile


def test_another_size_than_was_held_to_the_limits_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should Pillow and libjpeg-turbo ever read another header of the same bytes."""
    image = Image.open(io.BytesIO(PLAIN))
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda _: (60_000, 60_000, "YCbCr", "420"))

    assert _by_libjpeg(image) is image


def test_pixels_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture lies in the memory that libjpeg-turbo wrote to, and keeps it."""
    pixels = np.full((100, 200, 4), 7, np.uint8)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pixels)

    decoded = decode(PLAIN, **LIMITS)
    pixels[:] = 9

    assert np.asarray(decoded).min() == 9


def test_a_pillow_that_decodes_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is built with another library rounds otherwise: then it decodes itself."""
    assert decodes_as_pillow()

    other = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *of: other(*of) ^ 1)
    assert not decodes_as_pillow.__wrapped__()
    monkeypatch.setattr(models.image, "decodes_as_pillow", lambda: False)
    assert np.array_equal(np.asarray(decode(PLAIN, **LIMITS)), pillows(PLAIN))
