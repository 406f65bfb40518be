"""Memory that is pinned or not, and copies, with a runtime of CUDA's that has no GPU."""

import logging

import numpy as np
import pytest
from cudart import FakeCudart

from server.gpu.copies import DEVICE_TO_HOST, HOST_TO_DEVICE, Copies, pinned
from server.gpu.libraries import ProviderError


def test_memory_is_pinned_where_the_array_is() -> None:
    """All of it."""
    cudart = FakeCudart()

    array = pinned(cudart, (3, 5))

    assert cudart.pinned == [(array.ctypes.data, 15)]
    assert array.dtype == np.uint8


def test_memory_that_cannot_be_pinned_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Copies are slower, and right; nobody else on the thread is given the error."""
    cudart = FakeCudart(cudaHostRegister=2)

    with caplog.at_level(logging.WARNING):
        array = pinned(cudart, (2, 500_000))

    assert array.shape == (2, 500_000)
    assert "CUDA cannot pin 1.0 MB of memory (error 2)" in caplog.text
    assert cudart.asked[-1] == ("cudaGetLastError",)


def test_copies_are_whole_and_waited_for_on_a_stream_of_their_direction() -> None:
    """Neither is CUDA's legacy stream, on which one copy waits for another."""
    cudart = FakeCudart()
    copies = Copies(cudart)
    up, down = cudart.streams
    first, second, device = np.arange(6).reshape(2, 3), np.ones(4, np.uint8), np.zeros((2, 3), np.int64)
    on_device, back = np.zeros(4, np.uint8), np.empty((2, 3), np.int64)
    cudart.asked.clear()

    copies.to_gpu([(device.ctypes.data, first), (on_device.ctypes.data, second)])
    copies.from_gpu([(device.ctypes.data, back)])

    assert device.tolist() == first.tolist() == back.tolist()
    assert on_device.tolist() == second.tolist()
    assert up != down
    assert cudart.asked == [
        ("cudaMemcpyAsync", HOST_TO_DEVICE, up),
        ("cudaMemcpyAsync", HOST_TO_DEVICE, up),
        ("cudaStreamSynchronize", up),
        ("cudaMemcpyAsync", DEVICE_TO_HOST, down),
        ("cudaStreamSynchronize", down),
    ]


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_copy_that_fails_is_not_passed_over(function: str) -> None:
    """And what was begun of it is waited for: it may not write to memory that is freed by then."""
    cudart = FakeCudart(**{function: 700})
    copies, array = Copies(cudart), np.zeros(6, np.int64)

    for copy in (copies.to_gpu, copies.from_gpu):
        with pytest.raises(ProviderError, match=r"cannot copy 48 bytes .* error 700"):
            copy([(array.ctypes.data, array)])
        assert cudart.asked[-1][0] == "cudaStreamSynchronize"


def test_streams_that_cannot_be_made_end_the_start() -> None:
    """With a sentence."""
    with pytest.raises(ProviderError, match="cannot create a stream"):
        Copies(FakeCudart(cudaStreamCreateWithFlags=2))
