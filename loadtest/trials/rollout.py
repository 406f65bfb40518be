"""Two servers behind a proxy are restarted, one after the other, under load: no client may notice.

The load would keep one server busy for 70 % of the time, as it does while the other is away. haproxy checks whether
each is ready (deploy/haproxy.cfg). Every request must be answered, and each server must exit with status 0. Needs
haproxy and a clone of the repository.

Takes about two minutes.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from loadtest import openloop
from loadtest.contract import accepted
from loadtest.launch import Started, ended, free_port, started
from loadtest.rows import Row
from loadtest.summary import percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_most, equal, none_wrong

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
FLAGS = ("--threads", "1")  # a core each
BUSY = 0.7  # share of one server's time
SECONDS, RESTARTS_AT_S = 90.0, (15.0, 50.0)
CONNECTIONS = 5  # retries until the proxy listens
MOST_TIMES_ALONE = 10.0  # random arrivals at 70 % load wait up to five times; a server that starts needs the cores, too


def add_to(commands: Any) -> None:
    """Declare `vilt-bench rollout`."""
    trial.add(commands, "rollout", __doc__, run, FLAGS)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    if shutil.which("haproxy") is None:
        raise ValueError("haproxy, the proxy in front of the two servers, is not installed: try apt install haproxy")
    with contextlib.ExitStack() as servers:
        other = servers.enter_context(started(own.flags))
        with _proxy(own.url, other.url) as url:
            requests = trial.questions(url)
            alone_ms = await openloop.alone(url, requests)
            rate_per_s = BUSY * 1000 / alone_ms.p50
            load = asyncio.create_task(
                openloop.run(url, requests, openloop.poisson(rate_per_s, SECONDS), label=f"{rate_per_s:.0f}/s")
            )
            began_s = time.monotonic()
            restarts = []
            for server, at_s in zip((own, other), RESTARTS_AT_S, strict=True):
                await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
                restarts.append(await asyncio.to_thread(_restart, server, servers, began_s))
            under_load = sum(restart["ready_s"] < SECONDS for restart in restarts)
            rows = await load

    def is_away(row: Row) -> bool:
        return any(one["sigterm_s"] <= row.scheduled_s <= one["ready_s"] for one in restarts)

    during = [row for row in rows if is_away(row)]
    others = [row for row in rows if not is_away(row)]
    slowest_ms = max(row.latency_ms for row in during)  # too few for a p99
    figures: Figures = {
        "alone_ms": alone_ms,
        "offered_per_s": rate_per_s,
        "restarts": restarts,
        "outcomes": Counter(row.code for row in rows),
        "with_both_ms": percentiles([row.latency_ms for row in others]),
        "with_one_ms": percentiles([row.latency_ms for row in during]),
    }
    checks = [
        equal("restarts under load", under_load, len(RESTARTS_AT_S)),
        equal(f"failed, of {len(rows)} requests", sum(row.status != 200 for row in rows), 0),
        none_wrong(rows),
        equal("exit codes", " ".join(str(one["exit_code"]) for one in restarts), "0 0"),
        at_most("slowest while one server is away", slowest_ms, MOST_TIMES_ALONE * alone_ms.p50, "ms"),
    ]
    return figures, checks


def _restart(server: Started, servers: contextlib.ExitStack, began_s: float) -> dict[str, Any]:
    """Stop a server as an orchestrator would, and start it again at the same address."""
    sigterm_s = time.monotonic() - began_s
    server.process.send_signal(signal.SIGTERM)
    exit_code = ended(server.process)
    ended_s = time.monotonic() - began_s
    servers.enter_context(started(server.flags, port=int(server.url.rpartition(":")[2])))
    ready_s = time.monotonic() - began_s
    return {"sigterm_s": sigterm_s, "ended_s": ended_s, "ready_s": ready_s, "exit_code": exit_code}


@contextlib.contextmanager
def _proxy(*urls: str) -> Iterator[str]:
    """Start haproxy in front of two servers and yield its URL."""
    address = f"127.0.0.1:{free_port()}"
    first, second = (url.removeprefix("http://") for url in urls)
    environment = {**os.environ, "LISTEN": address, "SERVER_A": first, "SERVER_B": second}
    command = ["haproxy", "-db", "-f", str(CONFIGURATION)]
    with subprocess.Popen(command, env=environment) as process:  # noqa: S603 our own command
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=CONNECTIONS)) as client:
                accepted(client.get(f"http://{address}/readyz"))
            yield f"http://{address}"
        finally:
            process.terminate()
            ended(process)
