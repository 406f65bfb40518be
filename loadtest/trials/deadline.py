"""Requests that cannot be answered in time: each is told so within 5 ms, and the model does not run.

One has expired by the time that its body is there: 504. The other asks for an answer sooner than the model runs: 503.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from loadtest import workload
from loadtest.launch import Started
from loadtest.summary import percentile, percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Claim, Figures, at_most, equal
from loadtest.workload import Request

REPEATS = 200
TIMEOUT_S = 30.0
WITHIN_MS = 5.0
EXPIRES_MS, LATE_S = 10, 0.03  # the body comes so much after the head


def add_to(commands: Any) -> None:
    """Declare `vilt-bench deadline`."""
    trial.add(commands, "deadline", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Claim]]:
    learned = workload.learn(own.url, workload.read(workload.SAMPLES, "vqa"))
    requests = workload.stream(learned.samples, "vqa")
    calibration = (await trial.get(f"{own.url}/v1/calibration"))["models"][0]
    alone_ms = min(run["ms"] for run in calibration["measured"] if run["batch"] == 1)
    impossible_ms = max(1.0, alone_ms / 4)
    before = await trial.metrics(own.url)
    expired = [await _ask(own.url, next(requests), EXPIRES_MS, LATE_S) for _ in range(REPEATS)]
    impossible = [await _ask(own.url, next(requests), impossible_ms, 0.0) for _ in range(REPEATS)]
    after = await trial.metrics(own.url)
    runs = "vilt_batch_entries_count{model=" + f'"{calibration["model"]}"' + "}"
    figures: Figures = {"impossible_deadline_ms": impossible_ms, "model_alone_ms": alone_ms}
    claims: list[Claim] = []
    for name, asked, status in (("expired on arrival", expired, 504), ("impossible", impossible, 503)):
        times_ms = [took_ms for _, took_ms in asked]
        figures[name] = percentiles(times_ms)
        claims.append(equal(f"{name}: status", " ".join(sorted({str(found) for found, _ in asked})), str(status)))
        claims.append(at_most(f"{name}: p99 until the response", percentile(times_ms, 0.99), WITHIN_MS, "ms"))
    claims.append(equal("runs of the model", after[runs] - before[runs], 0.0))
    return figures, claims


async def _ask(url: str, request: Request, deadline_ms: float, late_s: float) -> tuple[int, float]:
    """Send a request's head, later its body, and tell the status and the milliseconds from the last byte to it."""
    host = urlsplit(url)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: {request.content_type}\r\n"
        f"Content-Length: {len(request.body)}\r\nX-Deadline-Ms: {deadline_ms:g}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode())
    if late_s:
        await writer.drain()
        await asyncio.sleep(late_s)
    writer.write(request.body)
    await writer.drain()
    sent_s = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        line = await reader.readline()
    took_ms = 1000 * (time.perf_counter() - sent_s)
    writer.close()
    return int(line.split()[1]), took_ms
