"""Any picture to the reference's pixels; anything else to a sentence."""

import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from models.bounds import MAX_SCANS, REAL_SCANS
from models.errors import InputTooLarge, InvalidInput
from models.image import ImagePatches, decode, identify, load, to_patches
from models.spec import ViltSpec

SPEC = ViltSpec()
LIMITS = {"max_pixels": 50_000_000, "max_aspect_ratio": 20.0}
SIZES = [
    (640, 480),
    (480, 640),
    (384, 384),
    (500, 375),
    (1, 1),
    (40, 40),
    (1333, 800),
    (2000, 101),
    (101, 2000),
    (17, 300),
]
SRGB, LAB = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
SMOOTH = factories.noise(64, 48)


def pixels_of(image: ImagePatches) -> np.ndarray:
    """Put patches together again: (H, W, 3)."""
    rows, columns = image.grid
    patches = image.patches.reshape(rows, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4)
    return patches.reshape(rows * 32, columns * 32, 3)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_of_any_size_are_the_reference_s_pixels(size: tuple[int, int]) -> None:
    """Bit for bit: what the graph reads is what transformers' processor makes, before it normalises."""
    image = factories.noise(*size)
    reference = ViltImageProcessorPil(do_rescale=False, do_normalize=False)(image, return_tensors="np")

    ours = pixels_of(to_patches(image, SPEC))

    assert np.array_equal(ours, reference["pixel_values"][0].transpose(1, 2, 0))


@settings(max_examples=80, deadline=None)
@given(st.tuples(st.integers(1, 1_500), st.integers(1, 1_500)).filter(lambda size: max(size) <= 20 * min(size)))
def test_image_of_any_size_lies_within_the_grids_and_is_the_reference_s(size: tuple[int, int]) -> None:
    """As long as it is not too elongated: a reachable grid, its rows of the position table, the reference's pixels."""
    image = factories.noise(*size)
    reference = ViltImageProcessorPil(do_rescale=False, do_normalize=False)(image, return_tensors="np")

    ours = to_patches(image, SPEC)

    assert ours.grid in SPEC.grids
    assert ours.patches.shape == (len(ours.position_ids), SPEC.patch_values)
    assert ours.position_ids[0] == SPEC.first_position_row(ours.grid)
    assert np.array_equal(pixels_of(ours), reference["pixel_values"][0].transpose(1, 2, 0))


def test_position_ids_of_an_image_are_its_grid_s_rows() -> None:
    """One row a patch, in reading order."""
    image = to_patches(factories.noise(640, 480), SPEC)

    first = SPEC.first_position_row((12, 16))
    assert image.grid == (12, 16)
    assert image.position_ids.tolist() == list(range(first, first + 192))


MODES = {  # of the file, and how far its levels may lie from the picture's: palettes and JPEG lose some
    "RGB": ("PNG", 0),
    "RGBA": ("PNG", 0),
    "L": ("PNG", 0),
    "LA": ("PNG", 0),
    "F": ("TIFF", 0),
    "CMYK": ("TIFF", 0),
    "P": ("GIF", 20),
    "YCbCr": ("JPEG", 20),
    "LAB": ("TIFF", 5),
}


@pytest.mark.parametrize(("mode", "file_format", "levels"), [(mode, *rest) for mode, rest in MODES.items()], ids=MODES)
def test_decode_of_any_mode_shows_the_same_picture(mode: str, file_format: str, levels: int) -> None:
    """Every mode that a file can hold becomes RGB of the same size and the same colours, or grays."""
    picture = factories.noise(64, 48).convert("L").convert("RGB") if mode in {"L", "LA", "F"} else SMOOTH
    stored = ImageCms.profileToProfile(picture, SRGB, LAB, outputMode="LAB") if mode == "LAB" else picture.convert(mode)

    decoded = decode(factories.encoded(stored, file_format), **LIMITS)

    assert (decoded.mode, decoded.size) == ("RGB", (64, 48))
    assert np.abs(np.asarray(decoded, int) - np.asarray(picture, int)).mean() <= levels


@pytest.mark.parametrize(
    ("kind", "file_format", "transparency"),
    [(np.uint16, "PNG", {}), (np.uint16, "TIFF", {}), (np.int32, "TIFF", {}), (np.uint16, "PNG", {"transparency": 0})],
    ids=["png", "tiff", "32 bit tiff", "png with transparency"],
)
def test_decode_of_16_bit_gray_scales_it_to_8(kind: type, file_format: str, transparency: dict[str, int]) -> None:
    """Sixteen bits are scaled, not clipped to white; a transparent level is white."""
    gray = Image.fromarray(np.array([[0, 257, 128 * 257, 65535]] * 4, kind))

    decoded = np.asarray(decode(factories.encoded(gray, file_format, **transparency), **LIMITS))

    assert decoded[0, :, 0].tolist() == [255 if transparency else 0, 1, 128, 255]


