"""The highest open-loop rate at which nearly all requests are in time: short runs find it, longer ones confirm it.

The search alone is biased upward: it takes the better of two short runs and keeps the rates that were lucky. Where 98 %
are in time, one of two runs of a hundred requests shows 99 % three times in four. So the rate that it finds is only
where the confirmation starts, which counts 500 requests per rate (one such count in five would pass there) and lowers
the rate by 6 % until 99 % of them are in time.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from loadtest import openloop
from loadtest.openloop import Deadline, poisson
from loadtest.summary import Summary, summarise
from loadtest.workload import Request

SHARE = 0.99  # of requests answered in time
START_PER_S = 10.0
SECONDS = 4.0  # of a run, at least
LEAST_REQUESTS = 100  # in a run: of fewer, a single late one decides
DEADLINES = 20  # in a run: a short one ends before its backlog makes anything late, however high the rate
CONFIRM_REQUESTS = 500  # at one rate
RESOLUTION = 1.06  # between the last rates of the search, and between those of the confirmation
LOWEST_PER_S = 0.1

Attempt = Callable[[float, int], Awaitable[Summary]]  # rate per second, number of the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A capacity, and the runs that it was found by."""

    rate_per_s: float
    share: float  # of requests that had to be in time
    confirmed_share: float  # of so many requests at the rate, none of them from the search
    confirmed_requests: int
    runs: list[Summary]  # in order: the search, then the confirmation
    flaws: list[str]  # of the generator, where it was the limit


async def capacity(url: str, requests: Iterable[Request], *, deadline_ms: Deadline, seed: int = 0) -> Capacity:
    """Find the highest rate of Poisson arrivals at which 99 % of requests are answered with 200 in time.

    Raises: ValueError: they are not even at a very low rate.
    """
    requests = iter(requests)  # every run takes some of them

    async def attempt(rate_per_s: float, number: int) -> Summary:
        duration_s = duration_of(rate_per_s, deadline_ms)
        schedule = poisson(rate_per_s, duration_s, seed + number)
        label = f"capacity: {rate_per_s:.3g}/s"
        rows = await openloop.run(url, requests, schedule, deadline_ms=deadline_ms, label=label)
        await openloop.until_quiet(rows)
        return summarise(rows, seconds=duration_s)

    return await search(attempt)


def duration_of(rate_per_s: float, deadline_ms: Deadline) -> float:
    """Compute how long a run at a rate has to be, in seconds, to show whether the server keeps up with it."""
    longest_ms = max(deadline_ms.values(), default=0.0) if isinstance(deadline_ms, Mapping) else deadline_ms or 0.0
    return max(SECONDS, LEAST_REQUESTS / rate_per_s, DEADLINES * longest_ms / 1000)


async def search(attempt: Attempt) -> Capacity:
    """Find a rate by short runs, then step down from it until one is confirmed.

    Raises: ValueError: the server does not keep up with the lowest rate.
    """
    tries = _Tries(attempt)
    rate_per_s = await _found(tries)
    while rate_per_s >= LOWEST_PER_S:
        in_time, requests = await tries.count(rate_per_s)
        if in_time >= SHARE * requests:
            return tries.capacity(rate_per_s, in_time / requests, requests)
        rate_per_s /= RESOLUTION
    raise ValueError(
        f"even at {LOWEST_PER_S:g} requests per second fewer than {100 * SHARE:g} % of requests were answered in time:"
        " the deadline may be too short"
    )


async def _found(tries: "_Tries") -> float:
    """Halve the rate until the server keeps up (0 if it never does), double it until it fails twice in a row, bisect.

    A rate fails only if two runs fail: on a shared machine one short run can be unlucky.
    """
    low = START_PER_S
    while not await tries.keeps_up(low):
        low /= 2
        if low < LOWEST_PER_S:
            return 0.0
    while True:
        if await tries.keeps_up(2 * low):
            low *= 2
        elif await tries.keeps_up(4 * low):
            low *= 4
        else:
            break
    high = 2 * low
    while high > RESOLUTION * low:
        middle = math.sqrt(low * high)
        if await tries.keeps_up(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(slots=True)
class _Tries:
    """All the runs, and what they show together."""

    attempt: Attempt
    made: list[tuple[float, Summary]] = field(default_factory=list)

    async def run(self, rate_per_s: float) -> Summary:
        found = await self.attempt(rate_per_s, len(self.made))
        self.made.append((rate_per_s, found))
        return found

    async def keeps_up(self, rate_per_s: float) -> bool:
        """Tell whether enough requests are in time in one of two runs."""
        for _ in range(2):
            found = await self.run(rate_per_s)
            if found.in_time >= SHARE * found.requests:
                return True
        return False

    async def count(self, rate_per_s: float) -> tuple[int, int]:
        """Count the requests in time, and all; stop as soon as too many are late, whatever the rest would be."""
        in_time = requests = 0
        while requests < CONFIRM_REQUESTS:
            found = await self.run(rate_per_s)
            in_time += found.in_time
            requests += found.requests
            if requests - in_time > (1 - SHARE) * (CONFIRM_REQUESTS + found.requests):
                break
        return in_time, requests

    def capacity(self, rate_per_s: float, share: float, requests: int) -> Capacity:
        """Make the result. The generator was the limit if the lowest rate that failed was flawed by it."""
        too_high = min((rate for rate, _ in self.made if rate > rate_per_s), default=None)
        flaws = [flaw for rate, found in self.made if rate == too_high for flaw in found.flaws]
        return Capacity(
            rate_per_s=rate_per_s,
            share=SHARE,
            confirmed_share=share,
            confirmed_requests=requests,
            runs=[found for _, found in self.made],
            flaws=list(dict.fromkeys(flaws)),
        )
