"""What prevents the kernels from being compiled and loaded, and that nothing else does."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from server.gpu import kernels
from server.gpu.libraries import MissingError, ProviderError

operators: Any = pytest.importorskip("server.gpu._operators", reason="it was installed without a C compiler")


class Cuda:
    """The driver, and NVRTC, as ctypes sees them."""

    def __init__(self, *, capability: tuple[int, int] = (9, 0), loads: bool = True, compiles: bool = True) -> None:
        self._capability, self._loads, self._compiles = capability, loads, compiles
        self.cuLaunchKernel = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
        self.loaded, self.options = b"", []

    def cuDeviceGet(self, _: Any, __: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _: Any) -> int:  # noqa: N802
        value._obj.value = self._capability[attribute - 75]
        return 0

    def cuModuleLoadData(self, _: Any, code: bytes) -> int:  # noqa: N802
        self.loaded = code
        return 0 if self._loads else 209

    def cuModuleGetFunction(self, kernel: Any, _: Any, name: bytes) -> int:  # noqa: N802
        kernel._obj.value = 1 + operators.KERNELS.index(name.decode())
        return 0

    def nvrtcCreateProgram(self, _: Any, source: bytes, *__: Any) -> int:  # noqa: N802
        assert source == kernels.SOURCE.read_bytes()
        return 0

    def nvrtcCompileProgram(self, _: Any, count: int, options: Any) -> int:  # noqa: N802
        self.options = list(options)[:count]
        return 0 if self._compiles else 6

    def nvrtcGetProgramLogSize(self, _: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = 90
        return 0

    def nvrtcGetProgramLog(self, _: Any, text: Any) -> int:  # noqa: N802
        text.value = b"kernels.cu(1): warning: odd\nkernels.cu(1): error: what is that?\nmore"
        return 0

    def nvrtcGetCUBINSize(self, _: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = 4
        return 0

    def nvrtcGetCUBIN(self, _: Any, code: Any) -> int:  # noqa: N802
        code.raw = b"\0ELF"
        return 0

    def nvrtcDestroyProgram(self, _: Any) -> int:  # noqa: N802
        return 0


def test_kernels_are_compiled_for_the_gpu_at_hand_and_loaded() -> None:
    """Once for a process; sessions register the library that then knows them."""
    cuda = Cuda()
    try:
        assert kernels.operators(cuda, cuda) == Path(operators.__file__)
    finally:
        operators.use("", 0, (0, 0, 0, 0))

    assert b"--gpu-architecture=sm_90" in cuda.options
    assert cuda.loaded == b"\0ELF"


@pytest.mark.parametrize(
    ("cuda", "kind", "sentence"),
    [
        (Cuda(capability=(7, 5)), MissingError, r"need compute capability 8\.0, and this GPU has 7\.5"),
        (Cuda(loads=False), ProviderError, r"CUDA cannot load kernels\.cu: error 209"),
        (
            Cuda(compiles=False),
            ProviderError,
            r"NVRTC cannot compile kernels\.cu for .* 9\.0: kernels\.cu\(1\): error: what is that\?; export it without",
        ),
    ],
    ids=["old", "unloadable", "wrong"],
)
def test_what_prevents_the_kernels_is_said_before_a_session_opens(cuda: Cuda, kind: type, sentence: str) -> None:
    """In one sentence."""
    with pytest.raises(kind, match=sentence):
        kernels.operators(cuda, cuda)


def test_operators_that_were_not_built_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their absence is otherwise an unknown operator of a graph."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(MissingError, match="were not built: install a C compiler"):
        kernels.operators(Cuda(), Cuda())
