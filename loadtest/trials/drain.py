"""SIGTERM at full load, from clients that keep their connections and go on asking; then kill -9 and a restart.

Until the server stops listening, every request must get a complete response, and the exit code must be 0. After kill -9
the server must be ready within 5 s, because it keeps what it has measured of the model.

Takes about half a minute.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp

from loadtest import workload
from loadtest.launch import Started, ended, started
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_least, at_most, equal

CLIENTS = 32
BEFORE_S = 5.0
ANSWERED_WITHIN_S = 60.0  # after the server has ended
LOST = "lost"
NOT_CONNECTED = "not connected"  # the server no longer listens, so nothing was accepted


def add_to(commands: Any) -> None:
    """Declare `vilt-bench drain`."""
    trial.add(commands, "drain", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    requests = trial.questions(own.url)
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    is_over = False

    async def client() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            while True:
                request = next(requests)
                outcome = await _send(session, own.url, request)
                (after if is_over else before)[outcome] += 1
                if outcome in {NOT_CONNECTED, LOST}:
                    return

    asking = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    await asyncio.sleep(BEFORE_S)
    own.process.send_signal(signal.SIGTERM)
    is_over, at_s = True, time.monotonic()
    exit_code = await asyncio.to_thread(ended, own.process)
    took_s = time.monotonic() - at_s
    await asyncio.wait_for(asyncio.gather(*asking), ANSWERED_WITHIN_S)

    killed = await asyncio.to_thread(_kill_and_start, own.flags)
    figures = {
        "before": before,
        "after": after,
        "exit_code": exit_code,
        "exit_after_s": took_s,
        "ready_after_kill_s": killed,
    }
    checks = [
        equal("requests lost", before[LOST] + after[LOST], 0),
        at_least("answered after SIGTERM", after["200"], CLIENTS),
        equal("outcomes that are neither an answer nor a refusal", len({*before, *after} - EXPECTED), 0),
        equal("exit code", exit_code, 0),
        at_most("ready after kill -9", killed, 5.0, "s"),
    ]
    return figures, checks


EXPECTED = {"200", "503", "429", LOST, NOT_CONNECTED}


async def _send(session: aiohttp.ClientSession, url: str, request: workload.Request) -> str:
    """Send a request and return the status, or whether it could not connect or lost the connection."""
    headers = {"Content-Type": request.content_type}
    try:
        async with session.post(url + request.path, data=request.body, headers=headers) as response:
            await response.read()
            return str(response.status)
    except aiohttp.ClientConnectorError:
        return NOT_CONNECTED
    except (aiohttp.ClientError, OSError):
        return LOST


def _kill_and_start(flags: Sequence[str]) -> float:
    """Start a server, end it with kill -9, start it again, and return the seconds until it is ready."""
    with started(flags) as first:
        first.process.kill()
        first.process.wait()
    with started(flags) as second:
        return second.ready_after_s
