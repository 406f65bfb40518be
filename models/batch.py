"""From several prepared requests to the four tensors of one run: pad, stack, mask."""

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


def extent(batch: Sequence[Features]) -> tuple[int, int, int]:
    """Return a batch's rows, its longest text in tokens, and its most patches."""
    length = max(len(features.text.input_ids) for features in batch)
    return len(batch), length, max(len(features.image.patches) for features in batch)


def collate(batch: Sequence[Features], into: Feeds | None = None) -> Feeds:
    """Pad a batch to its longest text and its largest grid or, given tensors to write to, to their shape.

    Patches that are masked out keep what is in those tensors: nothing reads them, and clearing them would write
    megabytes. A row of padding keeps its first token: attention over no token would give NaN.

    Shapes: B, L and P are the batch's largest, or those of `into`; a batch of one is neither padded nor copied.
    """
    if len(batch) == 1 and into is None:
        text, image = batch[0].text.input_ids, batch[0].image
        mask = np.ones((1, len(text) + 1 + len(image.patches)), np.bool_)
        return Feeds(text[None], image.patches[None], image.position_ids[None], mask)
    feeds = into or _made_for(batch)
    length = feeds.input_ids.shape[1]
    feeds.input_ids[:] = 0
    feeds.position_ids[:] = PADDING_ROW
    feeds.mask[:] = False
    feeds.mask[len(batch) :, 0] = True
    for row, features in enumerate(batch):
        text, image = features.text.input_ids, features.image
        feeds.input_ids[row, : len(text)] = text
        feeds.patches[row, : len(image.patches)] = image.patches
        feeds.position_ids[row, : len(image.patches)] = image.position_ids
        feeds.mask[row, : len(text)] = True
        feeds.mask[row, length : length + 1 + len(image.patches)] = True  # the image's cls token, then its patches
    return feeds


def _made_for(batch: Sequence[Features]) -> Feeds:
    rows, length, num_patches = extent(batch)
    is_padded = any(len(features.image.patches) < num_patches for features in batch)
    make = np.zeros if is_padded else np.empty  # always the same bytes, in padding too
    return Feeds(
        np.empty((rows, length), np.int64),
        make((rows, num_patches, batch[0].image.patches.shape[1]), np.uint8),
        np.empty((rows, num_patches), np.int64),
        np.empty((rows, length + 1 + num_patches), np.bool_),
    )
