"""Pillow's bicubic resize straight into patches, compiled: five to seven times as fast.

The compiled half is `_resize.c`; this half computes the weights and chooses which axis comes first. image.py checks
once whether the result equals that of the installed Pillow; if not, or if nothing was compiled, Pillow resizes.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from models import _resize
except ImportError:  # no compiler when this was installed
    _resize = None  # type: ignore[assignment]

BITS, HALF = 22, 15  # of a weight's fraction; of its lower half
SUPPORT = 2.0  # of the bicubic filter, in output pixels where it narrows, else in input pixels
A = -0.5  # its parameter

Axis = tuple[int, int, int, NDArray[np.int32], NDArray[np.int16]]


def is_compiled() -> bool:
    """Check whether the compiled half is available."""
    return _resize is not None


def can_resize(size: Sequence[int], resized: Sequence[int]) -> bool:
    """Check whether an image has a pixel for every tap of the filter."""
    return is_compiled() and all(axis(*lengths)[2] <= lengths[0] for lengths in zip(size, resized, strict=True))


def resize(pixels: Any, size: Sequence[int], resized: Sequence[int], patch_px: int) -> NDArray[np.uint8]:
    """Resize an image that `can_resize` accepts, and cut it into patches.

    Shapes: pixels, an Arrow array of (h * w, 4) uint8, RGB and an unused byte -> (P, 3 * patch_px ** 2).
    Raises: ValueError: the array is not of that size.
    Source: Pillow's libImaging/Resample.c; the vertical pass comes first if height
        shrinks by more than twice as much as width (Pillow 13).
    """
    (width, height), (new_width, new_height) = size, resized
    down_first = height > new_height and height - new_height > 2 * (width - new_width)
    patches = np.empty((new_width * new_height // patch_px**2, 3 * patch_px**2), np.uint8)
    _resize.resize(pixels, axis(width, new_width), axis(height, new_height), down_first, patch_px, patches)
    return patches


@lru_cache(maxsize=64)  # of 10 kB each, or 500 kB if thousands of pixels become hundreds
def axis(length: int, resized: int) -> Axis:
    """Compute where each output pixel's input begins, and its weights.

    Shapes: -> length, resized, taps, first (resized,), halves (resized, taps / 2, low and high, 2 taps)
    Source: Pillow's libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc, operation for operation.
    """
    scale = length / resized
    widened = max(scale, 1.0)
    support = SUPPORT * widened
    center = (np.arange(resized) + 0.5) * scale
    start = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), length)
    taps = int((end - start).max())
    taps += taps % 2
    first = np.maximum(np.minimum(start, length - taps), 0)
    position = first[:, None] + np.arange(taps)  # (resized, taps)
    weights = _bicubic((position - center[:, None] + 0.5) * (1.0 / widened))
    weights = np.where((position >= start[:, None]) & (position < end[:, None]), weights, 0.0)
    total = np.zeros(resized)
    for tap in range(taps):  # one after another, as Pillow adds them: a sum in pairs rounds differently
        total += weights[:, tap]
    weights /= total[:, None]
    whole = np.trunc(np.where(weights < 0, -0.5, 0.5) + weights * (1 << BITS)).astype(np.int64)
    halves = np.stack([whole & ((1 << HALF) - 1), whole >> HALF], axis=1)  # (resized, 2, taps)
    pairs = halves.reshape(resized, 2, taps // 2, 2).transpose(0, 2, 1, 3)
    return length, resized, taps, first.astype(np.int32), np.ascontiguousarray(pairs, np.int16)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
