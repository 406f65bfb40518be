"""Five thousand requests that are abandoned after 1 to 50 ms; then five hundred of people who wait.

Nobody's work may stay behind: all of those who wait get their answer, nothing is left in the queue, and the engine's
time goes to them, but for runs that had begun when somebody left.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from loadtest import openloop, workload
from loadtest.launch import Started
from loadtest.rows import Row
from loadtest.summary import percentile
from loadtest.trials import trial
from loadtest.trials.trial import Claim, Figures, equal
from loadtest.workload import Request

ABANDONED, ABANDON_S, AT_ONCE = 5_000, (0.001, 0.050), 100
NORMAL, WAITING = 500, 8  # requests, people
SETTLE_S = 10.0


def add_to(commands: Any) -> None:
    """Declare `vilt-bench abandon`."""
    trial.add(commands, "abandon", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Claim]]:
    learned = workload.learn(own.url, workload.read(workload.SAMPLES, "vqa"))
    requests = workload.stream(learned.samples, "vqa")
    rng = random.Random(0)  # noqa: S311 a workload, not a secret
    hasty = [replace(next(requests), abandon_after_s=rng.uniform(*ABANDON_S)) for _ in range(ABANDONED)]
    storm = await ask(own.url, hasty, AT_ONCE, "abandoned")
    rows = await ask(own.url, list(itertools.islice(requests, NORMAL)), WAITING, "normal")
    waiting = await trial.settled(own.url, "vilt_queue_entries", SETTLE_S)
    in_flight = await trial.settled(own.url, "vilt_in_flight_entries", SETTLE_S)
    found = await trial.metrics(own.url)
    figures = {
        "storm": Counter(row.code for row in storm),
        "normal": Counter(row.code for row in rows),
        "normal_p99_ms": percentile([row.latency_ms for row in rows], 0.99),
        "metrics": {
            name: value
            for name, value in found.items()
            if name.startswith(("vilt_engine_seconds_total", "vilt_dropped", "vilt_batch_entries_", "vilt_requests"))
            and "bucket" not in name
        },
    }
    claims = [
        equal("answered of the 500 who wait", sum(row.status == 200 for row in rows), NORMAL),
        equal("wrong answers", sum(row.correct is False for row in rows), 0),
        equal("entries in the queue", waiting, 0.0),
        equal("entries in flight", in_flight, 0.0),
    ]
    return figures, claims


async def ask(url: str, requests: Sequence[Request], at_once: int, label: str) -> list[Row]:
    """Send requests from so many people, each of whom asks again as soon as there is an answer, or no patience left."""
    left, rows = iter(requests), []
    with tqdm(total=len(requests), desc=label, unit="request", disable=None, leave=False) as bar:
        async with openloop.Client(url) as client:

            async def person() -> None:
                for request in left:
                    rows.append(await client.send(request))
                    bar.update()

            await asyncio.gather(*(person() for _ in range(at_once)))
    return rows