def test_decode_of_black_and_white_gives_black_and_white() -> None:
    """One bit a pixel is 0 or 255."""
    picture = factories.noise(64, 48).convert("1")

    decoded = np.asarray(decode(factories.encoded(picture, "PNG"), **LIMITS))

    assert np.array_equal(decoded[..., 0] == 255, np.asarray(picture))
    assert set(np.unique(decoded)) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_decode_of_transparency_shows_white_behind_it(mode: str) -> None:
    """What is not painted is white, whatever colour hides beneath."""
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    data = (
        factories.encoded(Image.new("P", (8, 8), 0), "PNG", transparency=0)
        if mode == "P"
        else factories.encoded(image.convert(mode), "PNG")
    )

    assert np.asarray(decode(data, **LIMITS)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_of_any_exif_orientation_gives_the_upright_picture(orientation: int) -> None:
    """The eight ways to hold a camera give the same pixels."""
    upright = factories.noise(60, 40)

    decoded = decode(factories.turned(upright, orientation, "PNG"), **LIMITS)

    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_upright_picture_is_not_copied() -> None:
    """Of 40 megapixels that would be 160 MB more."""
    image = identify(factories.encoded(Image.new("RGB", (60, 40)), "PNG"), **LIMITS)

    assert load(image) is image


def test_decode_of_a_turned_jpeg_turns_it() -> None:
    """What a telephone held upright writes: a lying JPEG, and how to turn it."""
    exif = Image.Exif()
    exif[factories.ORIENTATION] = 6

    decoded = decode(factories.encoded(Image.new("RGB", (60, 40)), "JPEG", exif=exif), **LIMITS)

    assert decoded.size == (40, 60)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_decode_of_several_frames_takes_the_first(file_format: str) -> None:
    """An animation is its first picture."""
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    options = {"lossless": True} if file_format == "WEBP" else {}

    decoded = decode(factories.encoded(red, file_format, save_all=True, append_images=[blue], **options), **LIMITS)

    assert decoded.getpixel((16, 16)) == pytest.approx((255, 0, 0), abs=2)  # MPO is made of JPEGs


def png_of_size(width: int, height: int) -> bytes:
    """Write a PNG that begins as one of this size would, and then ends."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    begun = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9000) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + begun


JPEG = factories.encoded(factories.noise(64, 48), "JPEG")
PNG = factories.encoded(factories.noise(64, 48), "PNG")
BAD = {
    "empty": (b"", "empty_image"),
    "text": (b"hello", "invalid_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image"),
    "format not listed": (factories.encoded(factories.noise(8, 8), "PPM"), "invalid_image"),
    "icon": (factories.encoded(factories.noise(16, 16), "ICO"), "invalid_image"),
    "jpeg cut short": (JPEG[: len(JPEG) // 2], "invalid_image"),
    "png cut short": (PNG[: len(PNG) // 2], "invalid_image"),
    "header only": (png_of_size(64, 64), "invalid_image"),
    "50,000 x 50,000": (png_of_size(50_000, 50_000), "image_too_large"),
    "strip": (factories.encoded(Image.new("RGB", (5000, 1)), "PNG"), "image_too_elongated"),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD)
def test_decode_of_anything_else_raises_invalid_input(data: bytes, code: str) -> None:
    """A file that is no use is refused with its own code and a sentence."""
    with pytest.raises(InvalidInput) as caught:
        decode(data, **LIMITS)

    assert caught.value.code == code
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_decode_around_the_limit_of_the_sides_raises_only_beyond(excess: int, is_tall: bool) -> None:
    """Twenty to one, lying and standing."""
    size = (20 * 20 + excess, 20)
    data = factories.encoded(Image.new("L", size[::-1] if is_tall else size), "PNG")

    if excess > 0:
        with pytest.raises(InvalidInput, match="at most 20 times"):
            decode(data, **LIMITS)
    else:
        assert decode(data, **LIMITS).size == (size[::-1] if is_tall else size)


def test_decode_beyond_the_pixel_limit_raises_before_decoding() -> None:
    """The limit is exact, and holds for headers without a picture behind them."""
    decode(PNG, max_pixels=64 * 48, max_aspect_ratio=20)

    with pytest.raises(InputTooLarge):
        decode(PNG, max_pixels=64 * 48 - 1, max_aspect_ratio=20)


def test_decode_of_a_gif_whose_frame_is_beyond_the_limit_raises_before_it_is_made() -> None:
    """Pillow makes the background of a first frame while it reads the header: 86 bytes took 6.8 GB."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0)
    is_disposed = b"\x21\xf9\x04\x08\0\0\0\0"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\0\x3b"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputTooLarge):
        decode(screen + is_disposed + frame, **LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # of kilobytes


def jpeg_of_scans(count: int, *, hidden: int = 0) -> bytes:
    """Write a progressive JPEG whose last scan comes again and again, and a comment with what looks like more."""
    data = factories.encoded(SMOOTH, "JPEG", progressive=True)
    first, last = data.count(b"\xff\xda"), data.rindex(b"\xff\xda")
    assert first < count
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2 * hidden) + b"\xff\xda" * hidden
    return data[:2] + comment + data[2:-2] + data[last:-2] * (count - first) + data[-2:]


@pytest.mark.parametrize("hidden", [0, 500])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_decode_of_a_jpeg_around_the_limit_of_scans_raises_only_beyond(excess: int, hidden: int) -> None:
    """A scan takes a pass over the whole picture and 75 bytes: in 20 MB there is room for an hour of them."""
    data = jpeg_of_scans(MAX_SCANS + excess, hidden=hidden)

    if excess > 0:
        with pytest.raises(InputTooLarge, match="more than 100 scans"):
            decode(data, **LIMITS)
    else:
        assert decode(data, **LIMITS).size == SMOOTH.size


def test_decode_of_a_large_jpeg_of_many_scans_is_refused() -> None:
    """Each takes a pass over all of its pixels."""
    data = jpeg_of_scans(REAL_SCANS + 1)
    frame = data.index(b"\xff\xc2")
    large = data[: frame + 5] + struct.pack(">HH", 7000, 7000) + data[frame + 9 :]

    with pytest.raises(InputTooLarge, match="more than 20 scans"):
        decode(large, max_pixels=50_000_000, max_aspect_ratio=20.0)


def test_damaged_metadata_is_no_news(tmp_path: Path) -> None:
    """Pillow warns of it; in a server, these would be lines in the log that are not the log's."""
    cut_short = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 274, 3, 9, 2**31)
    (tmp_path / "image.jpg").write_bytes(factories.encoded(SMOOTH, "JPEG", exif=cut_short))
    code = """if True:
        import pathlib, sys
        from models.image import decode
        decode(pathlib.Path(sys.argv[1]).read_bytes(), max_pixels=10**7, max_aspect_ratio=20.0)
    """

    command = [sys.executable, "-c", code, tmp_path / "image.jpg"]
    ran = subprocess.run(command, capture_output=True, check=True, text=True)

    assert ran.stderr == ""


