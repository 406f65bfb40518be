"""From several prepared requests to the four tensors of one run: pad, stack, mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.image import ImagePatches
from models.spec import PADDING_ROW
from models.text import TextTokens


@dataclass(frozen=True, slots=True)
class Features:
    """One (image, text) pair, ready for the graph."""

    image: ImagePatches
    text: TextTokens


@dataclass(frozen=True, slots=True)
class Feeds:
    """The graph's inputs for a batch; a token that is masked out changes no answer."""

    input_ids: NDArray[np.int64]  # (B, L)
    patches: NDArray[np.uint8]  # (B, P, 3072)
    position_ids: NDArray[np.int64]  # (B, P)
    mask: NDArray[np.bool_]  # (B, L + 1 + P)

    @property
    def padding_ratio(self) -> float:
        """Share of tokens that are padding, 0 to 1."""
        return 1.0 - float(self.mask.mean())


class CollateBuffer:
    """Where one batch after another is collated: a large array made anew costs more than what is written into it."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of_shape(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array that holds what earlier ones left; it is valid until the next is asked for."""
        size = math.prod(shape)
        if size > self._bytes.size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].reshape(shape)


def collate(batch: Sequence[Features], buffer: CollateBuffer | None = None) -> Feeds:
    """Pad a batch to its longest text and its largest grid, in `buffer` if it is given.

    Shapes: L and P are the batch's largest; a batch of one is neither padded nor copied.
    """
    size = len(batch)
    if size == 1:
        text, image = batch[0].text.input_ids, batch[0].image
        mask = np.ones((1, len(text) + 1 + len(image.patches)), np.bool_)
        return Feeds(text[None], image.patches[None], image.position_ids[None], mask)
    length = max(len(features.text.input_ids) for features in batch)
    num_patches = max(len(features.image.patches) for features in batch)
    input_ids = np.zeros((size, length), np.int64)
    shape = (size, num_patches, batch[0].image.patches.shape[1])
    patches = buffer.of_shape(*shape) if buffer else np.zeros(shape, np.uint8)
    position_ids = np.full((size, num_patches), PADDING_ROW, np.int64)
    mask = np.zeros((size, length + 1 + num_patches), np.bool_)
    for row, features in enumerate(batch):
        text, image = features.text.input_ids, features.image
        input_ids[row, : len(text)] = text
        patches[row, : len(image.patches)] = image.patches
        position_ids[row, : len(image.patches)] = image.position_ids
        mask[row, : len(text)] = True
        mask[row, length : length + 1 + len(image.patches)] = True  # the image's cls token, then its patches
    return Feeds(input_ids, patches, position_ids, mask)
