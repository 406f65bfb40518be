"""What the onnxruntime-gpu wheel that we pin is linked with, and that all else names the same versions."""

import ctypes
import re
import zipfile
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from models.spec import ViltSpec
from server.gpu import kernels, libraries, options
from server.gpu.buckets import profiles_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@cache
def strings(wheel: zipfile.ZipFile, provider: str) -> bytes:
    return wheel.read(f"onnxruntime/capi/{libraries.PROVIDERS[provider]}")


def major(wheel: zipfile.ZipFile, library: str) -> int:
    """Find which major version of a library TensorRT's provider is linked with, which needs all three of NVIDIA's."""
    found = set(re.findall(rb"\0lib" + library.encode() + rb"\.so\.(\d+)\0", strings(wheel, "tensorrt")))
    assert len(found) == 1, (library, found)
    return int(found.pop())


def test_tensorrt_extra_is_the_version_that_the_wheel_is_linked_with(
    wheel: zipfile.ZipFile, extras: dict[str, list[str]]
) -> None:
    """The newest TensorRT may be another: it would install, and not load."""
    version, cuda = major(wheel, "nvinfer"), major(wheel, "cudart")
    (wanted,) = (Requirement(text) for text in extras["tensorrt"])

    assert wanted.name == f"tensorrt-cu{cuda}-libs"
    assert f"{version}.16.1" in wanted.specifier
    assert f"{version + 1}.0.0" not in wanted.specifier
    assert f"{version - 1}.9.0" not in wanted.specifier


def test_cuda_and_cudnn_come_with_the_wheel_that_needs_them(
    wheel: zipfile.ZipFile, needs: dict[str, str], extras: dict[str, list[str]]
) -> None:
    """By its own extras, in the versions that it is linked with."""
    (pinned,) = (Requirement(text) for text in extras["gpu"])
    cuda, cudnn = major(wheel, "cudart"), major(wheel, "cudnn")

    assert pinned.extras == {"cuda", "cudnn"}
    assert needs["nvidia-cuda-runtime"] == str(cuda)
    assert needs[f"nvidia-cudnn-cu{cuda}"] == str(cudnn)


def test_server_loads_the_libraries_by_the_names_that_the_wheel_asks_for(wheel: zipfile.ZipFile) -> None:
    """Or it would say that one is missing which nobody needs."""
    assert f"libcudart.so.{major(wheel, 'cudart')}" == libraries.CUDART
    assert libraries.CUDART.encode() in strings(wheel, "cuda")
    for name in libraries.TENSORRT:
        assert name.endswith(f".so.{major(wheel, 'nvinfer')}")
    for name in (*libraries.SHARED, *libraries.PROVIDERS.values()):
        assert f"onnxruntime/capi/{name}" in wheel.namelist()


def test_providers_know_every_option_that_they_are_given(wheel: zipfile.ZipFile) -> None:
    """A session with one that is misspelt does not start."""
    key = options.EngineKey(gpu="", tensorrt="", onnxruntime="", graph="", profile=profiles_of(ViltSpec(), 2)[0])

    for provider, given in {"cuda": options.cuda(), "tensorrt": options.tensorrt(key, Path("/cache"), 3072)}.items():
        for name in given:
            assert name.encode() in strings(wheel, provider), name


def test_image_for_gpus_installs_the_extra_on_the_same_cuda(wheel: zipfile.ZipFile) -> None:
    """If it starts from NVIDIA's image at all, from the same major version."""
    path = ROOT / "Dockerfile"
    text = path.read_text() if path.exists() else ""
    if "gpu" not in text:
        pytest.skip("the Dockerfile has no stage for GPUs")
    assert re.search(r"\[gpu(,tensorrt)?\]", text)
    for version in re.findall(r"nvidia/cuda:(\d+)", text):
        assert int(version) == major(wheel, "cudart")


def test_kernels_are_compiled_by_the_nvrtc_that_comes_with_the_wheel(packages: Path) -> None:
    """For every GPU that they are for; none of them has to be here."""
    folder = next(packages.glob("nvidia/*/lib"))

    def load(name: str) -> ctypes.CDLL:
        return libraries.load(name if "/" in name else str(folder / name))

    nvrtc = libraries.require_nvrtc(packages, load)

    for capability in (kernels.OLDEST, (8, 9), (9, 0), (10, 0), (12, 0)):
        assert kernels.compiled(nvrtc, capability).startswith(b"\x7fELF"), capability
