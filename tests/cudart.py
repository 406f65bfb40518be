"""CUDA's runtime as ctypes sees it; the GPU's memory is the machine's."""

import ctypes
from typing import Any


class FakeCudart:
    """Pins, copies and waits as CUDA does, or fails with an error; says what it was asked."""

    def __init__(self, **failures: int) -> None:
        self.failures = failures  # error by function
        self.asked: list[tuple[Any, ...]] = []
        self.pinned: list[tuple[int, int]] = []
        self.streams: list[int] = []

    def cudaHostRegister(self, address: ctypes.c_void_p, size: ctypes.c_size_t, _: int) -> int:  # noqa: N802
        self.pinned.append((address.value or 0, size.value))
        return self._end("cudaHostRegister")

    def cudaGetLastError(self) -> int:  # noqa: N802
        return self._end("cudaGetLastError")

    def cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1  # non-blocking
        stream._obj.value = 1000 + len(self.streams)
        self.streams.append(stream._obj.value)
        return self._end("cudaStreamCreateWithFlags")

    def cudaMemcpyAsync(  # noqa: N802
        self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int, stream: ctypes.c_void_p
    ) -> int:
        ctypes.memmove(to, source, size.value)
        return self._end("cudaMemcpyAsync", kind, stream.value)

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:  # noqa: N802
        return self._end("cudaStreamSynchronize", stream.value)

    def _end(self, name: str, *about: Any) -> int:
        self.asked.append((name, *about))
        return self.failures.get(name, 0)
