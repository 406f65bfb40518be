"""Requests that cannot be answered in time: each is told so within 5 ms, and the model does not run.

The first kind never sends its body: 504 at the deadline, which counts from the head. The second is sent whole, but
wants an answer sooner than the model can run: 503 at once; or 504 with a small model, whose deadline is so short that
it may pass on the way.

Takes about half a minute.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from loadtest import contract
from loadtest.launch import Started
from loadtest.summary import percentile, percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_least, at_most, equal
from loadtest.workload import Request

REPEATS = 200
TIMEOUT_S = 30.0
WITHIN_MS = 5.0
EXPIRES_MS = 10
SHORTEST_MS = 1.0  # the shortest deadline that a server accepts
TIMER_MS = 1.0  # resolution of the server's timers, which may fire early by as much

Asked = tuple[int, float]  # status, milliseconds until it arrived


def add_to(commands: Any) -> None:
    """Declare `vilt-bench deadline`."""
    trial.add(commands, "deadline", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    requests = trial.questions(own.url)
    name = contract.model_for(own.url, "vqa")["name"]
    models = (await trial.get(f"{own.url}/v1/calibration"))["models"]
    calibration = next(model for model in models if model["model"] == name)
    alone_ms = min(run["ms"] for run in calibration["measured"] if run["batch"] == 1)
    impossible_ms, told = impossible_of(alone_ms)
    before = await trial.metrics(own.url)
    expired = [await ask(own.url, next(requests), EXPIRES_MS, has_body=False) for _ in range(REPEATS)]
    impossible = [await ask(own.url, next(requests), impossible_ms, has_body=True) for _ in range(REPEATS)]
    after = await trial.metrics(own.url)
    runs = "vilt_batch_entries_count{model=" + f'"{calibration["model"]}"' + "}"
    late_ms = [took_ms - EXPIRES_MS for _, took_ms in expired]
    took_ms = [took_ms for _, took_ms in impossible]
    figures: Figures = {
        "impossible_deadline_ms": impossible_ms,
        "model_alone_ms": alone_ms,
        "expired, after the deadline": percentiles(late_ms),
        "impossible, after the request": percentiles(took_ms),
    }
    checks = [
        equal("expired: status", statuses_of(expired), "504"),
        at_least("expired: earliest response after the deadline", min(late_ms), -TIMER_MS, "ms"),
        at_most("expired: p99 of the response after the deadline", percentile(late_ms, 0.99), WITHIN_MS, "ms"),
        equal(
            f"impossible: other than {' or '.join(map(str, told))}",
            sum(status not in told for status, _ in impossible),
            0,
        ),
        at_most("impossible: p99 of the response after the request", percentile(took_ms, 0.99), WITHIN_MS, "ms"),
        equal("runs of the model", after[runs] - before[runs], 0.0),
    ]
    return figures, checks


def impossible_of(alone_ms: float) -> tuple[float, tuple[int, ...]]:
    """Choose a deadline that is too short for a model which takes so long alone, and the statuses that may follow.

    Units: milliseconds.
    """
    deadline_ms = max(SHORTEST_MS, alone_ms / 4)
    return deadline_ms, (503,) if deadline_ms > WITHIN_MS else (503, 504)


def statuses_of(asked: Sequence[Asked]) -> str:
    """List the distinct statuses."""
    return " ".join(sorted({str(status) for status, _ in asked}))


async def ask(url: str, request: Request, deadline_ms: float, *, has_body: bool) -> Asked:
    """Send a request, or only its head; return the status, and the milliseconds until it arrived."""
    host = urlsplit(url)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: {request.content_type}\r\n"
        f"Content-Length: {len(request.body)}\r\nX-Deadline-Ms: {deadline_ms:g}\r\nConnection: close\r\n\r\n"
    ).encode()
    sent_s = time.perf_counter()
    writer.write(head + request.body if has_body else head)
    await writer.drain()
    async with asyncio.timeout(TIMEOUT_S):
        line = await reader.readline()
    took_ms = 1000 * (time.perf_counter() - sent_s)
    writer.close()
    return int(line.split()[1]), took_ms
