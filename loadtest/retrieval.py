"""Retrieval: one text against many pictures in one rank; pairs a second while pictures are new, kept, and all is kept.

Pictures that were decoded lately are not decoded again, and a pair that was scored lately need not run again
(--logits-cache-entries): each is a rank of the same pictures, with another text and with the same.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from loadtest import contract, photo
from loadtest.arguments import at_least
from loadtest.contract import accepted
from loadtest.launch import server
from loadtest.peers.servers import ours
from loadtest.stamp import stamp

CASES = ("new", "pictures kept", "all kept")
ANSWERED_WITHIN_S = 600.0


def add_to(commands: Any) -> None:
    """Declare `vilt-bench retrieval`."""
    parser = commands.add_parser("retrieval", help="pairs a second of one text and many pictures", description=__doc__)
    parser.add_argument("--model", type=Path, metavar="DIR", help="artifact that ranks (default: shapes)")
    parser.add_argument("--images", type=at_least(1), default=200, help="of a rank (default %(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="of new pictures (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()
    found: list[dict[str, Any]] = []
    for flags in [one.flags for one in ours(options.model)] if options.model else [()]:
        kept = ("--decoded-cache-mb", str(2 * options.images), "--logits-cache-entries", str(2 * options.images))
        with server(None, (*flags, *kept, "--deadline-ms", str(1000 * ANSWERED_WITHIN_S))) as url:
            found.append(measure(url, options.images, options.rounds))
    for one in found:
        for case, rates in one["pairs_per_s"].items():
            print(f"{one['model']['precision']:5s} {case:14s} {statistics.median(rates):8.1f} pairs/s")
    if options.output:
        result = {"benchmark": "vilt-bench retrieval", **described, "images": options.images, "servers": found}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(url: str, images: int, rounds: int) -> dict[str, Any]:
    """Rank in every case in every round, each round with pictures of its own.

    Raises: ValueError, httpx.HTTPError: the server refused, or failed.
    """
    picture = photo.draw()
    rates: dict[str, list[float]] = {case: [] for case in CASES}
    model = contract.model_for(url, "rank")
    with (
        httpx.Client(base_url=url, timeout=ANSWERED_WITHIN_S) as client,
        tqdm(total=rounds * len(CASES), unit="rank", disable=None, leave=False) as bar,
    ):
        for number in range(rounds):
            files = [
                ("images", (f"{index}.jpg", picture + bytes([number, index % 256, index // 256])))
                for index in range(images)
            ]  # the same picture, but not the same file
            first, second = photo.QUESTIONS[number % 4], photo.QUESTIONS[4 + number % 4]
            for case, text in zip(CASES, (first, second, second), strict=True):
                response = client.post("/v1/rank", data={"query_text": text, "top_k": "1"}, files=files)
                total_s = accepted(response).json()["timing_ms"]["total"] / 1000
                rates[case].append(images / total_s)
                bar.update()
    return {"model": model, "pairs_per_s": rates}
