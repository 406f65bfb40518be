"""One process beside several: the same server with one, and with numbers of `--workers`, in turns in one run.

What a front costs one client alone is latency; what it brings many is throughput, where there are cores for it and the
model is not the limit. The load generator shares the machine.
"""

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import uvloop

from loadtest import contract, photo
from loadtest.arguments import at_least
from loadtest.launch import started
from loadtest.peers import turns
from loadtest.stamp import stamp
from loadtest.summary import or_dash, percentile


def add_to(commands: Any) -> None:
    """Declare `vilt-bench workers`."""
    parser = commands.add_parser(
        "workers",
        help="one process beside several",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="artifact that is served (default: shapes)")
    parser.add_argument(
        "--workers",
        type=at_least(1),
        nargs="+",
        default=[2],
        metavar="N",
        help="fronts to try beside one process, each number in a server of its own (default: 2)",
    )
    parser.add_argument("--rounds", type=at_least(1), default=20, help="turns of each server (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    flags = ["--model", str(options.model)] if options.model else []
    picture = photo.draw()
    with contextlib.ExitStack() as stack:
        urls = {
            f"{workers} workers" if workers > 1 else "one process": stack.enter_context(
                started([*flags, "--workers", str(workers)])
            ).url
            for workers in dict.fromkeys([1, *options.workers])
        }
        requests = {name: photo.requests(picture) for name in urls}
        model = contract.model_for(urls["one process"], "vqa")
        timed, ended = uvloop.run(turns.take(urls, requests, options.rounds))
    found = {name: summarise(one) for name, one in timed.items()}
    for name, by_clients in found.items():
        for clients, figures in by_clients.items():
            print(
                f"{name:12} {clients:3} clients {figures['answers']:5} answers   p50 {figures['p50_ms']:8.2f} ms"
                f"   p99 {or_dash(figures['p99_ms'], 8, 2)} ms   {figures['answers_per_s']:8.1f} answers/s"
            )
    rounds = timed["one process"].rounds
    if options.output:
        turned = {"model": model, "rounds": rounds, "ended_early": ended, "servers": found}
        result = {"benchmark": "vilt-bench workers", **described, **turned}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    if ended:
        sys.exit(f"vilt-bench workers: {ended}; of {options.rounds} rounds {rounds} are complete, and told above")


def summarise(timed: turns.Timed) -> dict[int, dict[str, Any]]:
    """Sum up a server's turns: percentiles over all requests, p99 if they are enough, and the median turn's rate."""
    return {
        clients: {
            "answers": len(latencies_ms),
            "p50_ms": percentile(latencies_ms, 0.5),
            "p99_ms": timed.p99_ms(clients),
            "answers_per_s": statistics.median(timed.rates_per_s[clients]),
        }
        for clients, latencies_ms in timed.latencies_ms.items()
    }
