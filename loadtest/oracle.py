"""Does the server say the same under load as it says to one alone?

Every question is asked twice: one after the other, then many at once, where requests share batches and caches. All
scores are compared, not only the best answer.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from loadtest import accuracy, credentials
from loadtest.arguments import at_least
from loadtest.contract import accepted
from loadtest.launch import server
from loadtest.stamp import stamp
from loadtest.workload import SAMPLES

ALL = 1_000_000  # answers asked for: every one
TOLERANCE = 1e-3
TIMEOUT_S = 120.0

Scores = dict[str, float]


def add_to(commands: Any) -> None:
    """Declare `vilt-bench oracle`."""
    parser = commands.add_parser(
        "oracle",
        help="answers under load against answers alone",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=SAMPLES,
        metavar="FILE",
        help="questions, as of vilt-bench accuracy (default: samples)",
    )
    parser.add_argument(
        "--count", type=at_least(1), default=2000, help="distinct questions, at most (default %(default)s)"
    )
    parser.add_argument("--concurrency", type=at_least(1), default=64, help="requests in flight (default %(default)s)")
    parser.add_argument("--url", help="of a running server (default: start vilt-serve for the occasion)")
    parser.add_argument("--model", metavar="DIR", help="artifact that the started server serves (default: shapes)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    asked = questions(options.data, options.count)
    with server(options.url, ["--model", options.model] if options.model else []) as url:
        alone = asyncio.run(ask_all(url, asked, 1))
        before = batches(httpx.get(f"{url}/metrics").text)
        together = asyncio.run(ask_all(url, asked, options.concurrency))
        after = batches(httpx.get(f"{url}/metrics").text)
    runs = after[1] - before[1]
    result = {
        "questions": len(asked),
        "concurrency": options.concurrency,
        **compare(alone, together),
        "mean_batch": (after[0] - before[0]) / runs if runs else None,
    }
    for name, value in result.items():
        print(f"{name:24} {_text(value)}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(
            json.dumps({"benchmark": "vilt-bench oracle", **described, **result}, indent=2) + "\n"
        )
    if result["different_answers"] or result["largest_difference"] > TOLERANCE:
        sys.exit("vilt-bench oracle: answers under load differ from those alone")


def questions(data: Path, count: int) -> list[tuple[Path, str]]:
    """Read so many distinct pictures and questions, or as many as there are.

    Raises: OSError, ValueError: the file cannot be read, is not JSON lines, or asks none.
    """
    pairs = dict.fromkeys((record["image"], record["question"]) for record in accuracy.questions(data))
    return [(data.parent / image, question) for image, question in list(pairs)[:count]]


async def ask_all(url: str, asked: Sequence[tuple[Path, str]], concurrency: int) -> list[Scores]:
    """Ask every question with so many in flight, and take every answer's score.

    Raises: ValueError, httpx.HTTPError: the server refused one, or failed.
    """
    found: list[Scores] = [{} for _ in asked]
    remaining = iter(range(len(asked)))
    bar = tqdm(total=len(asked), unit="request", desc=f"{concurrency} in flight", disable=None)

    async def work(client: httpx.AsyncClient) -> None:
        for index in remaining:
            image, question = asked[index]
            response = await client.post(
                "/v1/vqa", files={"image": image.read_bytes()}, data={"question": question, "top_k": str(ALL)}
            )
            answers = accepted(response).json()["answers"]
            found[index] = {answer["answer"]: answer["score"] for answer in answers}
            bar.update()

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_S, limits=limits, headers=credentials.headers()
    ) as client:
        await asyncio.gather(*(work(client) for _ in range(concurrency)))
    bar.close()
    return found


def compare(alone: Sequence[Scores], together: Sequence[Scores]) -> dict[str, Any]:
    """Find the largest difference of a score, and count best answers that differ where the best two are not level."""
    largest, different = 0.0, 0
    for one, other in zip(alone, together, strict=True):
        largest = max(largest, *(abs(score - other[answer]) for answer, score in one.items()))
        best, second = sorted(one.values())[-1:-3:-1]
        different += max(one, key=one.__getitem__) != max(other, key=other.__getitem__) and best - second > TOLERANCE
    return {"largest_difference": largest, "different_answers": different}


def batches(metrics: str) -> tuple[float, float]:
    """Read off the server's metrics how many entries have run, and in how many runs."""
    sums = {"sum": 0.0, "count": 0.0}
    for line in metrics.splitlines():
        for part in sums:
            if line.startswith(f"vilt_batch_entries_{part}"):
                sums[part] += float(line.rsplit(" ", 1)[1])
    return sums["sum"], sums["count"]


def _text(value: float | None) -> str:
    if value is None:
        return "none: the server kept every answer, and ran nothing"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
