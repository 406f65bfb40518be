"""The libraries that a GPU needs beside the wheel: loaded here, or named here if they are missing.

onnxruntime goes on with the CPU where it cannot load a provider, and says so in a log. We do not go on.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError

DRIVER = "libcuda.so.1"  # comes with the driver, on the machine with the GPU
TENSORRT = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
CUDART = "libcudart.so.13"
SHARED = ("libonnxruntime_providers_shared.so",)
PROVIDERS = {name: f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")}
EXTRAS = {"cuda": "gpu", "tensorrt": "gpu,tensorrt"}
MAJOR, MINOR = 75, 76  # cuDeviceGetAttribute: compute capability
HOST_TO_DEVICE = 1  # cudaMemcpyKind
OLDEST_DRIVER = 13000  # cuDriverGetVersion, of CUDA 13.0

Load = Callable[[str], Any]


class ProviderError(ArtifactError):
    """A provider cannot run; the message says why."""


class MissingError(ProviderError):
    """A library, a driver or a GPU that it needs is not here; the message names it."""


def load(name: str) -> ctypes.CDLL:
    """Load a library for all to see."""
    return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def require(provider: str, wheel: Path, load: Load = load) -> None:
    """Load the driver, TensorRT if it is asked for, and the provider itself, from the folder where the wheel has it.

    Raises: MissingError: one is missing; the message says which.
    """
    _load(DRIVER, provider, load, "it comes with the NVIDIA driver, which this machine or container lacks")
    advice = f"pip install 'vilt-server[{EXTRAS[provider]}]' brings it"
    names = [*SHARED, PROVIDERS["cuda"]]
    if provider == "tensorrt":
        names += [*TENSORRT, PROVIDERS["tensorrt"]]
    for name in names:
        found = (folder / name for folder in (wheel, *_folders("tensorrt_libs")))
        _load(str(next(filter(Path.exists, found), name)), provider, load, advice)


def tensorrt_version(libnvinfer: Any) -> str:
    """Ask TensorRT which version it is, as it writes it: 101601 for 10.16.1."""
    return str(libnvinfer.getInferLibVersion())


def gpu_name(driver: Any) -> str:
    """Ask the driver for the first GPU's name and compute capability.

    Raises: MissingError: it has none, or is too old for the CUDA that the extras bring.
    """
    device, text, value = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        raise MissingError("The NVIDIA driver is here, but it finds no GPU.")
    driver.cuDriverGetVersion(ctypes.byref(value))
    if value.value < OLDEST_DRIVER:
        found = f"{value.value // 1000}.{value.value % 1000 // 10}"
        raise MissingError(f"The NVIDIA driver knows CUDA {found}, but 13 is needed: update it to 580 or later.")
    driver.cuDeviceGetName(text, len(text), device)
    numbers = []
    for attribute in (MAJOR, MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(str(value.value))
    return f"{text.value.decode()} {'.'.join(numbers)}"


def pinned(cudart: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make an array in memory that the GPU copies from without a detour.

    Raises: ProviderError: the system gives no such memory.
    """
    array = np.zeros(shape, np.uint8)
    failed = cudart.cudaHostRegister(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0)
    if failed:
        raise ProviderError(f"CUDA cannot pin {array.nbytes / 1e6:.0f} MB of memory: its error {failed}.")
    return array


def copy_to_gpu(cudart: Any, address: int, array: NDArray[Any]) -> None:
    """Copy an array to an address on the GPU, and wait until it is there; other threads of Python go on meanwhile.

    onnxruntime's own copy holds the interpreter's lock, for most of a millisecond where a batch is large.

    Raises: ProviderError: CUDA cannot.
    """
    to, source = ctypes.c_void_p(address), ctypes.c_void_p(array.ctypes.data)
    failed = cudart.cudaMemcpy(to, source, ctypes.c_size_t(array.nbytes), HOST_TO_DEVICE)
    failed = failed or cudart.cudaStreamSynchronize(None)  # memory that is not pinned may still be on its way
    if failed:
        raise ProviderError(f"CUDA cannot copy {array.nbytes:,} bytes to the GPU: its error {failed}.")


def _load(name: str, provider: str, load: Load, advice: str) -> None:
    try:
        load(name)
    except OSError as error:
        missing = str(error).partition(":")[0]  # "libcublasLt.so.13: cannot open shared object file: ..."
        raise MissingError(f"Provider {provider} cannot run: {missing} cannot be loaded; {advice}.") from error


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
