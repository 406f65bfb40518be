"""Time a run of each bucket: one at a time, with copies and without, and as many as can overlap."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from models.spec import ViltSpec
from server.gpu.buckets import Bucket, blank
from server.gpu.engine import GpuEngine

LEFT_OUT = 10  # first runs that are not counted


def measure(engine: GpuEngine, buckets: Iterable[Bucket], spec: ViltSpec, repeat: int) -> list[dict[str, Any]]:
    """Time `repeat` runs of each shape.

    Units: milliseconds per run; images per second while copies of one run overlap another.
    """
    with ThreadPoolExecutor(engine.overlapping) as callers:
        return [_row(engine, bucket, spec, repeat, callers) for bucket in buckets]


def _row(engine: GpuEngine, bucket: Bucket, spec: ViltSpec, repeat: int, callers: ThreadPoolExecutor) -> dict[str, Any]:
    batch = blank(bucket, spec.patch_values)
    times_ms = _times_ms(lambda: engine.run(batch), repeat)
    graph_ms = _times_ms(lambda: engine.run_again(batch), repeat)
    began_s = time.perf_counter()
    for run in [callers.submit(engine.run, batch) for _ in range(repeat)]:
        run.result()
    taken_s = time.perf_counter() - began_s
    p50, p99 = np.quantile(times_ms, (0.5, 0.99))
    return {
        "batch": bucket.batch,
        "text_tokens": bucket.length,
        "patches": bucket.patches,
        "tokens": bucket.tokens,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "graph_p50_ms": float(np.median(graph_ms)),  # without copies
        "images_per_s": bucket.batch * repeat / taken_s,
    }


def _times_ms(run: Callable[[], object], repeat: int) -> list[float]:
    times_ms = []
    for _ in range(LEFT_OUT + repeat):
        began_s = time.perf_counter()
        run()
        times_ms.append(1000 * (time.perf_counter() - began_s))
    return times_ms[LEFT_OUT:]
