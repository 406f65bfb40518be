"""Compare the GPU with fp32 on the CPU: every grid alone, then random batches, one row of each also alone.

This finds wrong kernels; what half precision costs on pictures is the gate's to judge. Pictures here are noise, on
which a trained model's scores differ by up to twice as much; without its mask, half of them by more than 0.4.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Features
from models.image import ImagePatches
from models.spec import Grid, ViltSpec
from models.text import TextTokens
from server.types import Engine, Logits

log = logging.getLogger(__name__)

FEW_IDS = 30  # token ids below this are in every vocabulary
AGREEMENT = 0.995  # of top answers, counted if the best two differ by more than rounding
SCORE_DIFFERENCE = 1e-2  # the largest allowed, over all rows: twice the gate's, whose pictures are no noise
ROUNDING = 5e-3  # answers whose scores differ by less may come in either order
LOGGED_EVERY = 100
Probabilities = NDArray[np.float64]


def check(
    engine: Engine, reference: Engine, spec: ViltSpec, *, most: int, shapes: int, seed: int = 0
) -> dict[str, Any]:
    """Run both on every grid and on `shapes` random batches, and report how far they differ.

    "alone" compares a row of a batch with the same row run by itself, both on the GPU.
    """
    rng = np.random.default_rng(seed)
    logits: list[float] = []
    scores: list[float] = []
    alone: list[float] = []
    agreed: list[bool] = []

    def compare(rows: list[Features]) -> None:
        found, expected = engine.run(rows).logits, reference.run(rows).logits
        logits.append(max(float(np.abs(found[head] - expected[head]).max()) for head in expected))
        for row in range(len(rows)):
            scores.append(_distance(found, expected, row))
            agreed.extend(_agreements(found, expected, row))
        if len(rows) > 1:
            row = int(rng.integers(len(rows)))
            by_itself = engine.run([rows[row]]).logits
            alone.append(_distance({head: values[row : row + 1] for head, values in found.items()}, by_itself, 0))

    for grid in spec.grids:
        compare([_row(spec, rng, grid)])
    for number, rows in enumerate(random_batches(spec, rng, most, shapes), 1):
        compare(rows)
        if number % LOGGED_EVERY == 0:
            log.info("%d of %d random shapes compared", number, shapes)
    furthest, agreement = float(np.max(scores)), float(np.mean(agreed)) if agreed else None
    passed = furthest <= SCORE_DIFFERENCE and all(one <= SCORE_DIFFERENCE for one in alone)  # false for NaN
    passed &= agreement is None or agreement >= AGREEMENT
    return {
        "status": "passed" if passed else "failed",
        "provider": engine.provider,
        "grids": len(spec.grids),
        "random_shapes": shapes,
        "rows": len(scores),
        "max_logit_difference": float(np.max(logits)),
        "max_score_difference": furthest,
        "score_difference_allowed": SCORE_DIFFERENCE,
        "agreement": agreement,
        "agreement_needed": AGREEMENT,
        "max_score_difference_alone": float(np.max(alone)) if alone else None,
    }


def random_batches(spec: ViltSpec, rng: np.random.Generator, most: int, count: int) -> Iterator[list[Features]]:
    """Draw batches of any grids and lengths; half have one row, and some as many as possible."""
    for _ in range(count):
        size = min(most, int(rng.geometric(0.5))) if rng.random() < 0.97 else most
        yield [_row(spec, rng, spec.grids[rng.integers(len(spec.grids))]) for _ in range(size)]


def _row(spec: ViltSpec, rng: np.random.Generator, grid: Grid) -> Features:
    count, first = grid[0] * grid[1], spec.first_position_row(grid)
    patches = rng.integers(0, 256, (count, spec.patch_values), dtype=np.uint8)
    image = ImagePatches(patches, np.arange(first, first + count, dtype=np.int64), grid)
    length = rng.integers(2, spec.max_text_tokens + 1)
    return Features(image, TextTokens(rng.integers(0, FEW_IDS, length, dtype=np.int64), truncated=False))


def _distance(found: Logits, expected: Logits, row: int) -> float:
    """Return the largest difference of a row's scores, which are sigmoids except for the matching head's softmax."""
    return max(
        float(np.abs(_scores(head, found[head][row]) - _scores(head, expected[head][row])).max()) for head in expected
    )


def _agreements(found: Logits, expected: Logits, row: int) -> Iterator[bool]:
    if "vqa_logits" in expected:
        ours, theirs = (_scores("vqa_logits", logits["vqa_logits"][row]) for logits in (found, expected))
        best, second = np.sort(theirs)[[-1, -2]]
        if best - second > ROUNDING:
            yield int(ours.argmax()) == int(theirs.argmax())


def _scores(head: str, logits: NDArray[np.float32]) -> Probabilities:
    values = logits.astype(np.float64)
    if head == "itm_logits":
        raised = np.exp(values - values.max())
        return np.asarray(raised / raised.sum(), np.float64)
    return np.asarray(1 / (1 + np.exp(-values)), np.float64)
