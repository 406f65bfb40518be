"""Sixteen clients keep sending 40-megapixel photos while a probe asks whether the process is alive.

Decoding must not block the event loop, or an orchestrator would restart a healthy process: the p99 of /livez, probed 50
times per second however slow the answers are, must be within 100 ms of the scheduled time. Memory must stay within what
the decode permits allow, a picture and a copy of it each, plus the bodies that wait.

Takes about a minute.
"""

import asyncio
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from loadtest import openloop, workload
from loadtest.launch import Started
from loadtest.photo import draw
from loadtest.rows import Row
from loadtest.summary import percentile, percentiles
from loadtest.trials import trial
from loadtest.trials.process import resident_mb
from loadtest.trials.trial import Check, Figures, at_least, at_most, equal
from loadtest.workload import Request

WIDTH_PX, HEIGHT_PX = 8_000, 5_000
AT_ONCE = 16
SECONDS = 30.0
PROBES_PER_S = 50
PROBE_WITHIN_S = 30.0
ALIVE_MS = 100.0
PERMITS = 2
PIXEL_BYTES = 4  # as Pillow keeps RGB
PICTURES = 2  # in one decode thread
BODIES = 3  # copies of a body: as received in parts, joined, and the picture within
MB = 1e6


def add_to(commands: Any) -> None:
    """Declare `vilt-bench storm`."""
    trial.add(commands, "storm", __doc__, run, ["--decode-threads", str(PERMITS)])


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    body = photo()
    nonce = workload.nonces()
    path = "/v1/vqa?question=how+many+circles+are+there"
    async with openloop.Client(own.url, timeout_s=120) as client:
        first = await client.send(Request(kind="vqa", path=path, content_type="image/jpeg", body=draw()))
        before_mb = resident_mb(own.process.pid, "VmHWM")
        until_s = client.now_s() + SECONDS
        rows: list[Row] = []

        async def ask_on() -> None:
            while client.now_s() < until_s:
                request = Request(kind="vqa", path=path, content_type="image/jpeg", body=body + next(nonce))
                rows.append(await client.send(request))

        probing = asyncio.create_task(probed(own.url, SECONDS))
        await asyncio.gather(*(ask_on() for _ in range(AT_ONCE)))
        alive_ms = await probing
    peak_mb = resident_mb(own.process.pid, "VmHWM")
    pictures_bytes = PERMITS * PICTURES * PIXEL_BYTES * WIDTH_PX * HEIGHT_PX
    allowed_mb = before_mb + (pictures_bytes + AT_ONCE * BODIES * len(body)) / MB
    figures = {
        "photo_bytes": len(body),
        "outcomes": Counter(row.code for row in rows),
        "livez_ms": percentiles(alive_ms),
        "before_mb": before_mb,
        "peak_mb": peak_mb,
        "permits": PERMITS,
    }
    checks = [
        equal("a question before the storm", first.code, "ok"),
        responsive(alive_ms),
        at_most("peak memory", peak_mb, allowed_mb, "MB"),
        *answered(rows),
    ]
    return figures, checks


def answered(rows: Sequence[Row]) -> list[Check]:
    """Check how the photos were answered; where none is, none may have been decoded."""
    statuses = Counter(row.status for row in rows)
    allowed = Check(
        says="statuses of the photos",
        figure=f"{dict(statuses)}",
        bound="200, 503, 504",
        holds=statuses.keys() <= {200, 503, 504},
    )
    return [allowed, at_least("photos answered", statuses[200], 1)]


async def probed(url: str, seconds: float) -> list[float]:
    """Ask /livez at even intervals, whether or not earlier probes were answered.

    Units: milliseconds from the scheduled time to the answer; infinite unless it is a 200.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=PROBE_WITHIN_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def probe(at_s: float) -> float:
            try:
                async with session.get(f"{url}/livez") as response:
                    await response.read()
                    is_alive = response.status == 200
            except (aiohttp.ClientError, OSError):
                is_alive = False
            return 1000 * (loop.time() - began_s - at_s) if is_alive else float("inf")

        asked = []
        for at_s in openloop.constant(PROBES_PER_S, seconds):
            await asyncio.sleep(began_s + at_s - loop.time())
            asked.append(asyncio.create_task(probe(at_s)))
        return await asyncio.gather(*asked)


def responsive(alive_ms: Sequence[float]) -> Check:
    """Check that /livez was answered soon enough for an orchestrator."""
    return at_most("p99 of /livez", percentile(alive_ms, 0.99), ALIVE_MS, "ms")


def photo() -> bytes:
    """Make a photo of 40 megapixels: smooth, with a camera's grain."""
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float32)
    waves = [np.sin(x / 300 + phase) * np.cos(y / 200 - phase) for phase in (0.0, 1.0, 2.0)]
    pixels = np.stack([110 + 80 * wave for wave in waves], axis=-1)
    pixels += np.random.default_rng(0).normal(0, 4, pixels.shape[:2]).astype(np.float32)[..., None]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()
