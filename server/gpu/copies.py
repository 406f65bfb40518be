"""Pinned memory, and copies between it and a GPU that wait for no other copy and release the interpreter's lock.

onnxruntime's own copies hold that lock, for most of a millisecond if a batch is large. They use CUDA's legacy stream,
on which one copy waits for another: logits would wait for the next batch's images, and the event loop for both.
"""

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.gpu.libraries import ProviderError

log = logging.getLogger(__name__)

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
NON_BLOCKING = 1  # cudaStreamNonBlocking: the stream and the legacy one do not wait for each other
Pairs = Sequence[tuple[int, NDArray[Any]]]  # an address on the GPU, and a contiguous array that is as long


class Copies:
    """Copies between arrays and a GPU, with a stream for each direction; ctypes releases the interpreter's lock."""

    def __init__(self, cudart: Any) -> None:
        """Create the streams with CUDA's runtime library.

        Raises: ProviderError: CUDA cannot create them.
        """
        self._cudart = cudart
        self._up, self._down = self._stream(), self._stream()

    def to_gpu(self, pairs: Pairs) -> None:
        """Copy arrays to the GPU, and wait until they are there.

        Raises: ProviderError: CUDA cannot.
        """
        self._copy(HOST_TO_DEVICE, self._up, [(address, array.ctypes.data, array.nbytes) for address, array in pairs])

    def from_gpu(self, pairs: Pairs) -> None:
        """Fill arrays from the GPU, and wait until they are full.

        Raises: ProviderError: CUDA cannot.
        """
        self._copy(DEVICE_TO_HOST, self._down, [(array.ctypes.data, address, array.nbytes) for address, array in pairs])

    def _copy(self, kind: int, stream: ctypes.c_void_p, copies: Sequence[tuple[int, int, int]]) -> None:
        failed = 0
        for to, source, size in copies:
            failed = failed or self._cudart.cudaMemcpyAsync(
                ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, stream
            )
        # A copy that has begun must not outlive its arrays.
        failed = self._cudart.cudaStreamSynchronize(stream) or failed
        if failed:
            size = sum(size for _, _, size in copies)
            raise ProviderError(f"CUDA cannot copy {size:,} bytes to or from the GPU: error {failed}.")

    def _stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        failed = self._cudart.cudaStreamCreateWithFlags(ctypes.byref(stream), NON_BLOCKING)
        if failed:
            raise ProviderError(f"CUDA cannot create a stream for copies: error {failed}.")
        return stream


def pinned(cudart: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make an array in pinned memory, which the GPU accesses directly; in ordinary memory if it cannot be pinned."""
    array = np.zeros(shape, np.uint8)
    failed = cudart.cudaHostRegister(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0)
    if failed:
        cudart.cudaGetLastError()  # clear the error, or the next caller on this thread would take it for its own
        size_mb = array.nbytes / 1e6
        log.warning("CUDA cannot pin %.1f MB of memory (error %d): copies will take longer", size_mb, failed)
    return array
