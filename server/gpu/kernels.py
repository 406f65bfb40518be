"""Compile kernels.cu for the GPU at hand, load it, and make its operators known to onnxruntime.

Sources: NVRTC; CUDA Driver API, Module Management; onnxruntime.ai, Custom operators.
"""

import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from server.gpu.libraries import MissingError, ProviderError, capability
from server.gpu.options import CUDA

SOURCE = Path(__file__).with_name("kernels.cu")
OLDEST = (8, 0)  # compute capability: its copies from global to shared memory
INSTEAD = "export it without --kernels"


def operators(driver: Any, nvrtc: Any) -> Path:
    """Return the library of our operators, for sessions to register; its kernels are loaded.

    The calling thread has used CUDA before.

    Raises: MissingError: the library was not built, or the GPU is too old; ProviderError: NVRTC cannot compile the
        kernels, or CUDA cannot load them.
    """
    spec = importlib.util.find_spec("server.gpu._operators")
    if spec is None or spec.origin is None:
        raise MissingError(
            "The artifact has kernels, whose operators were not built: install a C compiler, then vilt-server once more"
            f" (--force-reinstall --no-deps), or {INSTEAD}."
        )
    if (found := capability(driver)) < OLDEST:
        had = ".".join(map(str, found))
        raise MissingError(f"The artifact's kernels need compute capability 8.0, and this GPU has {had}: {INSTEAD}.")
    library: Any = importlib.import_module(spec.name)
    module, kernels = ctypes.c_void_p(), []
    failed = driver.cuModuleLoadData(ctypes.byref(module), compiled(nvrtc, found))
    for name in library.KERNELS:
        kernel = ctypes.c_void_p()
        failed = failed or driver.cuModuleGetFunction(ctypes.byref(kernel), module, name.encode())
        kernels.append(kernel.value or 0)
    if failed:
        raise ProviderError(f"CUDA cannot load {SOURCE.name}: error {failed}; {INSTEAD}.")
    library.use(CUDA, ctypes.cast(driver.cuLaunchKernel, ctypes.c_void_p).value, tuple(kernels))
    return Path(spec.origin)


def compiled(nvrtc: Any, gpu: tuple[int, int]) -> bytes:
    """Compile the kernels for a compute capability.

    Raises: ProviderError: NVRTC cannot; the message has its first complaint.
    """
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [b"--std=c++17", f"--gpu-architecture=sm_{gpu[0]}{gpu[1]}".encode()]
    source = SOURCE.read_bytes(), SOURCE.name.encode()
    failed = (
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), *source, 0, None, None)
        or nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        or nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    )
    code = ctypes.create_string_buffer(size.value)
    failed = failed or nvrtc.nvrtcGetCUBIN(program, code)
    if failed:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(max(size.value, 1))
        nvrtc.nvrtcGetProgramLog(program, text)
        reason = next((line for line in text.value.decode().splitlines() if "error" in line), f"error {failed}")
        raise ProviderError(
            f"NVRTC cannot compile {SOURCE.name} for compute capability {gpu[0]}.{gpu[1]}: {reason.rstrip('.')};"
            f" {INSTEAD}."
        )
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw
