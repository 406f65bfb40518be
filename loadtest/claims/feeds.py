"""The inputs of every design, drawn from one seed: pixels, words, boxes and scores.

With random weights a detector would find nothing, or everything. Non-maximum suppression takes longer the more boxes it
compares, so boxes and scores are not those of the graphs but a fixed set:
    - 60 objects lie anywhere in the picture, 16 to 600 px large, log-uniform.
    - Every proposal is one of them, moved by a normal 15 % of its size and scaled by a log-normal 20 %.
    - A proposal's scores over the classes are the softmax of standard normal logits: every class scores something, as
      the extraction code of bottom-up attention passes every box to every class, without a threshold.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from loadtest.claims.plan import Source

SEED = 0
OBJECTS = 60
HEIGHT_PX, WIDTH_PX = 800, 1333
SMALLEST_PX, LARGEST_PX = 16, 600
SHIFT, SCALE = 0.15, 0.2
LEVEL_OF_PROPOSALS = ("p2", "p3", "p4", "p5")  # levels of a feature pyramid; small boxes first
EVERY_BOX = -1.0  # a score threshold below every score

Tensors = dict[str, NDArray[np.generic]]


def draw(sources: Mapping[str, Source], image_px: tuple[int, int]) -> Tensors:
    """Make every tensor that a design's graphs read but none of them makes."""
    found: Tensors = {}
    for name, source in sources.items():
        rng = np.random.default_rng(SEED)
        if name == "grid_boxes":
            found[name] = grid_boxes(source.shape[0], image_px)
        elif name in {"candidate_boxes", "proposals"}:
            found[name] = boxes(rng, source.shape[0])
        elif name == "class_scores":
            found[name] = softmax(rng.standard_normal(source.shape))
        elif name == "score_threshold":
            found[name] = np.array([EVERY_BOX], np.float32)
        elif source.dtype == "int64":
            found[name] = rng.integers(0, source.below or 1, source.shape)
        elif not name.startswith("proposals_"):
            found[name] = rng.standard_normal(source.shape, np.float32)
    return found | _by_level(sources, found)


def boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Draw boxes around a few objects, the smallest first.

    Shapes: (count, 4), x1 y1 x2 y2 px.
    """
    centres = rng.uniform((0, 0), (WIDTH_PX, HEIGHT_PX), (OBJECTS, 2))
    sizes = np.exp(rng.uniform(np.log(SMALLEST_PX), np.log(LARGEST_PX), (OBJECTS, 2)))
    chosen = rng.integers(0, OBJECTS, count)
    size = sizes[chosen] * np.exp(SCALE * rng.standard_normal((count, 2)))
    centre = centres[chosen] + SHIFT * sizes[chosen] * rng.standard_normal((count, 2))
    drawn = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return drawn[np.argsort(size.prod(axis=1))].astype(np.float32)


def grid_boxes(count: int, image_px: tuple[int, int]) -> NDArray[np.float32]:
    """Cut a picture into equal cells, with as many columns as rows.

    Shapes: (count, 4), x1 y1 x2 y2 px.
    """
    side = round(count**0.5)
    height, width = image_px[0] / side, image_px[1] / side
    rows, columns = np.divmod(np.arange(side * side), side)
    corners = [columns * width, rows * height, (columns + 1) * width, (rows + 1) * height]
    return np.stack(corners, axis=1).astype(np.float32)


def detections(rng: np.random.Generator, count: int, classes: int, detected: int, per_class: int) -> Tensors:
    """Draw proposals and scores so that some classes are detected, each by the same number of boxes.

    Shapes: proposals (count, 4), class_scores (count, classes): 0.3 to 0.9 if detected, else below 0.01.
    """
    scores = rng.uniform(0, 0.01, (count, classes)).astype(np.float32)
    for column in rng.permutation(classes)[:detected]:
        rows = rng.permutation(count)[:per_class]
        scores[rows, column] = rng.uniform(0.3, 0.9, per_class)
    return {"proposals": boxes(rng, count), "class_scores": scores}


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    """Shapes: (N, classes) -> the same; rows sum to 1."""
    exponentials = np.exp(logits)
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def _by_level(sources: Mapping[str, Source], found: Tensors) -> Tensors:
    """Split the proposals, which are sorted by size, among the levels of a feature pyramid."""
    split: Tensors = {}
    start = 0
    for level in LEVEL_OF_PROPOSALS:
        name = f"proposals_{level}"
        if name in sources:
            end = start + sources[name].shape[0]
            split[name] = found["proposals"][start:end]
            start = end
    return split
