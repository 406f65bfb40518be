"""server/gpu/kernels.cu, compiled for the CPU (emulated.cpp), and the operators that launch it."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.gpu import kernels

SOURCE = Path(__file__).with_name("emulated.cpp")


class Emulated:
    """The kernels, and a function that has cuLaunchKernel's signature."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("g++") is None:
            pytest.skip("there is no g++ to compile the kernels for the CPU")
        library = folder / "emulated.so"
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{kernels.SOURCE.parent}"]
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library)], check=True, timeout=120)
        self._library = ctypes.CDLL(str(library))
        self._library.function.restype = ctypes.c_void_p

    def address(self, name: str) -> int:
        """Return what stands for a kernel."""
        found = self._library.function(name.encode())
        assert found, name
        return int(found)

    @property
    def launch_address(self) -> int:
        """The address of what stands for cuLaunchKernel."""
        return int(ctypes.cast(self._library.launch, ctypes.c_void_p).value or 0)

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *given: np.ndarray | float) -> None:
        """Run a kernel on arrays and numbers."""
        values = [_value(one) for one in given]
        parameters = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        block = (threads, 1, 1)
        self._library.launch(ctypes.c_void_p(self.address(name)), *grid, *block, 0, None, parameters, None)


def _value(given: Any) -> Any:
    if isinstance(given, np.ndarray):
        return ctypes.c_void_p(given.ctypes.data)
    return ctypes.c_float(given) if isinstance(given, float) else ctypes.c_int(given)
