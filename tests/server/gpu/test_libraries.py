"""What is said where a GPU, a driver or a library is missing."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.gpu import libraries
from server.gpu.libraries import MissingError, ProviderError

ROOT = Path(__file__).parents[3]


def lacking(missing: str) -> tuple[Callable[[str], None], list[str]]:
    """A loader of libraries in a system that has all but one."""
    loaded: list[str] = []

    def load(name: str) -> None:
        if missing in name:
            raise OSError(f"{missing}: cannot open shared object file: No such file or directory")
        loaded.append(Path(name).name)

    return load, loaded


@pytest.mark.parametrize(
    ("provider", "missing", "advice"),
    [
        ("cuda", "libcuda.so.1", "NVIDIA driver"),
        ("cuda", "libonnxruntime_providers_cuda.so", r"vilt-server\[gpu\]"),
        ("cuda", "libonnxruntime_providers_cuda.so", "in the same site-packages as onnxruntime"),
        ("tensorrt", "libnvinfer.so.10", r"vilt-server\[gpu,tensorrt\]"),
        ("tensorrt", "libnvonnxparser.so.10", r"vilt-server\[gpu,tensorrt\]"),
    ],
)
def test_missing_library_is_named_with_what_brings_it(provider: str, missing: str, advice: str) -> None:
    """One sentence, whichever it is."""
    load, _ = lacking(missing)

    with pytest.raises(ProviderError, match=f"{provider} cannot run: {missing} cannot be loaded; .*{advice}"):
        libraries.require(provider, Path("/wheel"), load)


def test_cuda_needs_nothing_of_tensorrt() -> None:
    """And TensorRT is loaded before the provider that is linked with it."""
    load, loaded = lacking("nothing")
    libraries.require("cuda", Path("/wheel"), load)
    assert not any("nv" in name or "tensorrt" in name for name in loaded)

    libraries.require("tensorrt", Path("/wheel"), load)
    assert loaded.index("libnvinfer.so.10") < loaded.index("libonnxruntime_providers_tensorrt.so")


class Driver:
    """A driver as ctypes sees it, of some version, with one GPU or none."""

    def __init__(self, *, has_gpu: bool = True, version: int = 13000) -> None:
        self._has_gpu, self._version = has_gpu, version

    def cuInit(self, _: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, _: int) -> int:  # noqa: N802
        device._obj.value = 5
        return 0 if self._has_gpu else 100

    def cuDriverGetVersion(self, value: Any) -> int:  # noqa: N802
        value._obj.value = self._version
        return 0

    def cuDeviceGetName(self, text: Any, _: int, device: ctypes.c_int) -> int:  # noqa: N802
        assert device.value == 5
        text.value = b"NVIDIA H200"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_gpu_is_named_with_its_compute_capability() -> None:
    """An engine built for one is not for another."""
    assert libraries.gpu_name(Driver()) == "NVIDIA H200 9.0"


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [(Driver(has_gpu=False), "finds no GPU"), (Driver(version=12080), r"supports CUDA 12\.8, .* update it to 580")],
    ids=["no GPU", "old"],
)
def test_driver_that_will_not_do_is_refused_before_onnxruntime_fails(driver: Driver, sentence: str) -> None:
    """Whose sentences are about options."""
    with pytest.raises(MissingError, match=sentence):
        libraries.gpu_name(driver)


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="a driver for GPUs is here: the server may serve")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_server_without_a_gpu_refuses_to_start_and_says_why(provider: str, half: Path, tmp_path: Path) -> None:
    """It never serves from the CPU instead; a wheel for CPUs lacks the provider, one for GPUs the driver."""
    command = [sys.executable, "-m", "server", "--model", str(half), "--provider", provider, "--port", "0"]
    flags = ["--precision", "fp16", "--cache-dir", str(tmp_path)]

    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)

    assert done.returncode == 1
    assert "has no" in done.stderr or "libcuda.so.1" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("vilt-serve: ")
    assert "Traceback" not in done.stderr
