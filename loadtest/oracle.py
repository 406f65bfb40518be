"""Does the server answer the same under load as when asked alone?

Every question is asked twice: first one at a time, then many at once, so that requests share batches and caches. All
scores are compared, not only the best answer.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from loadtest import accuracy, contract
from loadtest.arguments import add_command, add_output, add_server, at_least
from loadtest.contract import accepted
from loadtest.launch import server
from loadtest.stamp import save, stamp
from loadtest.workload import add_data

ALL = 1_000_000  # as top_k: every answer
TOLERANCE = 1e-3

Scores = dict[str, float]


def add_to(commands: Any) -> None:
    """Declare `vilt-bench oracle`."""
    parser = add_command(commands, "oracle", "compare the answers under load with those given alone", __doc__, run)
    add_data(parser)
    parser.add_argument("--count", type=at_least(1), default=2000, help="number of questions (default %(default)s)")
    parser.add_argument("--concurrency", type=at_least(1), default=64, help="requests in flight (default %(default)s)")
    add_server(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> None:
    described = stamp()
    asked = questions(options.data, options.count)
    with server(options.url, options.model) as url:
        alone = ask_all(url, asked, 1)
        before = batches(httpx.get(f"{url}/metrics").text)
        together = ask_all(url, asked, options.concurrency)
        after = batches(httpx.get(f"{url}/metrics").text)
    runs = after[1] - before[1]
    result = {
        "questions": len(asked),
        "concurrency": options.concurrency,
        **compare(alone, together),
        "mean_batch": (after[0] - before[0]) / runs if runs else None,
    }
    for name, value in result.items():
        print(f"{name:24} {f'{value:.3g}' if isinstance(value, float) else value}")
    save(options.output, "oracle", described, **result)
    if result["different_answers"] or result["largest_difference"] > TOLERANCE:
        sys.exit("vilt-bench oracle: answers under load differ from those given alone")
    if not runs:
        sys.exit("vilt-bench oracle: nothing was tested, as the model did not run: the server kept its answers")


def questions(data: Path, count: int) -> list[tuple[Path, str]]:
    """Read at most `count` distinct pairs of picture and question.

    Raises: OSError, ValueError: the file cannot be read, is not JSON lines, or has no question.
    """
    pairs = dict.fromkeys((record["image"], record["question"]) for record in accuracy.questions(data))
    return [(data.parent / image, question) for image, question in list(pairs)[:count]]


def ask_all(url: str, asked: Sequence[tuple[Path, str]], concurrency: int) -> list[Scores]:
    """Ask every question with so many in flight, and return every answer's score.

    Raises: ValueError, httpx.HTTPError: the server refused one, or failed.
    """

    async def ask(client: httpx.AsyncClient, one: tuple[Path, str]) -> Scores:
        image, question = one
        data = {"question": question, "top_k": str(ALL)}
        response = accepted(await client.post("/v1/vqa", files={"image": image.read_bytes()}, data=data))
        return {answer["answer"]: answer["score"] for answer in response.json()["answers"]}

    label = f"{concurrency} in flight"
    return asyncio.run(contract.each(url, asked, ask, concurrency=concurrency, label=label))


def compare(alone: Sequence[Scores], together: Sequence[Scores]) -> dict[str, Any]:
    """Find the largest difference of a score, and count the best answers that differ by more than a near tie."""
    largest, different = 0.0, 0
    for one, other in zip(alone, together, strict=True):
        largest = max(largest, *(abs(score - other[answer]) for answer, score in one.items()))
        best, second = sorted(one.values())[-1:-3:-1]
        different += max(one, key=one.__getitem__) != max(other, key=other.__getitem__) and best - second > TOLERANCE
    return {"largest_difference": largest, "different_answers": different}


def batches(metrics: str) -> tuple[float, float]:
    """Read from the server's metrics how many entries have run, and in how many runs."""
    sums = {"sum": 0.0, "count": 0.0}
    for line in metrics.splitlines():
        for part in sums:
            if line.startswith(f"vilt_batch_entries_{part}"):
                sums[part] += float(line.rsplit(" ", 1)[1])
    return sums["sum"], sums["count"]
