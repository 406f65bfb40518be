from typing import Any

from numpy.typing import NDArray

from models.resize import Axis

def resize(pixels: Any, wide: Axis, high: Axis, down_first: bool, patch_px: int, patches: NDArray[Any]) -> None: ...
