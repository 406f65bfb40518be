"""What a longer text costs: the inference time that the server reports for one image, over the number of text tokens.

A model exported with a fixed text length would show a flat line.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import httpx
from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest import contract, credentials, photo
from loadtest.arguments import add_command, add_output, add_server, at_least
from loadtest.contract import TIMEOUT_S, accepted
from loadtest.launch import server
from loadtest.stamp import save, stamp
from loadtest.summary import quartiles
from loadtest.workload import nonces

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
WORD = "a"  # one token in BERT's vocabulary and in that of shapes


def add_to(commands: Any) -> None:
    """Declare `vilt-bench length`."""
    parser = add_command(commands, "length", "inference time over text length", __doc__, run)
    add_server(parser)
    parser.add_argument(
        "--rounds", type=at_least(1), default=15, help="measurements of each text length (default %(default)s)"
    )
    add_output(parser, ", with a plot beside it")


def run(options: argparse.Namespace) -> None:
    described = stamp()
    with (
        server(options.url, options.model) as url,
        httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=credentials.headers()) as client,
    ):
        model = contract.model_for(url, "vqa")
        samples = measure(client, model["max_text_tokens"], options.rounds)
    result = summarise(model, samples, options.rounds)
    for row in result["curve"]:
        print(
            f"{row['text_tokens']:3} tokens  {row['median_ms']:8.2f} ms  ({row['p25_ms']:.2f} to {row['p75_ms']:.2f})"
        )
    save(options.output, "length", described, **result)
    if options.output:
        plot(result, options.output.with_suffix(".png"))


def measure(client: httpx.Client, longest: int, rounds: int) -> dict[int, list[float]]:
    """Ask with every text length in every round, shuffled each time so that drift affects all alike.

    Units: milliseconds of inference, by text tokens.

    Raises: ValueError, httpx.HTTPError: the server refused, or failed.
    """
    picture, nonce = photo.draw(), nonces()  # a repeated question could be answered from the logits cache
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
                content=picture + next(nonce),
                headers={"Content-Type": "image/jpeg"},
            )
            inference_ms = accepted(response).json()["timing_ms"]["inference"]
            if not warm_up:
                samples[length].append(inference_ms)
    return samples


def summarise(model: dict[str, Any], samples: dict[int, list[float]], rounds: int) -> dict[str, Any]:
    """Compute medians and quartiles."""
    curve = []
    for length, values in samples.items():
        p25, median, p75 = quartiles(values)
        curve.append({"text_tokens": length, "median_ms": median, "p25_ms": p25, "p75_ms": p75})
    return {"model": model, "image": "640x480 JPEG", "rounds": rounds, "curve": curve}


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