def test_decode_of_scans_behind_a_marker_that_is_none_counts_them() -> None:
    """A decoder that has lost its place looks for the next marker there, whatever length was said."""
    data = jpeg_of_scans(MAX_SCANS + 1)
    place = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))  # behind the first: up to there Pillow looks, too

    with pytest.raises(InputTooLarge):
        decode(data[:place] + b"\xff\x02\xff\xff" + data[place:], **LIMITS)


def scaled(data: bytes) -> Image.Image:
    return load(identify(data, **LIMITS), SPEC)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(4000, 3000), (3001, 4007), (1600, 1500), (6000, 320)], ids=str)
def test_scaled_decode_of_a_large_jpeg_reads_less_and_shows_the_same(size: tuple[int, int], orientation: int) -> None:
    """Twice as many pixels along each side as the model reads are left at least; the patches are nearly the same."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = factories.encoded(SMOOTH.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=95, exif=exif)
    exact, less = decode(data, **LIMITS), scaled(data)

    found, expected = to_patches(less, SPEC), to_patches(exact, SPEC)

    reads = SPEC.resized(*exact.size)
    assert found.grid == expected.grid
    assert all(now >= min(2 * read, whole) for now, read, whole in zip(less.size, reads, exact.size, strict=True))
    assert (less.width < exact.width) == all(whole >= 4 * read for read, whole in zip(reads, exact.size, strict=True))
    assert np.abs(found.patches.astype(int) - expected.patches).mean() < 1.0


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_scaled_decode_of_a_small_picture_or_of_no_jpeg_is_exact(file_format: str) -> None:
    """There is nothing to gain, or no way to."""
    size = (1000, 800) if file_format == "JPEG" else (2000, 1600)
    data = factories.encoded(SMOOTH.resize(size), file_format)

    assert scaled(data).size == size
    assert np.array_equal(to_patches(scaled(data), SPEC).patches, to_patches(decode(data, **LIMITS), SPEC).patches)


def test_scaled_decode_of_a_jpeg_cut_short_is_refused() -> None:
    """As an exact one is."""
    data = factories.encoded(SMOOTH.resize((3000, 2000)), "JPEG")

    with pytest.raises(InvalidInput):
        scaled(data[: len(data) // 2])
