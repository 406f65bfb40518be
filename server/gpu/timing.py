"""Time a run of each bucket, copies included: one at a time, and as many as can overlap."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from models.spec import ViltSpec
from server.gpu.buckets import Bucket, blank
from server.types import Engine

LEFT_OUT = 10  # first runs that are not counted


def measure(engine: Engine, buckets: Iterable[Bucket], spec: ViltSpec, repeat: int) -> list[dict[str, Any]]:
    """Time `repeat` runs of each shape.

    Units: milliseconds per run; images per second while copies of one run overlap another.
    """
    with ThreadPoolExecutor(engine.overlapping) as callers:
        return [_row(engine, bucket, spec, repeat, callers) for bucket in buckets]


def _row(engine: Engine, bucket: Bucket, spec: ViltSpec, repeat: int, callers: ThreadPoolExecutor) -> dict[str, Any]:
    feeds = blank(bucket, spec.patch_values)
    times_ms = []
    for _ in range(LEFT_OUT + repeat):
        began_s = time.perf_counter()
        engine.run(feeds)
        times_ms.append(1000 * (time.perf_counter() - began_s))
    began_s = time.perf_counter()
    for run in [callers.submit(engine.run, feeds) for _ in range(repeat)]:
        run.result()
    taken_s = time.perf_counter() - began_s
    p50, p99 = np.quantile(times_ms[LEFT_OUT:], (0.5, 0.99))
    return {
        "batch": bucket.batch,
        "text_tokens": bucket.length,
        "patches": bucket.patches,
        "tokens": bucket.tokens,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "images_per_s": bucket.batch * repeat / taken_s,
    }
