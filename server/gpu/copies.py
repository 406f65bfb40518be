"""Memory that a GPU copies from and to without a detour, and copies that wait for no other and let Python go on.

onnxruntime's own hold the interpreter's lock, for most of a millisecond where a batch is large, and use CUDA's legacy
stream, on which one waits for another: logits would wait for the next batch's pictures, and the event loop for both.
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
    """Copies between arrays and a GPU, on a stream for each direction; ctypes lets other threads of Python go on."""

    def __init__(self, cudart: Any) -> None:
        """Take CUDA's runtime library.

        Raises: ProviderError: CUDA makes no streams.
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
        failed = self._cudart.cudaStreamSynchronize(stream) or failed  # what was begun may not outlive its arrays
        if failed:
            size = sum(size for _, _, size in copies)
            raise ProviderError(f"CUDA cannot copy {size:,} bytes to or from the GPU: its error {failed}.")

    def _stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        failed = self._cudart.cudaStreamCreateWithFlags(ctypes.byref(stream), NON_BLOCKING)
        if failed:
            raise ProviderError(f"CUDA makes no stream to copy on: its error {failed}.")
        return stream


def pinned(cudart: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make an array in memory that the GPU copies from and to without a detour, if the system gives such memory."""
    array = np.zeros(shape, np.uint8)
    failed = cudart.cudaHostRegister(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0)
    if failed:
        cudart.cudaGetLastError()  # or whoever asks next on this thread takes the error for its own
        size_mb = array.nbytes / 1e6
        log.warning("CUDA cannot pin %.1f MB of memory (its error %d): copies will take longer", size_mb, failed)
    return array
