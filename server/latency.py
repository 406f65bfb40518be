"""How long a run takes on this machine: fitted at the first start, kept for the next, corrected while running.

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

from models.batch import Features
from models.image import ImagePatches
from models.spec import Grid, ViltSpec
from models.text import TextTokens
from server.types import Clock, Engine

log = logging.getLogger(__name__)

REPEATS = 5  # measured runs of each shape, after one that is not measured
TYPICAL_TEXT_TOKENS = 12
SLICE_FACTOR = 1.5  # a slice of a rank takes at most this many times a run of one: so long may a question wait for it
DRIFT_SMOOTHING = 0.05  # weight of the newest run
DRIFT_LIMITS = (0.1, 10.0)
CACHED_SHAPES = 4096
Padded = Callable[[int, float], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A shape and the time of its fastest run: other load only ever adds time, and drift accounts for that."""

    batch: int
    tokens: int  # of a row: text, the picture's cls token, patches, padding
    seconds: float


class LatencyModel:
    """seconds = drift * (base + per token * batch * tokens + per pair * batch * tokens ** 2), no term negative.

    The last term is attention. Drift is how much slower runs are now than at warm-up, through other load or heat.
    """

    def __init__(self, samples: Sequence[Sample], typical_tokens: float, padded: Padded | None = None) -> None:
        """Fit the samples; `padded` returns the shape that a batch really runs at."""
        self.samples = list(samples)
        self.typical_tokens = typical_tokens  # of a row, in recent requests
        self._padded = padded or (lambda batch, tokens: (batch, tokens))
        self.coefficients = _fit([(*self._padded(one.batch, one.tokens), one.seconds) for one in samples])
        # Every request asks dozens of times, and a GPU engine searches all of its buckets each time.
        self._fitted = lru_cache(CACHED_SHAPES)(self._fitted_at)
        self._soonest = lru_cache(CACHED_SHAPES)(self._soonest_of)
        self.drift = 1.0

    def run_s(self, batch: int, tokens: float | None = None) -> float:
        """Estimate a run of that many rows, of typical length unless one is given."""
        return self.drift * self.fitted_s(batch, tokens)

    def fitted_s(self, batch: int, tokens: float | None = None) -> float:
        """Estimate how long a run would have taken at warm-up."""
        return self._fitted(batch, math.ceil(tokens or self.typical_tokens))[1]

    def _fitted_at(self, batch: int, tokens: int) -> tuple[int, float]:
        """Return the rows that a batch is padded to, and its seconds at warm-up."""
        rows, padded_tokens = self._padded(batch, tokens)
        return rows, float(self.coefficients @ _terms(rows, padded_tokens))

    def batch_size(self, waiting: int, most: int, tokens: float | None = None, between_s: float = 0.0) -> int:
        """Choose how many waiting entries should run together, so that on average they are answered soonest.

        Rows that run together share the base cost of a run and the time between two runs, but each waits for all.
        """
        between_us = round(1e6 * between_s / self.drift, -1)  # roughly: what is asked again has been computed
        return self._soonest(waiting, most, math.ceil(tokens or self.typical_tokens), between_us)

    def _soonest_of(self, waiting: int, most: int, tokens: int, between_us: float) -> int:
        """Choose a batch size as if runs took as long as at warm-up; the time between two is relative to that."""

        def mean_s(batch: int) -> tuple[float, int]:
            rows, fitted_s = self._fitted(batch, tokens)
            unused = rows - batch  # fewer is better between equals
            return (between_us / 1e6 + fitted_s) * (math.ceil(waiting / batch) + 1) / 2, unused

        return min(range(1, max(1, min(waiting, most)) + 1), key=mean_s)

    def slice_size(self, most: int, tokens: float | None = None) -> int:
        """Return how many candidates of a rank may run together."""
        longest_s = SLICE_FACTOR * self.run_s(1, tokens)
        return next((size for size in range(most, 1, -1) if self.run_s(size, tokens) <= longest_s), 1)

    def observe(self, batch: int, tokens: int, seconds: float) -> None:
        """Correct the model by a run."""
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
    """Return the latency model kept from an earlier start with the same identity, or measure and keep it.

    The identity contains whatever changes the times: artifact, precision, threads, versions. The device is added here.
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
        log.warning("measuring again: %s is not a latency model (%s)", file, error)
    samples = measure(engine, spec, most=most, budget_s=budget_s, clock=clock)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"identity": known, "samples": [asdict(one) for one in samples]}, default=str))
        partial.replace(file)
    except OSError as error:  # read-only or full: serve anyway
        log.warning("the latency model cannot be kept for the next start: %s", error)
    return LatencyModel(samples, typical, engine.padded)


def measure(engine: Engine, spec: ViltSpec, *, most: int, budget_s: float, clock: Clock) -> list[Sample]:
    """Time runs of several shapes, the most informative first, leaving out those that would not fit the budget."""
    until_s = clock() + budget_s
    square, largest = _square(spec), max(spec.grids, key=math.prod)
    shapes: list[tuple[int, Grid]] = [(1, square), (1, largest), (most, square), (1, spec.grids[0]), (2, square)]
    shapes += [(4, square), (most, largest), (most, spec.grids[0])]
    samples: list[Sample] = []
    for batch, grid in dict.fromkeys(shapes):
        if batch > most:
            continue
        pair = _blank(spec, grid)
        tokens = len(pair.text.input_ids) + 1 + len(pair.image.patches)
        size = batch * tokens
        if samples:  # a run takes longer with more tokens, but hardly shorter with fewer
            expected_s = samples[0].seconds * max(1.0, size / samples[0].tokens)
            if clock() + (1 + REPEATS) * expected_s > until_s:
                continue
        times_s = []
        for _ in range(1 + REPEATS):
            began_s = clock()
            engine.run([pair] * batch)
            times_s.append(clock() - began_s)
        samples.append(Sample(batch, tokens, max(min(times_s[1:]), 1e-6)))
    return samples


def _square(spec: ViltSpec) -> Grid:
    side = spec.shortest_edge_px // spec.patch_px
    return side, side


def _blank(spec: ViltSpec, grid: Grid) -> Features:
    patches = np.zeros((math.prod(grid), spec.patch_values), np.uint8)
    image = ImagePatches(patches, np.ones(len(patches), np.int64), grid)
    text = TextTokens(np.zeros(min(TYPICAL_TEXT_TOKENS, spec.max_text_tokens), np.int64), truncated=False)
    return Features(image, text)


def _terms(batch: int, tokens: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([1.0, batch * tokens, batch * tokens**2])


def _fit(runs: Sequence[tuple[int, float, float]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Fit by least squares of relative errors; while a term is negative, drop it and fit the rest again.

    A run is given by its rows, the tokens of a row, and its seconds.
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
