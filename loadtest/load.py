"""Open-loop load test: latency, goodput and refusals at several request rates, each answer timed from its schedule.

Each sample is first asked alone; answers under load are compared with the one it gets then. The default deadline of a
kind is four times its median latency alone. Then requests are sent at each rate for a fixed time, whether or not
earlier ones have been answered. Before the next rate the run waits, up to a minute, until every client that was told to
retry would have done so, because the server keeps room for them.

Without --rate, the capacity is found first and shares of it are offered. It is the highest rate at which 99 % of
requests are answered in time, searched by runs of at least 100 requests and 20 deadlines, and confirmed by 500
requests. This takes a minute or two, a quarter of an hour at five requests per second, and longer with long deadlines.

--output gets report.html, to be read; load.json, its figures; and rows-*.jsonl, one row for each request.

  vilt-bench load --output runs/load                                  # find the capacity, then load around it
  vilt-bench load --rate 20 50 100 --scenario vqa --output runs/load
  vilt-bench load --url http://host:8000 --rate 10 --seconds 60 --deadline-ms 500 --output runs/host
"""

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop  # it leaves the server more of a shared processor

from loadtest import contract, openloop, partial, report, rows, workload
from loadtest.arguments import add_command, add_server, at_least, positive
from loadtest.capacity import capacity
from loadtest.launch import server
from loadtest.result import Load, Result
from loadtest.rows import Row
from loadtest.stamp import stamp
from loadtest.workload import Learned

SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of capacity


def add_to(commands: Any) -> None:
    """Declare `vilt-bench load`."""
    parser = add_command(commands, "load", "open-loop load test at several request rates, with a report", __doc__, run)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the report and the rows")
    parser.add_argument("--rate", type=positive, nargs="+", metavar="PER_S", help="requests per second, one run each")
    parser.add_argument(
        "--scenario", choices=workload.SCENARIOS, default="mix", help="mix: 80%% vqa, 15%% itm, 5%% rank (default)"
    )
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="send at random times (poisson) or at even intervals (default %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=positive, default=10.0, help="seconds to send at each rate (default %(default)g)"
    )
    parser.add_argument(
        "--deadline-ms",
        type=at_least(0.0),
        metavar="MS",
        help="deadline of every request; later answers do not count as in time. 0 sends none, and needs --rate"
        " (default: 4 times the median latency without load, per kind)",
    )
    add_server(parser)
    workload.add_data(parser)
    parser.add_argument(
        "--identical",
        action="store_true",
        help="send the same pictures repeatedly, so the server's caches are used (default: every picture is different)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed for arrival times and samples (default 0)")


def run(options: argparse.Namespace) -> None:
    if options.deadline_ms == 0 and not options.rate:
        raise ValueError("--deadline-ms 0 needs --rate: without a deadline every answer is in time, at any rate")
    options.output.mkdir(parents=True, exist_ok=True)
    samples = workload.read(options.data, options.scenario)
    with server(options.url, options.model) as url:
        models = contract.models(url)
        result = uvloop.run(measure(options, url, models, workload.learn(url, samples)))
    (options.output / "load.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    page = options.output / "report.html"
    page.write_text(report.page_of(result))
    print(report.text_of(result))
    print(page)
    if result.wrong:
        sys.exit(
            f"vilt-bench load: {result.wrong:,} answers under load differ from those given alone; rows-*.jsonl has"
            " those that were not given while the capacity was searched"
        )
    if result.ended_early:
        sys.exit(f"vilt-bench load: {result.ended_early}; the report has the rates that are complete")


async def measure(options: argparse.Namespace, url: str, models: list[dict[str, Any]], learned: Learned) -> Result:
    """Time requests alone, find the capacity if no rate is given, offer each rate and write its rows.

    Raises: ValueError: the server does not answer alone, or keeps up with no rate.
    """
    described = stamp()
    draw = functools.partial(workload.stream, learned.samples, seed=options.seed, distinct=not options.identical)
    kinds = workload.SCENARIOS[options.scenario]
    alone_ms = {kind: (await openloop.alone(url, draw(kind))).p50 for kind in kinds}
    deadline_ms = deadlines_ms(options.deadline_ms, alone_ms)
    requests = draw(options.scenario)
    found = None
    rates = options.rate
    if not rates:
        found = await capacity(url, requests, deadline_ms=deadline_ms, seed=options.seed)
        rates = [float(f"{share * found.rate_per_s:.3g}") for share in SHARES]
    asked: list[Row] = []  # at the previous rate

    async def offer(numbered: tuple[int, float]) -> Load:
        nonlocal asked
        number, rate_per_s = numbered
        if number:
            await openloop.until_quiet(asked)
        schedule = schedule_of(options.arrivals, rate_per_s, options.seconds, options.seed + number)
        asked = await openloop.run(url, requests, schedule, deadline_ms=deadline_ms, label=f"{rate_per_s:g}/s")
        file = f"rows-{number + 1}-{rate_per_s:g}.jsonl"  # a rate may be given twice
        rows.write(options.output / file, asked)
        return Load.of(rate_per_s, options.seconds, file, asked)

    loads, ended = await partial.each(enumerate(rates), offer)
    return Result(
        **described,
        models=models,
        same_machine=options.url is None,
        scenario=options.scenario,
        arrivals=options.arrivals,
        identical=options.identical,
        seed=options.seed,
        samples=len(learned.samples),
        right=learned.right,
        known=learned.known,
        alone_ms=alone_ms,
        deadline_ms=deadline_ms,
        capacity=found,
        loads=loads,
        ended_early=ended,
    )


def deadlines_ms(asked_ms: float | None, alone_ms: Mapping[str, float]) -> dict[str, float]:
    """Return the deadline of each kind: what was asked for, or so many times the latency alone. 0 is none."""
    if asked_ms is None:
        return {kind: openloop.DEADLINE_FACTOR * value for kind, value in alone_ms.items()}
    return dict.fromkeys(alone_ms, asked_ms) if asked_ms else {}


def schedule_of(arrivals: str, rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Draw the send times for one rate."""
    if arrivals == "constant":
        return openloop.constant(rate_per_s, seconds)
    return openloop.poisson(rate_per_s, seconds, seed)
