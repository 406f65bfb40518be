"""What `--jpeg-decode scaled` gains with large photos, and whether it changes answers.

Two servers, one that decodes exactly and one that scales, are asked the same in turns. Pictures of --data are enlarged
to so many megapixels, pixel by pixel, so that edges stay sharp, with the grain of a photo; --megapixels 0 sends
the files as they are.
"""

import argparse
import contextlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from loadtest import accuracy, contract
from loadtest.arguments import at_least
from loadtest.contract import accepted
from loadtest.launch import started
from loadtest.oracle import ALL, TIMEOUT_S, Scores
from loadtest.stamp import stamp
from loadtest.summary import quartiles
from loadtest.workload import SAMPLES

WAYS = ("exact", "scaled")
GRAIN = 6.0  # of 255, standard deviation
STAGES = ("decode", "preprocess", "inference", "total")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said of a question, and where the time went."""

    scores: Scores
    stages_ms: dict[str, float]

    @property
    def best(self) -> str:
        return max(self.scores, key=self.scores.__getitem__)


def add_to(commands: Any) -> None:
    """Declare `vilt-bench decode`."""
    parser = commands.add_parser(
        "decode",
        help="what scaled decoding of large JPEGs gains, and whether it changes answers",
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
    parser.add_argument("--count", type=at_least(1), default=500, help="questions, at most (default %(default)s)")
    parser.add_argument(
        "--megapixels", type=at_least(0.0), default=12.0, help="of the pictures sent (default %(default)g)"
    )
    parser.add_argument("--model", metavar="DIR", help="artifact that is served (default: shapes)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    records = accuracy.questions(options.data)[: options.count]
    flags = ["--model", options.model] if options.model else []
    with contextlib.ExitStack() as stack:
        urls = {way: stack.enter_context(started([*flags, "--jpeg-decode", way])).url for way in WAYS}
        clients = {way: stack.enter_context(httpx.Client(base_url=url, timeout=TIMEOUT_S)) for way, url in urls.items()}
        model = contract.model_for(urls["exact"], "vqa")
        found = ask_all(clients, options.data.parent, records, options.megapixels)
    result = summarise(found, records)
    print(text_of(result))
    if options.output:
        asked = {"megapixels": options.megapixels, "questions": len(records), "model": model}
        content = {"benchmark": "vilt-bench decode", **described, **asked, **result}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(content, indent=2) + "\n")


def ask_all(
    clients: dict[str, httpx.Client], folder: Path, records: Sequence[dict[str, Any]], megapixels: float
) -> dict[str, list[Answer]]:
    """Ask both every question, one request at a time; who is asked first takes turns, too.

    Raises: ValueError, httpx.HTTPError: one refused, or failed; OSError: a picture cannot be read.
    """
    found: dict[str, list[Answer]] = {way: [] for way in WAYS}
    orders = itertools.cycle((WAYS, WAYS[::-1]))
    bar = tqdm(records, unit="question", disable=None, leave=False)
    for number, (record, order) in enumerate(zip(bar, orders, strict=False)):
        picture = (folder / record["image"]).read_bytes()
        sent = enlarged(picture, megapixels) if megapixels else picture
        sent += number.to_bytes(4, "big")  # no picture is the one before, which would not be decoded again
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
    """Make a JPEG of so many megapixels out of a picture, with grain."""
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
    """Take each stage's quartiles, and compare what was said.

    Units: milliseconds.
    """
    exact, scaled = (found[way] for way in WAYS)
    pairs = list(zip(exact, scaled, strict=True))
    known = [index for index, record in enumerate(records) if record.get("answer") is not None]
    return {
        "ms": {
            way: {stage: _spread(one.stages_ms[stage] for one in answers) for stage in STAGES}
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


def _spread(values: Iterable[float]) -> dict[str, float]:
    return dict(zip(("p25", "median", "p75"), quartiles(values), strict=True))


def text_of(result: dict[str, Any]) -> str:
    """Say it in a table."""
    lines = [f"{'ms':12} {'exact':>24} {'scaled':>24}"]
    for stage in STAGES:
        both = [result["ms"][way][stage] for way in WAYS]
        lines.append(
            f"{stage:12} "
            + " ".join(f"{one['median']:8.1f} ({one['p25']:.1f} to {one['p75']:.1f})".rjust(24) for one in both)
        )
    lines.append(f"answers that are the same: {100 * result['agreement']:.2f} %")
    lines.append(f"largest difference of a score: {result['largest_difference']:.3f}")
    lines += [f"right, {way}: {100 * value:.2f} %" for way, value in result["accuracy"].items()]
    return "\n".join(lines)
