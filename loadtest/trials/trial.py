"""What the trials share: a server of their own, checks that hold or do not, and a result file."""

import argparse
import asyncio
import math
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from loadtest import contract, workload
from loadtest.arguments import add_command, add_output
from loadtest.launch import Started, started
from loadtest.rows import Row
from loadtest.stamp import save, stamp
from loadtest.summary import tail
from loadtest.workload import Request

Figures = dict[str, Any]
USES = ("answered", "late", "abandoned")  # of the engine's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A figure, what it has to be, and whether it is."""

    says: str
    figure: float | str
    bound: str
    holds: bool

    def __str__(self) -> str:
        figure = f"{self.figure:,.4g}" if isinstance(self.figure, float) else f"{self.figure}"
        return f"{'ok    ' if self.holds else 'FAILED'}  {self.says}: {figure} ({self.bound})"


Run = Callable[[Started], Coroutine[Any, Any, tuple[Figures, Sequence[Check]]]]


def at_most(says: str, figure: float, bound: float, unit: str = "") -> Check:
    """Check that a figure is no larger than a bound."""
    return Check(says=says, figure=figure, bound=f"at most {bound:,.4g}{unit and ' ' + unit}", holds=figure <= bound)


def at_least(says: str, figure: float, bound: float, unit: str = "") -> Check:
    """Check that a figure is no smaller than a bound."""
    return Check(says=says, figure=figure, bound=f"at least {bound:,.4g}{unit and ' ' + unit}", holds=figure >= bound)


def equal(says: str, figure: float | str, bound: float | str) -> Check:
    """Check that a figure has exactly this value."""
    return Check(says=says, figure=figure, bound=f"{bound}", holds=figure == bound)


def none_wrong(rows: Iterable[Row]) -> Check:
    """Check that every answer is the one that was given alone."""
    return equal("wrong answers", sum(row.correct is False for row in rows), 0)


def p99(values: Sequence[float]) -> float:
    """Return the p99 for a check; it is NaN for fewer than a hundred values, and no check of it holds."""
    found = tail(values, 0.99)
    return math.nan if found is None else found


def add(
    commands: Any,
    name: str,
    description: str | None,
    run: Run,
    flags: Sequence[str] = (),
    *,
    module: str = "server",
) -> None:
    """Declare a trial: a command that starts a server with these flags, tries it, and fails if a check does."""

    def carry_out(options: argparse.Namespace) -> None:
        described = stamp()
        with started([*(f"--model={folder}" for folder in options.model), *flags], module=module) as own:
            models = contract.models(own.url)
            figures, checks = uvloop.run(run(own))
        print(*checks, sep="\n")
        save(options.output, name, described, models=models, **figures, claims=checks)
        if not all(check.holds for check in checks):
            sys.exit(1)

    title = (description or "").partition("\n")[0].removesuffix(".").replace("%", "%%")
    parser = add_command(commands, name, title, description, carry_out)
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="artifact to start the server with; may be repeated (default: shapes)",
    )
    add_output(parser)


def questions(url: str) -> Iterator[Request]:
    """Ask the shipped questions alone, then make requests of them without end.

    Raises: ValueError: the server refused one.
    """
    learned = workload.learn(url, workload.read(workload.SAMPLES, "vqa"))
    return workload.stream(learned.samples, "vqa")


async def get(url: str) -> Any:
    """Read a resource's JSON."""
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url) as response:
        return await response.json()


async def metrics(url: str) -> dict[str, float]:
    """Read /metrics: values by name, which includes the labels as they are written."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def engine_s(found: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    """Read from the metrics how the engine's time was used since earlier ones, in seconds."""
    names = {use: f'vilt_engine_seconds_total{{use="{use}"}}' for use in USES}
    return {use: found.get(name, 0.0) - earlier.get(name, 0.0) for use, name in names.items()}


async def settled(url: str, gauge: str, within_s: float) -> float:
    """Wait until a gauge is 0 or the time is over, and return its value then."""
    async with asyncio.timeout(2 * within_s):
        until_s = asyncio.get_running_loop().time() + within_s
        while value := (await metrics(url))[gauge]:
            if asyncio.get_running_loop().time() > until_s:
                break
            await asyncio.sleep(0.1)
    return value
