"""Our own resize is Pillow's, bit for bit, and steps aside where it is not."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from setuptools import Distribution, Extension

import models.image
from models import resize as own
from models.image import to_patches
from models.spec import ViltSpec

SOURCE = Path(own.__file__).with_name("_resize.c")
HEADER = Path(sysconfig.get_path("include"), "Python.h")
SIZES = [(640, 480), (480, 640), (1333, 800), (2500, 1800), (200, 1500), (3, 2), (33, 620)]
pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and HEADER.exists()), reason="needs gcc and Python's headers, with which it is compiled"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Compile it as for a CPU without AVX2."""
    folder = tmp_path_factory.mktemp("plain")
    extension = Extension("_resize", [str(SOURCE)], define_macros=[("PLAIN", None)])
    command = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    spec = importlib.util.spec_from_file_location("_resize", command.get_ext_fullpath("_resize"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(image: Image.Image, width: int, height: int, side: int = 32) -> None:
    """Compare with Pillow, if there are pixels enough for the filter."""
    if not own.can_resize(image.size, (width, height)):
        assert min(image.size) < 30
        return
    _, pixels = image.__arrow_c_array__()

    found = own.resize(pixels, image.size, (width, height), side)

    rows = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    expected = rows.reshape(height // side, side, width // side, side, 3).transpose(0, 2, 1, 3, 4)
    assert np.array_equal(found, expected.reshape(found.shape))


EDGES = st.integers(1, 700)
PATCHES = st.integers(1, 20)


@settings(max_examples=100, deadline=None)
@given(EDGES, EDGES, PATCHES, PATCHES)
def test_resize_of_any_size_to_any_grid_is_pillows(width: int, height: int, columns: int, rows: int) -> None:
    """Wider, narrower, either axis first, sides that are no multiple of what is done at once."""
    check(factories.noise(width, height), 32 * columns, 32 * rows)


@pytest.mark.parametrize("side", [4, 8, 12, 16, 48])
def test_resize_into_patches_of_any_side_is_pillows(side: int) -> None:
    """Also where a patch's row is no multiple of what is cut at once."""
    check(factories.noise(640, 480), 10 * side, 7 * side, side)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resize_without_avx2_is_pillows(size: tuple[int, int], plain: ModuleType) -> None:
    """The same file compiled as for another CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "_resize", plain)
        check(factories.noise(*size), 96, 160)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_without_the_compiled_half_are_the_same(size: tuple[int, int]) -> None:
    """An install without a compiler answers the same."""
    image = factories.noise(*size)
    compiled = to_patches(image, ViltSpec())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.image, "resizes_as_pillow", lambda: False)
        pillows = to_patches(image, ViltSpec())

    assert np.array_equal(compiled.patches, pillows.patches)


def test_a_pillow_that_resizes_otherwise_is_noticed() -> None:
    """A later Pillow may round otherwise: then it resizes itself."""
    assert models.image.resizes_as_pillow()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.image, "_pillows", lambda *of: models.image._own(*of) ^ 1)
        assert not models.image.resizes_as_pillow.__wrapped__()


def test_pictures_that_do_not_fit_are_refused() -> None:
    """Nothing is read or written out of bounds."""
    _, pixels = factories.noise(64, 64).__arrow_c_array__()

    for size, resized, side in (((64, 65), (32, 32), 32), ((64, 64), (32, 32), 24), ((64, 64), (32, 48), 32)):
        with pytest.raises(ValueError, match="fit"):
            own.resize(pixels, size, resized, side)
    with pytest.raises(ValueError, match="incorrect name"):
        own.resize(factories.noise(64, 64).__arrow_c_schema__(), (64, 64), (32, 32), 32)
