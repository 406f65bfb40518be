"""Take turns: each server answers a little with so many clients, then the next, so that drift falls on all alike."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tqdm import tqdm

from loadtest import partial
from loadtest.openloop import Client
from loadtest.summary import tail
from loadtest.workload import Request

REQUESTS = {1: 20, 2: 8, 4: 12, 8: 24}  # of a turn, by how many clients ask at once
TIMEOUT_S = 120.0


@dataclass(slots=True)
class Timed:
    """What the turns of one server took, by the number of clients."""

    latencies_ms: dict[int, list[float]] = field(default_factory=lambda: {clients: [] for clients in REQUESTS})
    rates_per_s: dict[int, list[float]] = field(default_factory=lambda: {clients: [] for clients in REQUESTS})

    @property
    def rounds(self) -> int:
        return len(self.rates_per_s[1])

    def extend(self, later: "Timed") -> None:
        """Add what later turns took."""
        for clients in REQUESTS:
            self.latencies_ms[clients].extend(later.latencies_ms[clients])
            self.rates_per_s[clients].extend(later.rates_per_s[clients])

    def p99_ms(self, clients: int) -> float | None:
        """Find the p99 of so many clients, where it is not just the slowest."""
        return tail(self.latencies_ms[clients], 0.99)


async def take(
    urls: Mapping[str, str], requests: Mapping[str, Iterator[Request]], rounds: int
) -> tuple[dict[str, Timed], str | None]:
    """Give every server a turn with every number of clients in every round, forth and back.

    Where Ctrl-C or a server that fails ends it early, the rounds that are complete count; also says why it ended.

    Raises: ValueError: a server refused, or failed, in the first round.
    """
    timed = {name: Timed() for name in urls}
    order = list(urls)
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client(url, timeout_s=TIMEOUT_S)) for name, url in urls.items()
        }

        async def take_round(_: int) -> dict[str, Timed]:
            found = {name: Timed() for name in urls}
            for concurrency, count in REQUESTS.items():
                for name in order:
                    await _send(name, clients[name], next(requests[name]))  # not counted: after another's turn
                    began_s = time.perf_counter()
                    latencies_ms = await _turn(name, clients[name], requests[name], concurrency, count)
                    found[name].rates_per_s[concurrency].append(count / (time.perf_counter() - began_s))
                    found[name].latencies_ms[concurrency].extend(latencies_ms)
            order.reverse()
            return found

        complete, ended = await partial.each(tqdm(range(rounds), desc="round", disable=None), take_round)
    for found in complete:
        for name, one in found.items():
            timed[name].extend(one)
    return timed, ended


async def _turn(name: str, client: Client, requests: Iterator[Request], concurrency: int, count: int) -> list[float]:
    """Answer so many requests, each client asking again when it is answered: the last leave a server less to do."""
    left = itertools.islice(requests, count)

    async def ask() -> list[float]:
        return [await _send(name, client, request) for request in left]

    return list(itertools.chain(*await asyncio.gather(*(ask() for _ in range(concurrency)))))


async def _send(name: str, client: Client, request: Request) -> float:
    row = await client.send(request)
    if row.status != 200:
        raise ValueError(f"{name} did not answer: {row.status or row.code}")
    return row.latency_ms
