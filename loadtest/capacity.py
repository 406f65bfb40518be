"""The highest open-loop rate at which nearly all answers are in time, by short runs at one rate after another."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from loadtest.openloop import Deadline, poisson, run
from loadtest.summary import Summary, summarise
from loadtest.workload import Request

SHARE = 0.99  # of requests answered in time
SECONDS = 4.0
LEAST_REQUESTS = 100  # in a run: fewer, and one that is late decides
RESOLUTION = 1.06  # between the highest rate that is kept up with and the lowest that is not
LOWEST_PER_S = 0.1
PAUSE_S = 0.5  # after a run that overloaded the server, before the next

Attempt = Callable[[float, int], Awaitable[Summary]]  # rate per second, number of the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What was found, and the runs that say so."""

    rate_per_s: float  # 0: not even the lowest rate
    share: float
    runs: list[Summary]  # in the order of the search
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
        rows = await run(url, requests, schedule, deadline_ms=deadline_ms, label=f"capacity: {rate_per_s:.0f}/s")
        await asyncio.sleep(PAUSE_S)
        return summarise(rows, seconds=duration_s)

    return await search(attempt, start_per_s)


async def search(attempt: Attempt, start_per_s: float) -> Capacity:
    """Halve until a rate is kept up with, double until two in a row are not, then close in between.

    Two in a row, and each of them tried twice: on a shared machine a short run can be unlucky.
    """
    runs: list[Summary] = []

    async def keeps_up(rate_per_s: float) -> bool:
        for _ in range(2):
            runs.append(await attempt(rate_per_s, len(runs)))
            if runs[-1].in_time >= SHARE * runs[-1].requests:
                return True
        return False

    low = start_per_s
    while not await keeps_up(low):
        low /= 2
        if low < LOWEST_PER_S:
            return Capacity(rate_per_s=0.0, share=SHARE, runs=runs, flaws=runs[-1].flaws)
    while True:
        if await keeps_up(2 * low):
            low *= 2
        elif await keeps_up(4 * low):
            low *= 4
        else:
            break
    high = 2 * low
    while high > RESOLUTION * low:
        middle = math.sqrt(low * high)
        if await keeps_up(middle):
            low = middle
        else:
            high = middle
    beyond = [flaw for one in runs if one.offered_per_s > low for flaw in one.flaws]
    return Capacity(rate_per_s=low, share=SHARE, runs=runs, flaws=list(dict.fromkeys(beyond)))
