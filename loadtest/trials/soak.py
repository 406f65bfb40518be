"""Twenty minutes at 70 % of what the server keeps up with, in pictures of many sizes and texts of many lengths.

Once the first five minutes are over, memory may grow by less than 1 MB a minute, and threads by none; at the end, idle
again, the process holds as many descriptors as at the beginning.
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
from loadtest.launch import Started
from loadtest.photo import QUESTIONS
from loadtest.summary import percentiles
from loadtest.trials import trial
from loadtest.trials.process import Held, held
from loadtest.trials.trial import Claim, Figures, at_most, equal
from loadtest.workload import Request, nonces

MINUTES, SETTLED_MINUTES = 20.0, 5.0
LOAD = 0.7
MEASURED, CLIENTS = 200, 4  # requests by which the capacity is measured, and how many ask at once then
EVERY_S = 5.0
MB_PER_MINUTE = 1.0
SIDES_PX = range(160, 1281, 80)
PICTURES = 48
IDLE_S = 2.0


def add_to(commands: Any) -> None:
    """Declare `vilt-bench soak`."""
    trial.add(commands, "soak", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Claim]]:
    requests = mixed()
    per_s = await _throughput(own.url, requests)
    before = held(own.process.pid)
    seen: list[tuple[float, Held]] = []

    async def watch() -> None:
        began_s = asyncio.get_running_loop().time()
        while True:
            seen.append(((asyncio.get_running_loop().time() - began_s) / 60, held(own.process.pid)))
            await asyncio.sleep(EVERY_S)

    watching = asyncio.create_task(watch())
    schedule = openloop.poisson(LOAD * per_s, 60 * MINUTES)
    rows = await openloop.run(own.url, requests, schedule, label="soak")
    watching.cancel()
    await asyncio.sleep(IDLE_S)  # until connections are closed
    after = held(own.process.pid)
    settled = [(minute, one) for minute, one in seen if minute >= SETTLED_MINUTES]
    slope = float(np.polyfit([minute for minute, _ in settled], [one.resident_mb for _, one in settled], 1)[0])
    threads, descriptors = [one.threads for _, one in settled], [one.descriptors for _, one in settled]
    figures = {
        "minutes": MINUTES,
        "capacity_per_s": per_s,
        "offered_per_s": len(schedule) / (60 * MINUTES),
        "outcomes": Counter(row.code for row in rows),
        "latency_ms": percentiles([row.latency_ms for row in rows if row.status == 200]),
        "before": asdict(before),
        "after": asdict(after),
        "resident_mb_by_minute": [round(one.resident_mb, 1) for minute, one in seen[:: round(60 / EVERY_S)]],
        "descriptors_least_and_most": [min(descriptors), max(descriptors)],
    }
    claims = [
        equal("answers", sum(row.status == 200 for row in rows), len(schedule)),
        at_most("growth of memory after minute 5", slope, MB_PER_MINUTE, "MB a minute"),
        equal("threads more at the end than after minute 5", max(threads) - min(threads), 0),
        at_most("descriptors, idle again", after.descriptors, before.descriptors),
    ]
    return figures, claims


def mixed(seed: int = 0) -> Iterator[Request]:
    """Ask about pictures of many sizes, each time other bytes, in questions of every length."""
    rng = random.Random(seed)  # noqa: S311 a workload, not a secret
    photos = [_photo(rng) for _ in range(PICTURES)]
    for nonce in nonces():
        path = f"/v1/vqa?{urlencode({'question': rng.choice(QUESTIONS)})}"
        yield Request(kind="vqa", path=path, content_type="image/jpeg", body=rng.choice(photos) + nonce)


def _photo(rng: random.Random) -> bytes:
    size = rng.choice(SIDES_PX), rng.choice(SIDES_PX)
    coarse = Image.frombytes("RGB", (9, 9), rng.randbytes(9 * 9 * 3))
    file = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


async def _throughput(url: str, requests: Iterator[Request]) -> float:
    """Answer requests of a few clients, each of whom asks again at once: so many a second."""
    left = iter(range(MEASURED))
    async with openloop.Client(url, timeout_s=120) as client:

        async def ask() -> None:
            for _ in left:
                row = await client.send(next(requests))
                if row.status != 200:
                    raise ValueError(f"the server refused a request: {row.code}")

        began_s = client.now_s()
        await asyncio.gather(*(ask() for _ in range(CLIENTS)))
        return MEASURED / (client.now_s() - began_s)
