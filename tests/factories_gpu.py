"""Batches of any shape, for what pads them."""

import numpy as np

from models.batch import Features, Feeds, collate
from models.image import ImagePatches
from models.spec import ViltSpec
from models.text import TextTokens


def random_feeds(spec: ViltSpec, *, seed: int, batch: int, vocabulary: int = 30) -> Feeds:
    """Draw texts and grids of every size, and put them together as the server does."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(batch):
        grid = spec.grids[rng.integers(len(spec.grids))]
        count, first = grid[0] * grid[1], spec.first_position_row(grid)
        patches = rng.integers(0, 256, (count, spec.patch_values), dtype=np.uint8)
        image = ImagePatches(patches, np.arange(first, first + count, dtype=np.int64), grid)
        length = rng.integers(2, spec.max_text_tokens + 1)
        rows.append(Features(image, TextTokens(rng.integers(0, vocabulary, length, dtype=np.int64), truncated=False)))
    return collate(rows)
