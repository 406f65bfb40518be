"""Take turns: each server answers a little with so many clients, then the next, so that drift falls on all alike."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tqdm import tqdm

from loadtest.openloop import Client
from loadtest.workload import Request

REQUESTS = {1: 12, 2: 8, 4: 12, 8: 24}  # of a turn, by how many clients ask at once
TIMEOUT_S = 120.0


@dataclass(slots=True)
class Timed:
    """What the turns of one server took, by the number of clients."""

    latencies_ms: dict[int, list[float]] = field(default_factory=lambda: {clients: [] for clients in REQUESTS})
    rates_per_s: dict[int, list[float]] = field(default_factory=lambda: {clients: [] for clients in REQUESTS})


async def take(urls: Mapping[str, str], requests: Mapping[str, Iterator[Request]], rounds: int) -> dict[str, Timed]:
    """Give every server a turn with every number of clients in every round, forth and back.

    Raises: ValueError: a server refused, or failed.
    """
    timed = {name: Timed() for name in urls}
    order = list(urls)
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client(url, timeout_s=TIMEOUT_S)) for name, url in urls.items()
        }
        for _ in tqdm(range(rounds), desc="round", disable=None):
            for concurrency, count in REQUESTS.items():
                for name in order:
                    await _send(name, clients[name], next(requests[name]))  # not counted: after another's turn
                    began_s = time.perf_counter()
                    latencies_ms = await _turn(name, clients[name], requests[name], concurrency, count)
                    timed[name].rates_per_s[concurrency].append(count / (time.perf_counter() - began_s))
                    timed[name].latencies_ms[concurrency].extend(latencies_ms)
            order.reverse()
    return timed


async def _turn(name: str, client: Client, requests: Iterator[Request], concurrency: int, count: int) -> list[float]:
    """Answer so many requests, each client asking again when it is answered: the last leave a server less to do."""
    left = itertools.islice(requests, count)

    async def ask() -> list[float]:
        return [await _send(name, client, request) for request in left]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask()) for _ in range(concurrency)]
    return [latency_ms for task in tasks for latency_ms in task.result()]


async def _send(name: str, client: Client, request: Request) -> float:
    row = await client.send(request)
    if row.status != 200:
        raise ValueError(f"{name} did not answer: {row.status or row.code}")
    return row.latency_ms
