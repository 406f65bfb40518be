"""What `--jpeg-decode scaled` gains with large photos, and whether it changes answers.

Two servers, one that decodes exactly and one that scales, are asked the same questions in turns. The pictures of --data
are enlarged without smoothing, so that edges stay sharp, and get the grain of a photo.
"""

import argparse
import contextlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from loadtest import accuracy, contract
from loadtest.arguments import add_command, add_model, add_output, at_least
from loadtest.contract import TIMEOUT_S, accepted
from loadtest.launch import started
from loadtest.oracle import ALL, Scores
from loadtest.stamp import save, stamp
from loadtest.summary import Spread
from loadtest.workload import add_data

WAYS = ("exact", "scaled")
GRAIN = 6.0  # of 255, standard deviation
STAGES = ("decode", "preprocess", "inference", "total")


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's scores for a question, and how long its stages took."""

    scores: Scores
    stages_ms: dict[str, float]

    @property
    def best(self) -> str:
        return max(self.scores, key=self.scores.__getitem__)


def add_to(commands: Any) -> None:
    """Declare `vilt-bench decode`."""
    parser = add_command(
        commands, "decode", "what scaled decoding of JPEGs gains, and changes in answers", __doc__, run
    )
    add_data(parser)
    parser.add_argument("--count", type=at_least(1), default=500, help="number of questions (default %(default)s)")
    parser.add_argument(
        "--megapixels",
        type=at_least(0.0),
        default=12.0,
        help="enlarge the pictures to so many megapixels; 0 sends them unchanged (default %(default)g)",
    )
    add_model(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> None:
    described = stamp()
    records = accuracy.questions(options.data)[: options.count]
    with contextlib.ExitStack() as stack:
        urls = {way: stack.enter_context(started(["--jpeg-decode", way], model=options.model)).url for way in WAYS}
        clients = {way: stack.enter_context(httpx.Client(base_url=url, timeout=TIMEOUT_S)) for way, url in urls.items()}
        model = contract.model_for(urls["exact"], "vqa")
        found = ask_all(clients, options.data.parent, records, options.megapixels)
    result = summarise(found, records)
    print(text_of(result))
    asked = {"megapixels": options.megapixels, "questions": len(records), "model": model}
    save(options.output, "decode", described, **asked, **result)


def ask_all(
    clients: dict[str, httpx.Client], folder: Path, records: Sequence[dict[str, Any]], megapixels: float
) -> dict[str, list[Answer]]:
    """Ask both servers every question, one request at a time; which is asked first alternates.

    Raises: ValueError, httpx.HTTPError: a server refused, or failed; OSError: a picture cannot be read.
    """
    found: dict[str, list[Answer]] = {way: [] for way in WAYS}
    orders = itertools.cycle((WAYS, WAYS[::-1]))
    bar = tqdm(records, unit="question", disable=None, leave=False)
    for number, (record, order) in enumerate(zip(bar, orders, strict=False)):
        picture = (folder / record["image"]).read_bytes()
        sent = enlarged(picture, megapixels) if megapixels else picture
        sent += number.to_bytes(4, "big")  # makes every picture a new one, which has to be decoded
        for way in order:
            response = clients[way].post(
                "/v1/vqa",
                files={"image": ("photo.jpg", sent)},
                data={"question": record["question"], "top_k": str(ALL)},
            )
            said = accepted(response).json()
            found[way].append(Answer({one["answer"]: one["score"] for one in said["answers"]}, said["timing_ms"]))
    return found


def enlarged(picture: bytes, megapixels: float) -> bytes:
    """Enlarge a picture to a grainy JPEG of so many megapixels."""
    with Image.open(io.BytesIO(picture)) as image:
        factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = round(image.width * factor), round(image.height * factor)
        large = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    rng = np.random.default_rng(len(picture))
    grain = rng.normal(0, GRAIN, (size[1], size[0], 1)).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def summarise(found: dict[str, list[Answer]], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute each stage's quartiles, and compare the answers.

    Units: milliseconds.
    """
    exact, scaled = (found[way] for way in WAYS)
    pairs = list(zip(exact, scaled, strict=True))
    known = [index for index, record in enumerate(records) if record.get("answer") is not None]
    return {
        "ms": {
            way: {stage: Spread.of(one.stages_ms[stage] for one in answers) for stage in STAGES}
            for way, answers in found.items()
        },
        "agreement": sum(one.best == other.best for one, other in pairs) / len(pairs),
        "largest_difference": max(
            abs(one.scores[name] - other.scores[name]) for one, other in pairs for name in one.scores
        ),
        "accuracy": {
            way: sum(found[way][index].best == records[index]["answer"] for index in known) / len(known)
            for way in WAYS
            if known
        },
    }


def text_of(result: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    lines = [f"{'ms':12} {'exact':>28} {'scaled':>28}"]
    lines += [f"{stage:12} " + " ".join(f"{result['ms'][way][stage]!s:>28}" for way in WAYS) for stage in STAGES]
    lines.append(f"same answers: {100 * result['agreement']:.2f} %")
    lines.append(f"largest difference of a score: {result['largest_difference']:.3f}")
    lines += [f"right, {way}: {100 * value:.2f} %" for way, value in result["accuracy"].items()]
    return "\n".join(lines)
