"""What a server does under load: an open loop at several rates, each answer timed from when it was to be asked.

First every sample is asked alone: that is the answer that load may not change, and what it takes without load, four
times of which is the deadline unless you say otherwise. Then each rate is offered for a while, come what may. After a
run, the next begins when nobody is expected any more of those whom the server told to come back: up to a minute.

Without --rate, the capacity is found and shares of it are offered: the highest rate at which 99 % of answers are in
time, searched by runs of a hundred requests and confirmed by five hundred. That takes a minute or two, and at five
requests a second a quarter of an hour.

Into --output go report.html, for people; load.json, its figures; and rows-*.jsonl, one row for each request.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop  # its timers are finer than a millisecond, and it leaves the server more of a shared processor

from loadtest import contract, openloop, partial, report, rows, workload
from loadtest.arguments import at_least, positive
from loadtest.capacity import capacity
from loadtest.launch import server
from loadtest.result import Load, Result
from loadtest.rows import Row
from loadtest.stamp import stamp
from loadtest.summary import percentile
from loadtest.workload import Learned

SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of capacity
DEADLINE_FACTOR = 4  # times what it takes alone
ALONE = 60  # requests of each kind


def add_to(commands: Any) -> None:
    """Declare `vilt-bench load`."""
    parser = commands.add_parser(
        "load",
        help="latency, goodput and refusals at rates of requests that do not wait for answers; a report with plots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  vilt-bench load --output runs/load                                  # find capacity, load around it
  vilt-bench load --rate 20 50 100 --scenario vqa --output runs/load
  vilt-bench load --url http://host:8000 --rate 10 --seconds 60 --deadline-ms 500 --output runs/host""",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the report and the rows go")
    parser.add_argument("--rate", type=positive, nargs="+", metavar="PER_S", help="requests per second, one run each")
    parser.add_argument(
        "--scenario", choices=workload.SCENARIOS, default="mix", help="mix: 80%% vqa, 15%% itm, 5%% rank (default)"
    )
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="at random, or evenly (default %(default)s)",
    )
    parser.add_argument("--seconds", type=positive, default=10.0, help="of each rate (default %(default)g)")
    parser.add_argument(
        "--deadline-ms",
        type=at_least(0.0),
        metavar="MS",
        help="sent as X-Deadline-Ms, and what in time means; 0: none (default: 4 times what each kind takes alone)",
    )
    parser.add_argument("--url", help="of a running server (default: start vilt-serve for the occasion)")
    parser.add_argument("--model", metavar="DIR", help="artifact that the started server serves (default: shapes)")
    parser.add_argument(
        "--data",
        type=Path,
        default=workload.SAMPLES,
        metavar="FILE",
        help="what to ask, JSON lines as of vilt-bench accuracy (default: loadtest/samples)",
    )
    parser.add_argument(
        "--identical",
        action="store_true",
        help="send the samples as they are, so that the server's caches help (default: no two pictures are the same)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and samples (default %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    samples = workload.read(options.data, options.scenario)
    with server(options.url, ["--model", options.model] if options.model else []) as url:
        models = contract.models(url)
        result = uvloop.run(measure(options, url, models, workload.learn(url, samples)))
    (options.output / "load.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    page = options.output / "report.html"
    page.write_text(report.page_of(result))
    print(report.text_of(result))
    print(page)
    wrong = sum(load.summary.wrong for load in result.loads)
    if wrong:
        sys.exit(f"vilt-bench load: {wrong:,} answers under load were not those given alone; rows-*.jsonl has them")
    if result.ended_early:
        sys.exit(f"vilt-bench load: {result.ended_early}; the report has the rates that are complete")


async def measure(options: argparse.Namespace, url: str, models: list[dict[str, Any]], learned: Learned) -> Result:
    """Ask alone, find the capacity if no rate is given, offer each rate; rows go to files on the way.

    Raises: ValueError: not even a low rate is answered in time.
    """
    described = stamp()  # as it is now: a run takes a while
    draw = functools.partial(workload.stream, learned.samples, seed=options.seed, distinct=not options.identical)
    alone_ms = {}
    for kind in workload.SCENARIOS[options.scenario]:
        alone = await openloop.alone(url, itertools.islice(draw(kind), ALONE))
        alone_ms[kind] = percentile([row.latency_ms for row in alone], 0.5)
    deadline_ms = deadlines_ms(options.deadline_ms, alone_ms)
    requests = draw(options.scenario)
    found = None
    rates = options.rate
    if not rates:
        found = await capacity(url, requests, deadline_ms=deadline_ms, seed=options.seed)
        rates = [float(f"{share * found.rate_per_s:.3g}") for share in SHARES]
        if not found.rate_per_s:
            raise ValueError(
                "at no rate are 99 % of answers in time: allow them more with --deadline-ms, or give --rate"
            )
    asked: list[Row] = []  # at the rate before

    async def offer(numbered: tuple[int, float]) -> Load:
        nonlocal asked
        number, rate_per_s = numbered
        if number:
            await openloop.until_quiet(asked)
        schedule = schedule_of(options.arrivals, rate_per_s, options.seconds, options.seed + number)
        asked = await openloop.run(url, requests, schedule, deadline_ms=deadline_ms, label=f"{rate_per_s:g}/s")
        file = f"rows-{number + 1}-{rate_per_s:g}.jsonl"  # a rate may be there twice
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
    """Give each kind its deadline: what was asked for, or so many times what it takes alone. 0 is none."""
    if asked_ms is None:
        return {kind: DEADLINE_FACTOR * value for kind, value in alone_ms.items()}
    return dict.fromkeys(alone_ms, asked_ms) if asked_ms else {}


def schedule_of(arrivals: str, rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Make the schedule of one rate."""
    if arrivals == "constant":
        return openloop.constant(rate_per_s, seconds)
    return openloop.poisson(rate_per_s, seconds, seed)
