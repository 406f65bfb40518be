"""The libraries that a GPU needs besides the wheel: load them, or say which is missing.

If onnxruntime cannot load a provider, it logs that and goes on with the CPU. This server ends instead.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.errors import ArtifactError

DRIVER = "libcuda.so.1"  # comes with the driver, on the machine with the GPU
TENSORRT = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
CUDART, NVRTC = "libcudart.so.13", "libnvrtc.so.13"
SHARED = ("libonnxruntime_providers_shared.so",)
PROVIDERS = {name: f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")}
EXTRAS = {"cuda": "gpu", "tensorrt": "gpu,tensorrt"}
MAJOR, MINOR = 75, 76  # cuDeviceGetAttribute: compute capability
OLDEST_DRIVER = 13000  # cuDriverGetVersion, of CUDA 13.0

Load = Callable[[str], Any]


class ProviderError(ArtifactError):
    """A provider cannot run; the message says why."""


class MissingError(ProviderError):
    """A library, a driver or a GPU that the provider needs is missing; the message names it."""


def load(name: str) -> ctypes.CDLL:
    """Load a library with its symbols visible to others."""
    return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def require(provider: str, wheel: Path, load: Load = load) -> None:
    """Load the driver, TensorRT if the provider needs it, and the provider itself, from the wheel's folder.

    Raises: MissingError: one is missing; the message says which.
    """
    _load(DRIVER, provider, load, "it comes with the NVIDIA driver, which this machine or container lacks")
    advice = (  # onnxruntime looks in nvidia/ beside its own folder, then in the system's library folders
        f"pip install 'vilt-server[{EXTRAS[provider]}]' installs it; CUDA's libraries have to be in the same"
        " site-packages as onnxruntime"
    )
    names = [*SHARED, PROVIDERS["cuda"]]
    if provider == "tensorrt":
        names += [*TENSORRT, PROVIDERS["tensorrt"]]
    for name in names:
        found = (folder / name for folder in (wheel, *_folders("tensorrt_libs")))
        _load(str(next(filter(Path.exists, found), name)), provider, load, advice)


def tensorrt_version(libnvinfer: Any) -> str:
    """Return TensorRT's version as it writes it: 101601 for 10.16.1."""
    return str(libnvinfer.getInferLibVersion())


def gpu_name(driver: Any) -> str:
    """Return the first GPU's name and compute capability.

    Raises: MissingError: there is no GPU, or the driver is too old for the CUDA that the extras install.
    """
    device, text, value = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        raise MissingError("The NVIDIA driver is installed, but it finds no GPU.")
    driver.cuDriverGetVersion(ctypes.byref(value))
    if value.value < OLDEST_DRIVER:
        found = f"{value.value // 1000}.{value.value % 1000 // 10}"
        raise MissingError(f"The NVIDIA driver supports CUDA {found}, but 13 is needed: update it to 580 or later.")
    driver.cuDeviceGetName(text, len(text), device)
    return f"{text.value.decode()} {'.'.join(map(str, capability(driver)))}"


def capability(driver: Any) -> tuple[int, int]:
    """Return the first GPU's compute capability; there is one."""
    device, value, found = ctypes.c_int(), ctypes.c_int(), []
    driver.cuDeviceGet(ctypes.byref(device), 0)
    for attribute in (MAJOR, MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found.append(value.value)
    return found[0], found[1]


def require_nvrtc(packages: Path, load: Load = load) -> Any:
    """Load NVRTC, CUDA's compiler, and what it does not find by itself in the folder of Python's packages.

    Raises: MissingError: it is not there.
    """
    for builtins in packages.glob("nvidia/*/lib/libnvrtc-builtins.so.*"):
        load(str(builtins))
    advice = f"pip install 'vilt-server[{EXTRAS['cuda']}]' installs it"
    return _load(NVRTC, "cuda", load, advice)


def _load(name: str, provider: str, load: Load, advice: str) -> Any:
    try:
        return load(name)
    except OSError as error:
        missing = str(error).partition(":")[0]  # "libcublasLt.so.13: cannot open shared object file: ..."
        raise MissingError(f"Provider {provider} cannot run: {missing} cannot be loaded; {advice}.") from error


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
