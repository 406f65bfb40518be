"""Questions beside long ranks: one client keeps a rank of 200 candidates in flight while questions come evenly.

They come at a quarter of the rate of a client that asks without pause, whether or not earlier ones have been answered.
A question may wait for the slice of a rank that is running, but not longer: its p99 has to stay within 2.5 times what
it takes alone, and the ranks have to finish nevertheless.

Takes about two minutes.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from loadtest import openloop, workload
from loadtest.launch import Started
from loadtest.rows import Row
from loadtest.summary import percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_least, at_most, none_wrong, p99
from loadtest.workload import Request, Sample

CANDIDATES = 200
LOAD = 0.25  # of the rate of one client that asks without pause
SECONDS, QUESTIONS = 60.0, 150  # at least so many questions: p99 takes a hundred or more
RANK_WITHIN_S = 600.0


def add_to(commands: Any) -> None:
    """Declare `vilt-bench blocking`."""
    trial.add(commands, "blocking", __doc__, run, ["--deadline-ms", f"{1000 * RANK_WITHIN_S:.0f}"])


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    questions = trial.questions(own.url)
    alone_ms = await openloop.alone(own.url, questions)
    async with openloop.Client(own.url, timeout_s=RANK_WITHIN_S) as client:
        rate_per_s = LOAD * 1000 / alone_ms.p50
        seconds = max(SECONDS, QUESTIONS / rate_per_s)
        ranking = asyncio.create_task(_rank_on(client, 1 + seconds))
        await asyncio.sleep(1)  # by then the first rank is running
        rows = await openloop.run(own.url, questions, openloop.constant(rate_per_s, seconds), label="blocking")
        ranks = await ranking
    latencies_ms = [row.latency_ms for row in rows]
    figures = {
        "alone_ms": alone_ms,
        "asked_per_s": rate_per_s,
        "beside_ranks_ms": percentiles(latencies_ms),
        "questions": len(rows),
        "ranks": [{"status": rank.status, "s": rank.latency_ms / 1000} for rank in ranks],
    }
    checks = [
        none_wrong([*rows, *ranks]),
        at_most("p99 of questions over the median of one alone", p99(latencies_ms) / alone_ms.p50, 2.5),
        at_least("share of questions answered", sum(row.status == 200 for row in rows) / len(rows), 1.0),
        at_least("share of ranks answered", sum(rank.status == 200 for rank in ranks) / len(ranks), 1.0),
    ]
    return figures, checks


async def _rank_on(client: openloop.Client, seconds: float) -> list[Row]:
    """Keep one rank in flight as long as questions are asked."""
    requests, rows = ranks(), []
    until_s = client.now_s() + seconds
    while client.now_s() < until_s:
        rows.append(await client.send(next(requests)))
    return rows


def ranks() -> Iterator[Request]:
    """Make ranks of 200 pictures for a text, with no two pictures alike."""
    (sample,) = [one for one in workload.read(workload.SAMPLES, "rank") if len(one.images) > 1][:1]
    nonce = workload.nonces()
    for text in itertools.cycle(sample.fields):
        images = tuple(
            (field, media_type, data + next(nonce))
            for field, media_type, data in itertools.islice(itertools.cycle(sample.images), CANDIDATES)
        )
        many: Sample = replace(sample, fields=(text,), images=images, expected=None)
        yield many.request()
