"""What the trials share: a server of their own, claims that hold or do not, figures in a file."""

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from loadtest import contract
from loadtest.launch import Started, started
from loadtest.stamp import stamp
from loadtest.summary import tail

Figures = dict[str, Any]
TAKES = {  # on two cores; full size in fp32
    "abandon": "half a minute with shapes, two minutes at full size",
    "blocking": "two minutes",
    "chaos": "two minutes with shapes, seven at full size",
    "deadline": "half a minute",
    "drain": "half a minute",
    "overload": "five minutes with shapes, a quarter of an hour at full size",
    "rollout": "two minutes",
    "soak": "25 minutes with shapes, 35 at full size",
    "storm": "a minute",
    "users": "a minute and a half",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A figure, what it has to be, and whether it is."""

    says: str
    figure: float | str
    bound: str
    holds: bool

    def __str__(self) -> str:
        figure = f"{self.figure:,.4g}" if isinstance(self.figure, float) else f"{self.figure}"
        return f"{'ok    ' if self.holds else 'FAILED'}  {self.says}: {figure} ({self.bound})"


def at_most(says: str, figure: float, bound: float, unit: str = "") -> Claim:
    """Claim that a figure is no larger than so much."""
    return Claim(says=says, figure=figure, bound=f"at most {bound:,.4g}{unit and ' ' + unit}", holds=figure <= bound)


def at_least(says: str, figure: float, bound: float, unit: str = "") -> Claim:
    """Claim that a figure is no smaller than so much."""
    return Claim(says=says, figure=figure, bound=f"at least {bound:,.4g}{unit and ' ' + unit}", holds=figure >= bound)


def equal(says: str, figure: float | str, bound: float | str) -> Claim:
    """Claim that a figure is just that."""
    return Claim(says=says, figure=figure, bound=f"{bound}", holds=figure == bound)


def p99(values: Sequence[float]) -> float:
    """Find the p99 that a claim is about; of fewer than a hundred values it is no number, which holds nothing."""
    found = tail(values, 0.99)
    return math.nan if found is None else found


Run = Callable[[Started], Awaitable[tuple[Figures, Sequence[Claim]]]]


def add(
    commands: Any,
    name: str,
    description: str | None,
    run: Run,
    flags: Sequence[str] = (),
    *,
    module: str = "server",
) -> None:
    """Declare a trial: a command that starts a server with these flags, tries it, and fails where a claim does."""
    parser = commands.add_parser(
        name,
        help=(description or "").partition("\n")[0].removesuffix(".").replace("%", "%%"),
        description=description,
        epilog=f"Takes about {TAKES[name]}." if name in TAKES else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", metavar="DIR", action="append", default=[], help="artifact to serve; repeatable (default: shapes)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")

    def carry_out(options: argparse.Namespace) -> None:
        described = stamp()  # as it is now: a run takes a while
        with started([*(f"--model={folder}" for folder in options.model), *flags], module=module) as own:
            models = contract.models(own.url)
            figures, claims = uvloop.run(_run(run, own))
        print(*claims, sep="\n")
        if options.output:
            found = {"benchmark": f"vilt-bench {name}", **described, "models": models, **figures}
            found["claims"] = [asdict(claim) for claim in claims]
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(found, indent=2, default=asdict) + "\n")
        if not all(claim.holds for claim in claims):
            sys.exit(1)

    parser.set_defaults(run=carry_out)


async def _run(run: Run, own: Started) -> tuple[Figures, Sequence[Claim]]:
    return await run(own)


async def get(url: str) -> Any:
    """Read a resource's JSON."""
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url) as response:
        return await response.json()


async def metrics(url: str) -> dict[str, float]:
    """Read /metrics: values by name, labels included as they are written."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def settled(url: str, gauge: str, within_s: float) -> float:
    """Wait until a gauge is 0, or the time is over, and tell what it is then."""
    async with asyncio.timeout(2 * within_s):
        until_s = asyncio.get_running_loop().time() + within_s
        while value := (await metrics(url))[gauge]:
            if asyncio.get_running_loop().time() > until_s:
                break
            await asyncio.sleep(0.1)
    return value
