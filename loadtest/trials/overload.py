"""Three times what the server keeps up with, for a minute; then a burst, after which the refused come back.

Capacity is the highest rate at which 99 % of answers are in time, and the deadline is four times what a question takes
alone. Under the overload the server has to answer as much in time as at capacity, refuse the rest at once, and spend
next to nothing on answers that come too late. After ten seconds of burst the load falls to half of capacity, and
whoever was refused asks once more after retry_after_ms: nine in ten have to get their answer then.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from loadtest import openloop, workload
from loadtest.capacity import capacity
from loadtest.launch import Started
from loadtest.load import ALONE, DEADLINE_FACTOR
from loadtest.rows import REFUSED, Row
from loadtest.summary import percentile, summarise, tail
from loadtest.trials import trial
from loadtest.trials.trial import Claim, Figures, at_least, at_most, p99
from loadtest.workload import Request

FACTOR = 3.0  # times capacity
SECONDS, ANSWERS = 60.0, 150  # in time at capacity, at least: p99 is of a hundred or more
BURST_S, AFTERWARDS_S, AFTERWARDS = 10.0, 70.0, 0.5  # the longest wait that is asked for is a minute
ALLOWED = {200, 504} | REFUSED
USES = ("answered", "late", "abandoned")  # of the engine's time


def add_to(commands: Any) -> None:
    """Declare `vilt-bench overload`."""
    trial.add(commands, "overload", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Claim]]:
    learned = workload.learn(own.url, workload.read(workload.SAMPLES, "vqa"))
    requests = workload.stream(learned.samples, "vqa")
    alone = await openloop.alone(own.url, itertools.islice(requests, ALONE))
    deadline_ms = DEADLINE_FACTOR * percentile([row.latency_ms for row in alone], 0.5)
    found = await capacity(own.url, requests, deadline_ms=deadline_ms)
    rate_per_s = found.rate_per_s
    if not rate_per_s:
        raise ValueError("the server keeps up with no rate at all")

    before = await trial.metrics(own.url)
    seconds = max(SECONDS, ANSWERS / rate_per_s)
    schedule = openloop.poisson(FACTOR * rate_per_s, seconds)
    rows = await openloop.run(own.url, requests, schedule, deadline_ms=deadline_ms, label="overload")
    after = await trial.metrics(own.url)
    overload = summarise(rows, seconds=seconds)
    names = {use: f'vilt_engine_seconds_total{{use="{use}"}}' for use in USES}
    spent_s = {use: after.get(name, 0.0) - before.get(name, 0.0) for use, name in names.items()}

    await openloop.until_quiet(rows)
    firsts, agains = await come_back(own.url, requests, rate_per_s, deadline_ms)
    refused = [row for row in firsts if row.retry_after_ms is not None]
    came_back = sum(row.status == 200 for row in agains) / max(1, len(agains))
    waits_s = [row.retry_after_ms / 1000 for row in refused if row.retry_after_ms is not None]

    figures = {
        "deadline_ms": deadline_ms,
        "capacity_per_s": rate_per_s,
        "capacity_confirmed": {"share": found.confirmed_share, "requests": found.confirmed_requests},
        "capacity_flaws": found.flaws,
        "overload": {
            "goodput_per_s": overload.goodput_per_s,
            "outcomes": overload.outcomes,
            "latency_ms": overload.latency_ms,
            "refused_after_ms": tail([row.latency_ms for row in rows if row.status in REFUSED], 0.99),
            "engine_s": spent_s,
            "flaws": overload.flaws,
        },
        "burst": {
            "firsts": Counter(row.code for row in firsts),
            "seconds": Counter(row.code for row in agains),
            "wait_s": {"p50": percentile(waits_s or [0.0], 0.5), "max": max(waits_s, default=0.0)},
        },
    }
    statuses = {row.status for row in [*rows, *firsts, *agains]}
    claims = [
        Claim(says="statuses", figure=f"{sorted(statuses)}", bound="200, 429, 503, 504", holds=statuses <= ALLOWED),
        at_least("goodput over capacity", overload.goodput_per_s / rate_per_s, 0.95),
        at_most("p99 of answers", p99([row.latency_ms for row in rows if row.status == 200]), deadline_ms, "ms"),
        at_most("engine time on late answers", spent_s["late"] / max(1e-9, sum(spent_s.values())), 0.02),
        at_least("refused who got their answer when told to come back", came_back, 0.9),
    ]
    return figures, claims


async def come_back(
    url: str, requests: Iterator[Request], rate_per_s: float, deadline_ms: float
) -> tuple[list[Row], list[Row]]:
    """Offer a burst and then half of capacity; send each that is refused once more, when it was told to."""
    burst = openloop.poisson(FACTOR * rate_per_s, BURST_S, seed=1)
    quiet = [BURST_S + at_s for at_s in openloop.poisson(AFTERWARDS * rate_per_s, AFTERWARDS_S, seed=2)]
    schedule = [*burst, *quiet]
    with tqdm(total=len(schedule), desc="burst", unit="request", disable=None, leave=False) as bar:
        async with openloop.Client(url, deadline_ms=deadline_ms) as client:

            async def ask(at_s: float, request: Request) -> tuple[Row, Row | None]:
                await client.sleep_until(at_s)
                first = await client.send(request, at_s)
                bar.update()
                if first.retry_after_ms is None:
                    return first, None
                again_s = first.done_s + first.retry_after_ms / 1000
                await client.sleep_until(again_s)
                return first, await client.send(request, again_s)

            asked = await asyncio.gather(*map(ask, schedule, requests))
    return [first for first, _ in asked], [second for _, second in asked if second is not None]
