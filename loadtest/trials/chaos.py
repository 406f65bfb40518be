"""10,000 requests from careless and hostile clients, to a server whose engine fails in every tenth run.

Three in ten are malformed, and all hang up after 1 to 333 ms. Then the engine stops failing: 500 patient requests must
get 500 right answers, nothing may be left in the queue, and the process may hold no more descriptors and threads than
before.

The failing server is that of the tests, in tests/faulty.py, which has to be on the path:

    PYTHONPATH=tests python -m loadtest chaos

Takes about two minutes on two cores with shapes, seven at full size.
"""

import asyncio
import itertools
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from loadtest.launch import Started
from loadtest.trials import trial
from loadtest.trials.abandon import ask
from loadtest.trials.process import Held, held
from loadtest.trials.trial import Check, Figures, at_most, equal
from loadtest.workload import BOUNDARY, Request

REQUESTS, MALFORMED, AT_ONCE = 10_000, 0.3, 8
SHORTEST_S, LONGEST_S = 0.001, 0.333
NORMAL, WAITING = 500, 8  # requests, clients
SETTLE_S = 10.0
FAULTY = "faulty"  # the module; SIGUSR1 turns its faults off and on
SERVER_ERRORS = set(range(500, 600)) - {503, 504}  # must never be caused by bad input; 503 and 504 are about time
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"

Spoil = Callable[[Request, random.Random], Request]


def add_to(commands: Any) -> None:
    """Declare `vilt-bench chaos`."""
    trial.add(commands, "chaos", __doc__, run, module=FAULTY)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    own.process.send_signal(signal.SIGUSR1)  # no faults while the right answers are learned
    requests = trial.questions(own.url)
    await ask(own.url, list(itertools.islice(requests, NORMAL)), AT_ONCE, "before")
    # Like what follows, as thread pools grow when more threads are first needed at once.
    await ask(own.url, list(itertools.islice(hostile(requests), NORMAL)), AT_ONCE, "before")
    before = await _idle(own)
    own.process.send_signal(signal.SIGUSR1)
    storm = await ask(own.url, list(itertools.islice(hostile(requests), REQUESTS)), AT_ONCE, "chaos")
    own.process.send_signal(signal.SIGUSR1)
    rows = await ask(own.url, list(itertools.islice(requests, NORMAL)), WAITING, "normal")
    waiting = await trial.settled(own.url, "vilt_queue_entries", SETTLE_S)
    in_flight = await trial.settled(own.url, "vilt_in_flight_entries", SETTLE_S)
    body_bytes = await trial.settled(own.url, "vilt_body_bytes", SETTLE_S)
    after = await _idle(own, before)
    spoiled = [row for row in storm if row.kind == "malformed"]
    figures = {
        "chaos": {
            kind: Counter(row.code for row in storm if row.kind == kind) for kind in sorted({r.kind for r in storm})
        },
        "normal": Counter(row.code for row in rows),
        "before": asdict(before),
        "after": asdict(after),
    }
    checks = [
        equal("malformed requests answered with a 5xx", sum(row.status in SERVER_ERRORS for row in spoiled), 0),
        equal("engine faults occurred", any(row.code == "engine_fault" for row in storm), True),
        equal("right answers to the 500 patient requests", sum(row.correct is True for row in rows), NORMAL),
        equal("entries in the queue", waiting, 0.0),
        equal("entries in flight", in_flight, 0.0),
        equal("bytes of bodies in flight", body_bytes, 0.0),
        at_most("descriptors", after.descriptors, before.descriptors),
        at_most("threads", after.threads, before.threads),
    ]
    return figures, checks


def hostile(requests: Iterator[Request], seed: int = 0) -> Iterator[Request]:
    """Spoil three in ten requests, and abandon all of them."""
    rng = random.Random(seed)  # noqa: S311 a workload, not a secret
    while True:
        request = replace(next(requests), abandon_after_s=rng.uniform(SHORTEST_S, LONGEST_S))
        if rng.random() < MALFORMED:
            yield replace(rng.choice(WAYS)(request, rng), kind="malformed", expected=None)
        else:
            yield request


def _cut(request: Request, rng: random.Random) -> Request:
    return replace(request, body=request.body[: rng.randrange(len(request.body) // 2)])


def _noise(request: Request, rng: random.Random) -> Request:
    return replace(request, body=rng.randbytes(rng.randrange(20_000)))


def _flipped(request: Request, rng: random.Random) -> Request:
    body = bytearray(request.body)
    for _ in range(50):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return replace(request, body=bytes(body))


def _no_question(request: Request, _: random.Random) -> Request:
    return replace(request, path="/v1/vqa")


def _json(request: Request, rng: random.Random) -> Request:
    body = rng.choice([b"", b"[" * 10_000, b'{"image": "', b'{"image": 1, "question": null}', b"\xff\xfe"])
    return replace(request, content_type="application/json", body=body)


def _multipart(request: Request, rng: random.Random) -> Request:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"\r\n\r\n'.encode()
    body = rng.choice([b"", part, part * 100, part + request.body, b"--" + rng.randbytes(100)])
    return replace(request, content_type=MULTIPART, body=body)


def _type(request: Request, rng: random.Random) -> Request:
    return replace(request, content_type=rng.choice(["text/plain", "image", "multipart/form-data", "application/x"]))


WAYS: Sequence[Spoil] = (_cut, _noise, _flipped, _no_question, _json, _multipart, _type)


async def _idle(own: Started, until: Held | None = None) -> Held:
    """Wait until the process holds no more than before, or for SETTLE_S, and return what it holds then."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SETTLE_S
    async with asyncio.timeout(2 * SETTLE_S):
        while loop.time() < until_s:
            found = held(own.process.pid)
            if until and found.descriptors <= until.descriptors and found.threads <= until.threads:
                break
            await asyncio.sleep(0.1)
    return found
