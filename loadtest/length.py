"""What a longer text costs: inference time over the number of text tokens, of one image, as the server reports it.

A model exported with a fixed text length would show a flat line at its longest.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import httpx
from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest import contract, credentials, photo
from loadtest.arguments import at_least
from loadtest.contract import accepted
from loadtest.launch import server
from loadtest.stamp import stamp
from loadtest.summary import quartiles

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
WORD = "a"  # one token in BERT's vocabulary and in that of shapes


def add_to(commands: Any) -> None:
    """Declare `vilt-bench length`."""
    parser = commands.add_parser("length", help="latency over text length", description=__doc__)
    parser.add_argument("--url", help="of a running, otherwise idle server (default: start vilt-serve)")
    parser.add_argument("--model", metavar="DIR", help="artifact that the started server serves (default: shapes)")
    parser.add_argument(
        "--rounds", type=at_least(1), default=15, help="of every length, shuffled (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON, and a plot beside it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    flags = ["--model", options.model] if options.model else []
    with (
        server(options.url, flags) as url,
        httpx.Client(base_url=url, timeout=120, headers=credentials.headers()) as client,
    ):
        model = contract.model_for(url, "vqa")
        samples = measure(client, model["max_text_tokens"], options.rounds)
    result = {**described, **summarise(model, samples, options.rounds)}
    for row in result["curve"]:
        print(
            f"{row['text_tokens']:3} tokens  {row['median_ms']:8.2f} ms  ({row['p25_ms']:.2f} to {row['p75_ms']:.2f})"
        )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        plot(result, options.output.with_suffix(".png"))


def measure(client: httpx.Client, longest: int, rounds: int) -> dict[int, list[float]]:
    """Ask with every length in every round, in an order shuffled anew, so that drift falls on all alike.

    Units: milliseconds of inference, by text tokens.

    Raises: ValueError, httpx.HTTPError: the server refused, or failed.
    """
    picture = photo.draw()
    lengths = list(range(SPECIAL_TOKENS + 1, longest + 1))
    samples: dict[int, list[float]] = {length: [] for length in lengths}
    shuffler = random.Random(0)  # noqa: S311 an order, not a secret
    for warm_up in (True, *[False] * rounds):
        shuffler.shuffle(lengths)
        for length in tqdm(lengths, desc="warm-up" if warm_up else "round", leave=False, disable=None):
            text = " ".join([WORD] * (length - SPECIAL_TOKENS))
            response = client.post(
                "/v1/vqa",
                params={"question": text, "top_k": 1},
                content=picture,
                headers={"Content-Type": "image/jpeg"},
            )
            inference_ms = accepted(response).json()["timing_ms"]["inference"]
            if not warm_up:
                samples[length].append(inference_ms)
    return samples


def summarise(model: dict[str, Any], samples: dict[int, list[float]], rounds: int) -> dict[str, Any]:
    """Take medians and quartiles."""
    curve = []
    for length, values in samples.items():
        p25, median, p75 = quartiles(values)
        curve.append({"text_tokens": length, "median_ms": median, "p25_ms": p25, "p75_ms": p75})
    return {
        "benchmark": "vilt-bench length",
        "model": model,
        "image": "640x480 JPEG",
        "rounds": rounds,
        "curve": curve,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the curve with its quartiles."""
    curve = result["curve"]
    tokens = [row["text_tokens"] for row in curve]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.fill_between(tokens, [row["p25_ms"] for row in curve], [row["p75_ms"] for row in curve], alpha=0.25)
    axes.plot(tokens, [row["median_ms"] for row in curve], marker=".")
    axes.set_xlabel("text tokens")
    axes.set_ylabel("inference, ms (median and quartiles)")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{result['model']['name']}, {result['model']['precision']}, one {result['image']}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")
