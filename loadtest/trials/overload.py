"""Three times the capacity for a minute; then a burst, after which those who were refused come back.

Capacity is the highest rate at which 99 % of requests are answered in time, and the deadline is four times what a
question takes alone. Under overload the server must answer in time at 95 % of capacity, and at 70 % of the rate of a
single client that asks without pause; refuse the rest at once; and spend next to no engine time on answers that come
too late. Answers may take 10 ms longer than the deadline, which the server counts from when it has read a request's
head: a client's latency counts from its schedule. After ten seconds of burst the load falls to half of capacity, and
every client that was refused asks once more after retry_after_ms: nine in ten must be answered then.

Takes about five minutes on two cores with shapes, a quarter of an hour at full size.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from loadtest import openloop
from loadtest.capacity import capacity
from loadtest.launch import Started
from loadtest.openloop import DEADLINE_FACTOR
from loadtest.rows import REFUSED, Row
from loadtest.summary import LATE_MS, percentile, summarise, tail
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_least, at_most, none_wrong, p99
from loadtest.workload import Request

FACTOR = 3.0  # times capacity
SECONDS, ANSWERS = 60.0, 150  # at least so many in time at capacity: p99 takes a hundred or more
BURST_S, AFTERWARDS_S, AFTERWARDS = 10.0, 70.0, 0.5  # the server asks for waits of up to a minute
ALLOWED = {200, 504} | REFUSED
OF_CAPACITY = 0.95
OF_ALONE = 0.7  # times the rate of one client that asks without pause; on two cores 0.95 at full size, 0.78 with shapes
REFUSED_WITHIN_MS = 50.0  # 10 at full size, 45 with shapes, whose clients need the cores, too
MOST_EXPIRED = 0.05  # share of requests; none at full size, 0.03 with shapes


def add_to(commands: Any) -> None:
    """Declare `vilt-bench overload`."""
    trial.add(commands, "overload", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    requests = trial.questions(own.url)
    alone_before_ms = await openloop.one_by_one(own.url, requests)
    deadline_ms = DEADLINE_FACTOR * percentile(alone_before_ms, 0.5)
    found = await capacity(own.url, requests, deadline_ms=deadline_ms)
    before = await trial.metrics(own.url)
    seconds = max(SECONDS, ANSWERS / found.rate_per_s)
    schedule = openloop.poisson(FACTOR * found.rate_per_s, seconds)
    rows = await openloop.run(own.url, requests, schedule, deadline_ms=deadline_ms, label="overload")
    spent_s = trial.engine_s(await trial.metrics(own.url), before)
    await openloop.until_quiet(rows)
    alone_after_ms = await openloop.one_by_one(own.url, requests)  # a shared machine may have become slower
    alone_p50_ms = percentile([*alone_before_ms, *alone_after_ms], 0.5)
    firsts, agains = await come_back(own.url, requests, found.rate_per_s, deadline_ms)

    overload, checks = judge(
        rows,
        seconds,
        capacity_per_s=found.rate_per_s,
        alone_p50_ms=alone_p50_ms,
        deadline_ms=deadline_ms,
        spent_s=spent_s,
    )
    burst, came_back = judge_burst(firsts, agains)
    figures = {
        "alone_p50_ms": alone_p50_ms,
        "alone_p50_ms_before_and_after": [percentile(alone_before_ms, 0.5), percentile(alone_after_ms, 0.5)],
        "deadline_ms": deadline_ms,
        "capacity_per_s": found.rate_per_s,
        "capacity_confirmed": {"share": found.confirmed_share, "requests": found.confirmed_requests},
        "capacity_flaws": found.flaws,
        "overload": overload,
        "burst": burst,
    }
    return figures, [*judge_all([*rows, *firsts, *agains]), *checks, came_back]


def judge_all(rows: Sequence[Row]) -> list[Check]:
    """Check what holds for every request."""
    statuses = {row.status for row in rows}
    allowed = Check(
        says="statuses", figure=f"{sorted(statuses)}", bound="200, 429, 503, 504", holds=statuses <= ALLOWED
    )
    return [allowed, none_wrong(rows)]


def judge(
    rows: Sequence[Row],
    seconds: float,
    *,
    capacity_per_s: float,
    alone_p50_ms: float,
    deadline_ms: float,
    spent_s: dict[str, float],
) -> tuple[Figures, list[Check]]:
    """Summarise and check the overload."""
    found = summarise(rows, seconds=seconds)
    least_per_s = max(OF_CAPACITY * capacity_per_s, OF_ALONE * min(1000 / alone_p50_ms, len(rows) / seconds))
    refused_ms = [row.latency_ms for row in rows if row.status in REFUSED]
    figures = {
        "goodput_per_s": found.goodput_per_s,
        "outcomes": found.outcomes,
        "latency_ms": found.latency_ms,
        "lag_ms": found.lag_ms,
        "outside_ms": found.outside_ms,
        "refused_after_ms": tail(refused_ms, 0.99),
        "engine_s": spent_s,
        "flaws": found.flaws,
    }
    expired = sum(row.status == 504 for row in rows) / len(rows)
    return figures, [
        at_least("goodput", found.goodput_per_s, least_per_s, "per second"),
        # The server's deadline counts from when it has read the head: without lag, connecting, and the answer's way.
        at_most(
            "p99 of answers", p99([row.latency_ms for row in rows if row.status == 200]), deadline_ms + LATE_MS, "ms"
        ),
        at_most("p99 of refusals", p99(refused_ms), REFUSED_WITHIN_MS, "ms"),
        at_most("share that failed after the deadline (504)", expired, MOST_EXPIRED),
        at_most("engine time on late answers", spent_s["late"] / max(1e-9, sum(spent_s.values())), 0.02),
    ]


def judge_burst(firsts: Sequence[Row], agains: Sequence[Row]) -> tuple[Figures, Check]:
    """Summarise the burst, and check what became of those who were refused."""
    waits_s = [row.retry_after_ms / 1000 for row in firsts if row.retry_after_ms is not None]
    figures = {
        "firsts": Counter(row.code for row in firsts),
        "seconds": Counter(row.code for row in agains),
        "wait_s": {"p50": percentile(waits_s or [0.0], 0.5), "max": max(waits_s, default=0.0)},
    }
    answered = sum(row.status == 200 for row in agains) / max(1, len(agains))
    return figures, at_least("share answered of those who came back when told to", answered, 0.9)


async def come_back(
    url: str, requests: Iterator[Request], rate_per_s: float, deadline_ms: float
) -> tuple[list[Row], list[Row]]:
    """Offer a burst and then half of capacity; send each request that is refused once more, when it was told to."""
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
