"""Take turns: each server answers a few requests at each concurrency, then the next, so drift affects all alike."""

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

REQUESTS = {1: 20, 2: 8, 4: 12, 8: 24}  # in a turn, by the number of clients
TIMEOUT_S = 120.0


@dataclass(slots=True)
class Timed:
    """The times of one server's turns, by the number of clients."""

    latencies_ms: dict[int, list[float]] = field(default_factory=lambda: {clients: [] for clients in REQUESTS})
    rates_per_s: dict[int, list[float]] = field(default_factory=lambda: {clients: [] for clients in REQUESTS})

    @property
    def rounds(self) -> int:
        return len(self.rates_per_s[1])

    def extend(self, later: "Timed") -> None:
        """Add the times of later turns."""
        for clients in REQUESTS:
            self.latencies_ms[clients].extend(later.latencies_ms[clients])
            self.rates_per_s[clients].extend(later.rates_per_s[clients])

    def p99_ms(self, clients: int) -> float | None:
        """Return the p99 with so many clients, if there are enough requests."""
        return tail(self.latencies_ms[clients], 0.99)


async def take(
    urls: Mapping[str, str], requests: Mapping[str, Iterator[Request]], rounds: int
) -> tuple[dict[str, Timed], str | None]:
    """Give every server a turn with every number of clients in every round, in alternating order.

    If Ctrl-C or a failing server ends it early, the complete rounds count; also returns why it ended.

    Raises: ValueError: a server refused, or failed, in the first round.
    """
    timed = {name: Timed() for name in urls}
    order = list(urls)
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client(url, name=name, timeout_s=TIMEOUT_S))
            for name, url in urls.items()
        }

        async def take_round(_: int) -> dict[str, Timed]:
            found = {name: Timed() for name in urls}
            for concurrency, count in REQUESTS.items():
                for name in order:
                    await clients[name].answered(next(requests[name]))  # not counted: it follows another's turn
                    began_s = time.perf_counter()
                    latencies_ms = await _turn(clients[name], requests[name], concurrency, count)
                    found[name].rates_per_s[concurrency].append(count / (time.perf_counter() - began_s))
                    found[name].latencies_ms[concurrency].extend(latencies_ms)
            order.reverse()
            return found

        complete, ended = await partial.each(tqdm(range(rounds), desc="round", disable=None), take_round)
    for found in complete:
        for name, one in found.items():
            timed[name].extend(one)
    return timed, ended


async def _turn(client: Client, requests: Iterator[Request], concurrency: int, count: int) -> list[float]:
    """Send so many requests, each client asking again when it is answered; at the end some clients are idle."""
    left = itertools.islice(requests, count)

    async def ask() -> list[float]:
        return [(await client.answered(request)).latency_ms for request in left]

    return list(itertools.chain(*await asyncio.gather(*(ask() for _ in range(concurrency)))))
