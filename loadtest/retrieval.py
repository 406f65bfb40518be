"""Ranking speed: (text, picture) pairs per second when pictures are new, when they are cached, and when all is cached.

The server keeps decoded pictures and, with --logits-cache-entries, scored pairs: the same pictures are ranked for a new
text, for another text, and for that text once more.
"""

import argparse
import statistics
from typing import Any

import httpx
from tqdm import tqdm

from loadtest import contract, photo, workload
from loadtest.arguments import add_command, add_model, add_output, at_least
from loadtest.contract import accepted
from loadtest.launch import started
from loadtest.peers.servers import ours
from loadtest.stamp import save, stamp

CASES = ("new", "pictures kept", "all kept")
ANSWERED_WITHIN_S = 600.0


def add_to(commands: Any) -> None:
    """Declare `vilt-bench retrieval`."""
    parser = add_command(commands, "retrieval", "ranking speed: (text, picture) pairs per second", __doc__, run)
    add_model(parser)
    parser.add_argument("--images", type=at_least(1), default=200, help="pictures in a rank (default %(default)s)")
    parser.add_argument(
        "--rounds", type=at_least(1), default=3, help="rounds, each with new pictures (default %(default)s)"
    )
    add_output(parser)


def run(options: argparse.Namespace) -> None:
    described = stamp()
    found: list[dict[str, Any]] = []
    for one in ours(options.model):
        kept = ("--decoded-cache-mb", str(2 * options.images), "--logits-cache-entries", str(2 * options.images))
        with started((*one.flags, *kept, "--deadline-ms", str(1000 * ANSWERED_WITHIN_S))) as own:
            found.append(measure(own.url, options.images, options.rounds))
    for measured in found:
        for case, rates in measured["pairs_per_s"].items():
            print(f"{measured['model']['precision']:5s} {case:14s} {statistics.median(rates):8.1f} pairs/s")
    save(options.output, "retrieval", described, images=options.images, servers=found)


def measure(url: str, images: int, rounds: int) -> dict[str, Any]:
    """Rank in every case in every round, each round with its own pictures.

    Raises: ValueError, httpx.HTTPError: the server refused, or failed.
    """
    picture, nonce = photo.draw(), workload.nonces()
    rates: dict[str, list[float]] = {case: [] for case in CASES}
    model = contract.model_for(url, "rank")
    with (
        httpx.Client(base_url=url, timeout=ANSWERED_WITHIN_S) as client,
        tqdm(total=rounds * len(CASES), unit="rank", disable=None, leave=False) as bar,
    ):
        for number in range(rounds):
            # the same picture, but different files
            files = [("images", (f"{index}.jpg", picture + next(nonce))) for index in range(images)]
            first, second = photo.QUESTIONS[number % 4], photo.QUESTIONS[4 + number % 4]
            for case, text in zip(CASES, (first, second, second), strict=True):
                response = client.post("/v1/rank", data={"query_text": text, "top_k": "1"}, files=files)
                total_s = accepted(response).json()["timing_ms"]["total"] / 1000
                rates[case].append(images / total_s)
                bar.update()
    return {"model": model, "pairs_per_s": rates}
