"""A closed loop: clients who ask again as soon as they are answered. It shows throughput, `openloop` latency.

The clients are spread over several processes, because one Python process sends about a thousand requests per second.
Each process reports its share of a core, which shows when the clients were the limit, and not the server.
"""

import asyncio
import functools
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import uvloop

from loadtest import photo
from loadtest.openloop import Client
from loadtest.rows import Row
from loadtest.summary import percentile, tail
from loadtest.workload import Request

STARTED_WITHIN_S = 120.0  # all processes, before any of them asks


@dataclass(frozen=True, slots=True)
class Asked:
    """The answers to the clients of one process."""

    rows: list[Row]
    taken_s: float
    cpu_share: float  # of one core, the most that a Python process uses


def drive(url: str, clients: int, processes: int, seconds: float) -> dict[str, Any]:
    """Run so many clients in so many processes, and summarise.

    Raises: ValueError, or a group of them: the server refused, or failed.
    """
    processes = min(clients, processes)
    shares = [clients // processes + (number < clients % processes) for number in range(processes)]
    context = multiprocessing.get_context("spawn")  # a fork would copy the event loop without its threads
    together = context.Barrier(processes)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=together.wait, initargs=(STARTED_WITHIN_S,)
    ) as pool:
        return summarise(list(pool.map(functools.partial(ask, url, seconds), shares)), clients)


def ask(url: str, seconds: float, clients: int) -> Asked:
    """Run the clients of one process."""
    return uvloop.run(loop(url, seconds, clients))


async def loop(url: str, seconds: float, clients: int) -> Asked:
    """Run so many clients, after one has warmed up for a tenth of the time; every picture is a new one.

    Raises: ValueError, or a group of them: the server refused, or failed.
    """
    requests = photo.requests(photo.draw())
    rows: list[Row] = []
    async with Client(url) as client:
        await _ask(client, requests, [], client.now_s() + seconds / 10)  # not counted
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        until_s = client.now_s() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(_ask(client, requests, rows, until_s))
        taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Asked(rows, taken_s, cpu_s / taken_s)


async def _ask(client: Client, requests: Iterator[Request], rows: list[Row], until_s: float) -> None:
    while client.now_s() < until_s:
        rows.append(await client.answered(next(requests)))


def summarise(asked: Sequence[Asked], clients: int) -> dict[str, Any]:
    """Summarise a closed loop: all answers, the sum of the rates, and the busiest client process.

    Raises: ValueError: there are no answers.
    """
    rows = [row for one in asked for row in one.rows]
    if not rows:
        raise ValueError("no client was answered in the time given")
    latencies_ms = [row.latency_ms for row in rows]
    return {
        "clients": clients,
        "client_processes": len(asked),
        "client_cpu_share": max(one.cpu_share for one in asked),
        "answers": len(rows),
        "answers_per_s": sum(len(one.rows) / one.taken_s for one in asked),
        "p50_ms": percentile(latencies_ms, 0.5),
        "p99_ms": tail(latencies_ms, 0.99),
        "stages_ms": {stage: statistics.median(row.stages_ms[stage] for row in rows) for stage in rows[0].stages_ms},
    }
