"""One process beside several: the same server with one, and with some numbers of `--workers`, in turns in one run.

A front costs a single client latency, and gains many clients throughput if there are cores for it and the model is not
the limit. The load generator shares the machine.
"""

import argparse
import contextlib
import statistics
import sys
from typing import Any

import uvloop

from loadtest import contract, photo
from loadtest.arguments import add_command, add_model, add_output, at_least
from loadtest.launch import started
from loadtest.peers import turns
from loadtest.stamp import save, stamp
from loadtest.summary import or_dash, percentile


def add_to(commands: Any) -> None:
    """Declare `vilt-bench workers`."""
    parser = add_command(commands, "workers", "compare one server process with several", __doc__, run)
    add_model(parser)
    parser.add_argument(
        "--workers", type=at_least(1), nargs="+", default=[2], help="values to compare with one process (default: 2)"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=20, help="rounds, each with one turn per server (default %(default)s)"
    )
    add_output(parser)


def run(options: argparse.Namespace) -> None:
    described = stamp()
    picture = photo.draw()
    with contextlib.ExitStack() as stack:
        urls = {
            f"{workers} workers" if workers > 1 else "one process": stack.enter_context(
                started(["--workers", str(workers)], model=options.model)
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
    save(options.output, "workers", described, model=model, rounds=rounds, ended_early=ended, servers=found)
    if ended:
        sys.exit(f"vilt-bench workers: {ended}; {rounds} of {options.rounds} rounds are complete and reported above")


def summarise(timed: turns.Timed) -> dict[int, dict[str, Any]]:
    """Summarise a server's turns: percentiles of all requests, and the rate of the median turn."""
    return {
        clients: {
            "answers": len(latencies_ms),
            "p50_ms": percentile(latencies_ms, 0.5),
            "p99_ms": timed.p99_ms(clients),
            "answers_per_s": statistics.median(timed.rates_per_s[clients]),
        }
        for clients, latencies_ms in timed.latencies_ms.items()
    }
