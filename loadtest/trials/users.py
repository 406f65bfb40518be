"""Locust without its web page, at three numbers of users: does its table agree with the raw rows?

Each user asks once per second. The lines of Locust's table, refusals and stages included, must have as many requests as
the rows that it writes, one per request; its mean times must be close to those of the rows, which use another clock.

Takes about a minute and a half.
"""

import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from loadtest import rows
from loadtest.launch import Started
from loadtest.rows import Row
from loadtest.summary import percentiles
from loadtest.trials import trial
from loadtest.trials.trial import Check, Figures, at_most, equal

LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
USERS = (5, 20, 60)
SECONDS = 20
TOLERANCE_MS = 2.0  # of a mean: the rows include a little of Locust's own work


def add_to(commands: Any) -> None:
    """Declare `vilt-bench users`."""
    trial.add(commands, "users", __doc__, run)


async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
    figures, checks = {}, []
    for users in USERS:
        table, asked = await _locust(own.url, users)
        expected = table_of(asked)
        differences = [abs(found - fmean(expected[name])) for name, (_, found) in table.items() if name in expected]
        counts = {name: len(values) for name, values in expected.items()}
        checks += [
            equal(
                f"{users} users: the lines of the table are those of the rows",
                {name: n for name, (n, _) in table.items()} == counts,
                True,
            ),
            at_most(
                f"{users} users: largest difference of a mean in the table from the rows",
                max(differences, default=float("inf")),
                TOLERANCE_MS,
                "ms",
            ),
            equal(f"{users} users: wrong answers", sum(row.correct is False for row in asked), 0),
        ]
        figures[f"{users} users"] = {
            "requests": counts,
            "latency_ms": percentiles([row.latency_ms for row in asked if row.status == 200]),
        }
    return figures, checks


def table_of(asked: Sequence[Row]) -> dict[str, list[float]]:
    """Compute the times of each line, in milliseconds, from rows."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for row in asked:
        times[row.line].append(row.latency_ms)
        for stage, value in row.stages_ms.items():
            times[f"stage {stage}"].append(value)
    return times


async def _locust(url: str, users: int) -> tuple[dict[str, tuple[int, float]], list[Row]]:
    """Run Locust; read its table (requests and mean by line) and its rows."""
    with tempfile.TemporaryDirectory() as folder:
        table, raw = Path(folder, "table"), Path(folder, "rows.jsonl")
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", url]
        command += ["-u", str(users), "-r", str(users), "-t", f"{SECONDS}s"]
        command += ["--json-file", str(table), "--rows", str(raw), "--only-summary", "--loglevel", "WARNING"]
        await carry_out(command, 10 * SECONDS)
        lines = json.loads(table.with_suffix(".json").read_text())
        found = {
            line["name"]: (line["num_requests"], line["total_response_time"] / line["num_requests"]) for line in lines
        }
        return found, rows.read(raw)


async def carry_out(command: Sequence[str], within_s: float) -> None:
    """Run Locust to its end; no process is left behind.

    Raises: ValueError: it fails, or does not end.
    """
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(within_s):
            code = await process.wait()
    except TimeoutError as error:
        raise ValueError(f"Locust did not end within {within_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise ValueError("Locust failed; see the lines above")
