"""How long a run takes on this machine: fitted at warm-up, kept for the next start, corrected while running.

Knows engines and clocks; neither queues nor HTTP.
"""

import hashlib
import json
import logging
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from models.batch import Features, Feeds, collate
from models.image import ImagePatches
from models.spec import Grid, ViltSpec
from models.text import TextTokens
from server.types import Clock, Engine

log = logging.getLogger(__name__)

REPEATS = 5  # measured runs of each shape, after one that is not
TYPICAL_TEXT_TOKENS = 12
SLICE_FACTOR = 1.5  # a slice of a rank may take so many times a run of one: a question waits no longer behind it
DRIFT_SMOOTHING = 0.05  # weight of the newest run
DRIFT_LIMITS = (0.1, 10.0)
MOST_SHAPES = 4096  # that are known by what they are padded to
Padded = Callable[[int, float], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One shape, and the time of its fastest run: neighbours only ever add, and drift tells how much."""

    batch: int
    tokens: int  # of a row: text, the picture's cls token, patches, padding
    seconds: float


class LatencyModel:
    """seconds = drift * (base + per token * batch * tokens + per pair * batch * tokens ** 2), no term negative.

    The last term is attention's. Drift is how much slower runs are now than at warm-up: neighbours, heat, decoding.
    """

    def __init__(self, samples: Sequence[Sample], typical_tokens: float, padded: Padded | None = None) -> None:
        """Fit; `padded` tells the shape that a batch really runs at, where that is not its own."""
        self.samples = list(samples)
        self.typical_tokens = typical_tokens  # of a row, as requests of late had it
        # Of every request it is asked dozens of times, and a GPU's looks through all of its shapes.
        self._padded = lru_cache(MOST_SHAPES)(padded or (lambda batch, tokens: (batch, tokens)))
        self.coefficients = _fit([(*self._padded(one.batch, one.tokens), one.seconds) for one in samples])
        self.drift = 1.0

    def run_s(self, batch: int, tokens: float | None = None) -> float:
        """Estimate a run of so many rows, of typical length unless one is given."""
        return self.drift * self.fitted_s(batch, tokens)

    def fitted_s(self, batch: int, tokens: float | None = None) -> float:
        """Estimate a run as it would have taken at warm-up."""
        tokens = math.ceil(tokens or self.typical_tokens)
        return float(self.coefficients @ _terms(*self._padded(batch, tokens)))

    def batch_size(self, waiting: int, most: int, tokens: float | None = None, between_s: float = 0.0) -> int:
        """Choose how many of those that wait should run together, so that on average they are answered soonest.

        Rows that run together share a run's base cost and what passes between two runs, and each waits for all of them.
        """

        def mean_s(batch: int) -> tuple[float, int]:
            rows, _ = self._padded(batch, math.ceil(tokens or self.typical_tokens))
            unused = rows - batch  # which decide between equals
            return (between_s + self.run_s(batch, tokens)) * (math.ceil(waiting / batch) + 1) / 2, unused

        return min(range(1, max(1, min(waiting, most)) + 1), key=mean_s)

    def slice_size(self, most: int, tokens: float | None = None) -> int:
        """Count how many candidates of a rank may run together."""
        longest_s = SLICE_FACTOR * self.run_s(1, tokens)
        return next((size for size in range(most, 1, -1) if self.run_s(size, tokens) <= longest_s), 1)

    def observe(self, batch: int, tokens: int, seconds: float) -> None:
        """Learn from a run."""
        ratio = min(max(seconds / self.fitted_s(batch, tokens), DRIFT_LIMITS[0]), DRIFT_LIMITS[1])
        self.drift += DRIFT_SMOOTHING * (ratio - self.drift)
        self.typical_tokens += DRIFT_SMOOTHING * (tokens - self.typical_tokens)


def calibrated(
    engine: Engine,
    spec: ViltSpec,
    *,
    most: int,
    budget_s: float,
    identity: dict[str, object],
    cache: Path,
    clock: Clock,
) -> LatencyModel:
    """Take the latency model of an earlier start with the same identity, or measure and keep it.

    The identity names whatever changes the times: artifact, precision, threads, versions. The device is added here.
    """
    known = {**identity, "device": engine.device, "host": platform.node()}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    file = cache / f"latency-{digest[:16]}.json"
    typical = TYPICAL_TEXT_TOKENS + 1 + math.prod(_square(spec))
    try:
        samples = [Sample(**sample) for sample in json.loads(file.read_text())["samples"]]
        return LatencyModel(samples, typical, engine.padded)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, np.linalg.LinAlgError) as error:
        log.warning("measuring anew: %s is not a latency model (%s)", file, error)
    samples = measure(engine, spec, most=most, budget_s=budget_s, clock=clock)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"identity": known, "samples": [asdict(one) for one in samples]}, default=str))
        partial.replace(file)
    except OSError as error:  # read-only or full: serve all the same
        log.warning("the latency model is not kept for the next start: %s", error)
    return LatencyModel(samples, typical, engine.padded)


def measure(engine: Engine, spec: ViltSpec, *, most: int, budget_s: float, clock: Clock) -> list[Sample]:
    """Time runs of several shapes, the telling ones first; those that would not fit the budget are left out."""
    until_s = clock() + budget_s
    square, largest = _square(spec), max(spec.grids, key=math.prod)
    shapes: list[tuple[int, Grid]] = [(1, square), (1, largest), (most, square), (1, spec.grids[0]), (2, square)]
    shapes += [(4, square), (most, largest), (most, spec.grids[0])]
    samples: list[Sample] = []
    for batch, grid in dict.fromkeys(shapes):
        if batch > most:
            continue
        feeds = _blank(spec, grid, batch)
        size = batch * feeds.mask.shape[1]
        if samples:  # a run takes longer with more tokens, but hardly shorter with fewer
            expected_s = samples[0].seconds * max(1.0, size / samples[0].tokens)
            if clock() + (1 + REPEATS) * expected_s > until_s:
                continue
        times_s = []
        for _ in range(1 + REPEATS):
            began_s = clock()
            engine.run(feeds)
            times_s.append(clock() - began_s)
        samples.append(Sample(batch, feeds.mask.shape[1], max(min(times_s[1:]), 1e-6)))
    return samples


def _square(spec: ViltSpec) -> Grid:
    side = spec.shortest_edge_px // spec.patch_px
    return side, side


def _blank(spec: ViltSpec, grid: Grid, batch: int) -> Feeds:
    patches = np.zeros((math.prod(grid), spec.patch_values), np.uint8)
    image = ImagePatches(patches, np.ones(len(patches), np.int64), grid)
    text = TextTokens(np.zeros(min(TYPICAL_TEXT_TOKENS, spec.max_text_tokens), np.int64), truncated=False)
    return collate([Features(image, text)] * batch)


def _terms(batch: int, tokens: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([1.0, batch * tokens, batch * tokens**2])


def _fit(runs: Sequence[tuple[int, float, float]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Least squares of relative errors; a term that comes out negative is left out and the rest fitted again.

    A run is its rows, the tokens of a row, and the seconds that it took.
    """
    rows = np.array([_terms(batch, tokens) / seconds for batch, tokens, seconds in runs])
    scale = rows.max(axis=0)
    coefficients, kept = np.zeros(3), [0, 1, 2]
    while kept:
        found = np.linalg.lstsq(rows[:, kept] / scale[kept], np.ones(len(rows)), rcond=None)[0]
        if (found >= 0).all():
            coefficients[kept] = found / scale[kept]
            break
        kept.pop(int(found.argmin()))
    return coefficients
