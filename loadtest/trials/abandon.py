"""5,000 requests are abandoned after 1 to 50 ms; then 500 patient requests follow.

Abandoned work must leave the queue soon, and must not take engine time from those who wait, except for a run that had
already begun. Every patient request must be answered, and in about the order of arrival. Their latency is reported but
not checked: on a shared machine it depends on what else runs.

Takes about half a minute on two cores with shapes, two minutes at full size.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from loadtest import openloop
from loadtest.launch import Started
from loadtest.rows import ABANDONED as GONE
from loadtest.rows import Row
from loadtest.summary import percentile, percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_least, at_most, equal, none_wrong
from loadtest.workload import Request

ABANDONED, ABANDON_S, AT_ONCE = 5_000, (0.001, 0.050), 100
NORMAL, WAITING = 500, 8  # requests, clients
BEGUN = 8  # entries in a run that had begun: the largest batch on a CPU; each may take as long as one alone
SETTLE_S = 1.0  # at least: bodies of abandoned requests are still in the sockets
BUSY = 0.5  # of the time that clients wait, the engine has to run for them; with a small model HTTP takes the rest


def add_to(commands: Any) -> None:
    """Declare `vilt-bench abandon`."""
    trial.add(commands, "abandon", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    requests = trial.questions(own.url)
    alone_ms = (await openloop.alone(own.url, requests)).p50
    begun_s = BEGUN * alone_ms / 1000
    rng = random.Random(0)  # noqa: S311 a workload, not a secret
    hasty = [replace(next(requests), abandon_after_s=rng.uniform(*ABANDON_S)) for _ in range(ABANDONED)]
    before = await trial.metrics(own.url)
    storm = await ask(own.url, hasty, AT_ONCE, "abandoned")
    left = await trial.metrics(own.url)
    waiting = await trial.settled(own.url, "vilt_queue_entries", max(SETTLE_S, begun_s))
    in_flight = await trial.settled(own.url, "vilt_in_flight_entries", max(SETTLE_S, begun_s))
    rows = await ask(own.url, list(itertools.islice(requests, NORMAL)), WAITING, "normal")
    found = await trial.metrics(own.url)
    storm_s, normal_s = trial.engine_s(left, before), trial.engine_s(found, left)
    waited_s = max(row.done_s for row in rows) - min(row.sent_s for row in rows)
    gone_s = sum(normal_s.values()) - normal_s["answered"]
    figures = {
        "storm": Counter(row.code for row in storm),
        "normal": Counter(row.code for row in rows),
        "alone_p50_ms": alone_ms,
        "normal_ms": percentiles([row.latency_ms for row in rows]),
        "engine_s": {"storm": storm_s, "normal": normal_s},
        "metrics": {
            name: value
            for name, value in found.items()
            if name.startswith(("vilt_engine_seconds_total", "vilt_dropped", "vilt_batch_entries_", "vilt_requests"))
            and "bucket" not in name
        },
    }
    checks = [
        at_least("requests abandoned, of 5,000", sum(row.code == GONE for row in storm), 1),
        equal("entries in the queue, once all are abandoned", waiting, 0.0),
        equal("entries in flight, once all are abandoned", in_flight, 0.0),
        equal("patient requests answered, of 500", sum(row.status == 200 for row in rows), NORMAL),
        none_wrong([*storm, *rows]),
        at_most("engine time on abandoned requests, while others wait", gone_s, begun_s, "s"),
        at_least(
            "share of the time that others wait in which the engine runs for them",
            normal_s["answered"] / waited_s,
            BUSY,
        ),
        at_most(
            "p99 of the number of others answered while a request waits",
            percentile(passed(rows), 0.99),
            2 * (WAITING - 1),
        ),
    ]
    return figures, checks


def passed(rows: Sequence[Row]) -> list[int]:
    """Count the others that were answered while each request waited; in a fair order, the seven before it."""
    return [sum(row.sent_s < other.done_s < row.done_s for other in rows) for row in rows]


async def ask(url: str, requests: Sequence[Request], at_once: int, label: str) -> list[Row]:
    """Send requests from so many clients, each of which sends its next as soon as the last is answered or abandoned."""
    left, rows = iter(requests), []
    with tqdm(total=len(requests), desc=label, unit="request", disable=None, leave=False) as bar:
        async with openloop.Client(url) as client:

            async def ask_on() -> None:
                for request in left:
                    rows.append(await client.send(request))
                    bar.update()

            await asyncio.gather(*(ask_on() for _ in range(at_once)))
    return rows
