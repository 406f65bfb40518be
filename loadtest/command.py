"""The command vilt-bench: every measurement and every trial."""

import argparse
import signal
import sys
from types import FrameType
from typing import NoReturn

import aiohttp
import httpx

from loadtest import accuracy, decode, gpu, length, load, oracle, retrieval, stages, workers
from loadtest.claims import command as claims
from loadtest.launch import bypass_proxy
from loadtest.peers import command as peers
from loadtest.trials import abandon, blocking, chaos, deadline, drain, overload, rollout, soak, storm, users


def measure() -> None:
    parser = argparse.ArgumentParser(
        prog="vilt-bench",
        description="Measure a server from outside, over HTTP. Without --url, a server is started and stopped again."
        " If the server at --url requires a key, set VILT_API_KEY. claims needs no server: it times ViLT beside the"
        " designs that the paper compares it with. overload and the commands below it are trials: they exit with 1 if a"
        " claim does not hold.",
    )
    commands = parser.add_subparsers(required=True, dest="benchmark", metavar="BENCHMARK")
    measurements = (accuracy, claims, decode, gpu, length, load, oracle, peers, retrieval, stages, workers)
    trials = (overload, blocking, abandon, storm, drain, rollout, chaos, deadline, users, soak)
    for module in (*measurements, *trials):
        module.add_to(commands)
    options = parser.parse_args()
    bypass_proxy()
    signal.signal(signal.SIGTERM, _end)
    try:
        options.run(options)
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError) as error:
        reason = str(error) or type(error).__name__  # a timeout has no message
        sys.exit(f"vilt-bench {options.benchmark}: {reason}")


def _end(number: int, _: FrameType | None) -> NoReturn:
    """End as by Ctrl-C: the servers that were started end, too."""
    raise SystemExit(128 + number)
