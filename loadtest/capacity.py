"""The highest open-loop rate at which nearly all answers are in time: short runs search for it, longer ones confirm it.

The search alone flatters: where 98 % are in time, one of two runs of a hundred requests shows 99 % in three cases of
four, and it keeps the rates that were lucky. So what it finds is only where the confirmation begins, which counts five
hundred requests at a rate (one such count in five would pass there) and steps down until enough of them are in time.
"""

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from loadtest import openloop
from loadtest.openloop import Deadline, poisson
from loadtest.summary import Summary, summarise
from loadtest.workload import Request

SHARE = 0.99  # of requests answered in time
SECONDS = 4.0
LEAST_REQUESTS = 100  # in a run: fewer, and one that is late decides
CONFIRM_REQUESTS = 500  # at one rate
RESOLUTION = 1.06  # between the highest rate that is kept up with and the lowest that is not
LOWEST_PER_S = 0.1

Attempt = Callable[[float, int], Awaitable[Summary]]  # rate per second, number of the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What was found, and the runs that say so."""

    rate_per_s: float  # 0: not even the lowest rate
    share: float  # that was asked for
    confirmed_share: float  # of so many requests at the rate, none of them of the search
    confirmed_requests: int
    runs: list[Summary]  # in order: the search, then the confirmation
    flaws: list[str]  # the generator's own, where it was the limit


async def capacity(
    url: str,
    requests: Iterable[Request],
    *,
    deadline_ms: Deadline,
    start_per_s: float = 10.0,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Capacity:
    """Find the highest rate of Poisson arrivals at which 99 % of requests are answered with 200 in time."""
    requests = iter(requests)  # of which every run takes some

    async def attempt(rate_per_s: float, number: int) -> Summary:
        duration_s = max(seconds, LEAST_REQUESTS / rate_per_s)
        schedule = poisson(rate_per_s, duration_s, seed + number)
        label = f"capacity: {rate_per_s:.3g}/s"
        rows = await openloop.run(url, requests, schedule, deadline_ms=deadline_ms, label=label)
        await openloop.until_quiet(rows)
        return summarise(rows, seconds=duration_s)

    return await search(attempt, start_per_s)


async def search(attempt: Attempt, start_per_s: float) -> Capacity:
    """Find a rate by short runs, then step down from it until one is confirmed."""
    tries = _Tries(attempt)
    rate_per_s = await _found(tries, start_per_s)
    while rate_per_s >= LOWEST_PER_S:
        in_time, requests = await tries.count(rate_per_s)
        if in_time >= SHARE * requests:
            return tries.capacity(rate_per_s, in_time / requests, requests)
        rate_per_s /= RESOLUTION
    return tries.capacity(0.0, 0.0, 0)


async def _found(tries: "_Tries", start_per_s: float) -> float:
    """Halve until a rate is kept up with, double until two in a row are not, then close in between; 0 is none.

    Two in a row, and each of them tried twice: on a shared machine a short run can be unlucky.
    """
    low = start_per_s
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
    """Runs at one rate after another, and what is said by them together."""

    attempt: Attempt
    made: list[tuple[float, Summary]] = field(default_factory=list)

    async def run(self, rate_per_s: float) -> Summary:
        found = await self.attempt(rate_per_s, len(self.made))
        self.made.append((rate_per_s, found))
        return found

    async def keeps_up(self, rate_per_s: float) -> bool:
        """Whether in one of two runs enough are in time."""
        for _ in range(2):
            found = await self.run(rate_per_s)
            if found.in_time >= SHARE * found.requests:
                return True
        return False

    async def count(self, rate_per_s: float) -> tuple[int, int]:
        """Count how many are in time, of how many: no more once too many are late, whatever the rest would be."""
        in_time = requests = 0
        while requests < CONFIRM_REQUESTS:
            found = await self.run(rate_per_s)
            in_time += found.in_time
            requests += found.requests
            if requests - in_time > (1 - SHARE) * (CONFIRM_REQUESTS + found.requests):
                break
        return in_time, requests

    def capacity(self, rate_per_s: float, share: float, requests: int) -> Capacity:
        """Say what was found. The generator was the limit if it is to blame for the lowest rate that was too high."""
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
