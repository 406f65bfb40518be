"""Five thousand requests that are abandoned after 1 to 50 ms; then five hundred of people who wait.

Nobody's work may stay behind: soon nothing is left in the queue; the engine's time goes to those who wait, but for a
run that had begun when somebody left; and all of them get their answer, nobody long after those who asked later. How
long they wait is told, and no claim: on a shared machine it says what else ran there.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from loadtest import openloop, workload
from loadtest.launch import Started
from loadtest.load import ALONE
from loadtest.rows import Row
from loadtest.summary import percentile, percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Claim, Figures, at_least, at_most, equal
from loadtest.workload import Request

ABANDONED, ABANDON_S, AT_ONCE = 5_000, (0.001, 0.050), 100
NORMAL, WAITING = 500, 8  # requests, people
BEGUN = 8  # entries of a run that goes on for nobody: the largest batch on a CPU; each is granted what one takes alone
SETTLE_S = 1.0  # at least: bodies of those who have gone are in the sockets yet
BUSY = 0.5  # of the time that people wait the engine runs for them; with a small model HTTP has the rest
USES = ("answered", "late", "abandoned")


def add_to(commands: Any) -> None:
    """Declare `vilt-bench abandon`."""
    trial.add(commands, "abandon", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Claim]]:
    learned = workload.learn(own.url, workload.read(workload.SAMPLES, "vqa"))
    requests = workload.stream(learned.samples, "vqa")
    alone = await openloop.alone(own.url, itertools.islice(requests, ALONE))
    alone_ms = percentile([row.latency_ms for row in alone], 0.5)
    begun_s = BEGUN * alone_ms / 1000
    rng = random.Random(0)  # noqa: S311 a workload, not a secret
    hasty = [replace(next(requests), abandon_after_s=rng.uniform(*ABANDON_S)) for _ in range(ABANDONED)]
    before = engine_s(await trial.metrics(own.url))
    storm = await ask(own.url, hasty, AT_ONCE, "abandoned")
    left = engine_s(await trial.metrics(own.url))
    waiting = await trial.settled(own.url, "vilt_queue_entries", max(SETTLE_S, begun_s))
    in_flight = await trial.settled(own.url, "vilt_in_flight_entries", max(SETTLE_S, begun_s))
    rows = await ask(own.url, list(itertools.islice(requests, NORMAL)), WAITING, "normal")
    found = await trial.metrics(own.url)
    storm_s, normal_s = between(before, left), between(left, engine_s(found))
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
    claims = [
        equal("entries in the queue, once all have gone", waiting, 0.0),
        equal("entries in flight, once all have gone", in_flight, 0.0),
        equal("answered of the 500 who wait", sum(row.status == 200 for row in rows), NORMAL),
        equal("wrong answers", sum(row.correct is False for row in rows), 0),
        at_most("engine's time for those who have gone, while others wait", gone_s, begun_s, "s"),
        at_least("share of the time that others wait in which it runs for them", normal_s["answered"] / waited_s, BUSY),
        at_most("p99 of answers to others while somebody waits", percentile(passed(rows), 0.99), 2 * (WAITING - 1)),
    ]
    return figures, claims


def engine_s(found: Mapping[str, float]) -> dict[str, float]:
    """Read off the metrics what became of the engine's seconds."""
    return {use: found.get(f'vilt_engine_seconds_total{{use="{use}"}}', 0.0) for use in USES}


def between(earlier: Mapping[str, float], later: Mapping[str, float]) -> dict[str, float]:
    """Tell by how much each has grown."""
    return {name: later[name] - earlier[name] for name in later}


def passed(rows: Sequence[Row]) -> list[int]:
    """Count for each request how many others were answered while it waited: where it is fair, the seven before."""
    return [sum(row.sent_s < other.done_s < row.done_s for other in rows) for row in rows]


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
