"""Twenty minutes at 70 % of capacity, with pictures of many sizes and texts of many lengths.

As in overload, capacity is the highest rate at which 99 % of requests are answered within four times what one takes
alone, here for this mix. The soak itself has no deadline: every request must be answered. After the first five minutes,
memory may grow by less than 1 MB per minute, and the threads not at all; at the end, idle again, the process may hold
no more descriptors than at the beginning.

Takes about 25 minutes on two cores with shapes, 35 at full size.
"""

import asyncio
import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from loadtest import openloop
from loadtest.capacity import capacity
from loadtest.launch import Started
from loadtest.openloop import DEADLINE_FACTOR
from loadtest.photo import QUESTIONS
from loadtest.summary import percentiles
from loadtest.trials import trial
from loadtest.trials.process import Held, held
from loadtest.trials.trial import Check, Figures, at_most, equal
from loadtest.workload import Request, nonces

MINUTES, SETTLED_MINUTES = 20.0, 5.0
LOAD = 0.7
EVERY_S = 5.0
MB_PER_MINUTE = 1.0
SIDES_PX = range(160, 1281, 80)
PICTURES = 48
SENTENCES = 4  # in a text, at most: up to all the tokens that a model reads
IDLE_S = 2.0

Seen = tuple[float, Held]  # minutes from the beginning


def add_to(commands: Any) -> None:
    """Declare `vilt-bench soak`."""
    trial.add(commands, "soak", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    requests = mixed()
    deadline_ms = DEADLINE_FACTOR * (await openloop.alone(own.url, requests)).p50
    found = await capacity(own.url, requests, deadline_ms=deadline_ms)
    before, metrics = held(own.process.pid), await trial.metrics(own.url)
    schedule = openloop.poisson(LOAD * found.rate_per_s, 60 * MINUTES)
    seen: list[Seen] = []
    watching = asyncio.create_task(_watch(own.process.pid, seen))
    rows = await openloop.run(own.url, requests, schedule, label="soak")
    watching.cancel()
    await asyncio.sleep(IDLE_S)  # for the connections to close
    after, engine_s = held(own.process.pid), sum(trial.engine_s(await trial.metrics(own.url), metrics).values())
    settled = [one for minute, one in seen if minute >= SETTLED_MINUTES]
    threads, descriptors = [one.threads for one in settled], [one.descriptors for one in settled]
    figures = {
        "minutes": MINUTES,
        "deadline_ms_of_capacity": deadline_ms,
        "capacity_per_s": found.rate_per_s,
        "capacity_confirmed": {"share": found.confirmed_share, "requests": found.confirmed_requests},
        "capacity_flaws": found.flaws,
        "offered_per_s": len(schedule) / (60 * MINUTES),
        "engine_busy_ratio": engine_s / (60 * MINUTES),
        "outcomes": Counter(row.code for row in rows),
        "latency_ms": percentiles([row.latency_ms for row in rows if row.status == 200]),
        "before": asdict(before),
        "after": asdict(after),
        "resident_mb_by_minute": [round(one.resident_mb, 1) for minute, one in seen[:: round(60 / EVERY_S)]],
        "descriptors_least_and_most": [min(descriptors), max(descriptors)],
    }
    checks = [
        equal("answers", sum(row.status == 200 for row in rows), len(schedule)),
        at_most("growth of memory after minute 5", growth(seen), MB_PER_MINUTE, "MB per minute"),
        equal("growth of threads after minute 5", max(threads) - min(threads), 0),
        at_most("descriptors, idle again", after.descriptors, before.descriptors),
    ]
    return figures, checks


def growth(seen: Sequence[Seen]) -> float:
    """Fit a line through the memory since the server had settled.

    Units: MB per minute.
    """
    settled = [(minute, one.resident_mb) for minute, one in seen if minute >= SETTLED_MINUTES]
    return float(np.polyfit([minute for minute, _ in settled], [megabytes for _, megabytes in settled], 1)[0])


def mixed(seed: int = 0) -> Iterator[Request]:
    """Ask about pictures of many sizes, each with different bytes, in texts of every length."""
    rng = random.Random(seed)  # noqa: S311 a workload, not a secret
    photos = [_photo(rng) for _ in range(PICTURES)]
    for nonce in nonces():
        question = " ".join(rng.sample(QUESTIONS, rng.randint(1, SENTENCES)))
        path = f"/v1/vqa?{urlencode({'question': question})}"
        yield Request(kind="vqa", path=path, content_type="image/jpeg", body=rng.choice(photos) + nonce)


def _photo(rng: random.Random) -> bytes:
    size = rng.choice(SIDES_PX), rng.choice(SIDES_PX)
    coarse = Image.frombytes("RGB", (9, 9), rng.randbytes(9 * 9 * 3))
    file = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


async def _watch(pid: int, seen: list[Seen]) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while True:
        minute = (loop.time() - began_s) / 60
        seen.append((minute, await asyncio.to_thread(held, pid)))  # a thread: the requests have their times
        await asyncio.sleep(EVERY_S)
