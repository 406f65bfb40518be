"""Check that the public checkpoints, exported as usual, give the published answers. Needs a network, or copies.

Tests compare the graphs with transformers with random weights; this runs the weights that people use, from an image
file to logits, and compares with figures that others have published.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
from PIL import Image

from export import checkpoint, parity
from export.artifact import write_artifact
from export.output_folder import OutputError
from models.answers import top_answers
from models.batch import Features, collate
from models.errors import InvalidInput
from models.image import decode, to_patches
from models.manifest import Artifact, load_artifact
from models.spec import ViltSpec

IMAGE_URL = "http://images.cocodataset.org/val2017/000000039769.jpg"
MAX_PIXELS = 50_000_000
# |difference| <= 1e-4 + 1e-5 * |published|: torch.allclose(..., atol=1e-4), with which transformers checks the same
# figures; they are printed to 4 decimals, which alone is up to 5e-5.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5
DIFFERS, NOT_COMPARED = 1, 2  # exit statuses

Ask = Callable[[str], parity.Logits]  # a text about the picture to the logits of each head, without a batch axis


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, as it is printed."""

    compared: str
    expected: str
    found: str
    agrees: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A published answer of a checkpoint to a question, with its first logits."""

    task: ClassVar = "vqa"
    hub_id: str
    question: str
    answer: str
    first_logits: tuple[float, ...]

    def rows(self, ask: Ask, labels: Sequence[str]) -> list[Row]:
        logits = ask(self.question)["vqa_logits"]
        answer, first = top_answers(logits, labels, 1)[0].answer, logits[: len(self.first_logits)]
        close = len(first) == len(self.first_logits) and np.allclose(
            first, self.first_logits, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
        )
        return [
            Row(f'answer to "{self.question}"', self.answer, answer, answer == self.answer),
            Row(f"its first {len(self.first_logits)} logits", _join(self.first_logits), _join(first), bool(close)),
        ]


@dataclass(frozen=True, slots=True)
class Order:
    """Which of two texts a checkpoint must rank first.

    Source: transformers modeling_vilt.py, the example of ViltForImageAndTextRetrieval, which prints no figures.
    """

    task: ClassVar = "rank"
    hub_id: str
    fits: str = "An image of two cats chilling on a couch"
    does_not: str = "A football player scoring a goal"

    def rows(self, ask: Ask, labels: Sequence[str]) -> list[Row]:
        fits, does_not = (float(ask(text)["rank_logits"][0]) for text in (self.fits, self.does_not))
        return [Row("logits of a true and a false text", "larger, smaller", _join((fits, does_not)), fits > does_not)]


Golden = Answer | Order
GOLDENS: Mapping[str, Golden] = {
    # Source: transformers convert_vilt_original_to_pytorch.py (the JPEG file, resized with Pillow) at 00e12e7, and
    # ViltModelIntegrationTest.test_inference_visual_question_answering (the same picture as PNG).
    "vqa": Answer("dandelin/vilt-b32-finetuned-vqa", "How many cats are there?", "2", (-15.9495, -18.1472, -10.3041)),
    "coco": Order("dandelin/vilt-b32-finetuned-coco"),
    "flickr30k": Order("dandelin/vilt-b32-finetuned-flickr30k"),
}
# The same script also prints figures of vilt-b32-mlm-itm and of NLVR2, but of heads that are not exported.

EPILOG = f"""what is compared, on COCO val2017 000000039769 ({IMAGE_URL}):
  vqa         dandelin/vilt-b32-finetuned-vqa         the answer and the first logits that transformers publishes
  coco        dandelin/vilt-b32-finetuned-coco        no logits are published: a text that fits the picture
  flickr30k   dandelin/vilt-b32-finetuned-flickr30k   must rank above one that does not

Each is exported as vilt-export does (parity with transformers included), loaded as vilt-serve does, and asked through
onnxruntime. Each download is about 450 MB and stays in the hub's cache.

without a network:
  HF_ENDPOINT=https://...   a mirror of the hub
  HF_HOME=DIR               a hub cache that has the checkpoints, copied from another machine
  --vqa DIR                 a folder with config.json, weights and vocabulary, downloaded elsewhere

examples:
  curl -O {IMAGE_URL}
  python -m export.check_weights 000000039769.jpg
  python -m export.check_weights 000000039769.jpg --only vqa --vqa ~/vilt-b32-finetuned-vqa --output models/checked
  make check-weights IMAGE=000000039769.jpg ARGS="--only vqa"

exit status: 0 all agree, {DIFFERS} something differs, {NOT_COMPARED} something could not be compared
"""


def main(arguments: Sequence[str] | None = None, goldens: Mapping[str, Golden] = GOLDENS) -> None:
    parser = _parser(goldens)
    options = parser.parse_args(arguments)
    picture = _read_picture(options.image, parser)
    folders = {name: _folder(getattr(options, name), name, parser) for name in goldens}
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="check-weights-") as temporary:
            for name in options.only or goldens:
                artifact = _export(name, goldens[name], folders[name], (options.output or Path(temporary)) / name)
                found = goldens[name].rows(_asker(artifact, picture), artifact.labels)
                _print(name, found, heading=not rows)
                rows += found
    except checkpoint.DownloadError as error:
        _stop(
            f"{goldens[name].hub_id} could not be downloaded ({error.reason}): connect to a network, set HF_ENDPOINT to"
            f" a mirror or HF_HOME to a cache that has it, or pass a folder downloaded elsewhere with --{name} DIR."
        )
    except (checkpoint.CheckpointError, parity.ParityError, OutputError, InvalidInput) as error:
        _stop(f"{name}: {error}")
    if not all(row.agrees for row in rows):
        _progress(f"check-weights: something differs; was the image {IMAGE_URL}, as downloaded?")
        sys.exit(DIFFERS)


def _export(name: str, golden: Golden, folder: Path | None, output: Path) -> Artifact:
    """Export a checkpoint as vilt-export does, and load the artifact as vilt-serve does."""
    source = str(folder or golden.hub_id)
    _progress(f"{name}: loading {source}")
    loaded = checkpoint.load(source)
    write_artifact(
        loaded,
        output,
        name=name,
        description="",
        tasks=[golden.task],
        report=lambda step: _progress(f"{name}: {step}"),
    )
    return load_artifact(output)


def _asker(artifact: Artifact, picture: Image.Image) -> Ask:
    """Return a function that asks an artifact about a picture, on the path that a request takes."""
    patches, run = to_patches(picture, artifact.manifest.spec), parity.onnx_runner(artifact.graphs)

    def ask(text: str) -> parity.Logits:
        logits = run(collate([Features(patches, artifact.text_encoder.encode(text))]))
        return {head: values[0] for head, values in logits.items()}

    return ask


def _parser(goldens: Mapping[str, Golden]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.check_weights",
        description="Export the public ViLT checkpoints and compare their answers about a picture with published ones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "image",
        type=Path,
        nargs="?",
        metavar="IMAGE",
        help=f"the picture, which is not shipped; download it from {IMAGE_URL}",
    )
    for name, golden in goldens.items():
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"a folder with {golden.hub_id} (default: download it)"
        )
    parser.add_argument(
        "--only", action="append", choices=list(goldens), help="check only this one (may be repeated; default: all)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep the artifacts here, each in its own folder (default: remove them)",
    )
    return parser


def _read_picture(path: Path | None, parser: argparse.ArgumentParser) -> Image.Image:
    """Read the image file before anything is downloaded."""
    if path is None:
        parser.error(f"IMAGE is missing: download {IMAGE_URL} and pass its path (make check-weights IMAGE=PATH).")
    try:
        return decode(path.read_bytes(), max_pixels=MAX_PIXELS, max_aspect_ratio=ViltSpec().max_aspect_ratio)
    except OSError as error:
        parser.error(f"{path} cannot be read ({error.strerror}): download {IMAGE_URL} and pass its path.")
    except InvalidInput as error:
        parser.error(f"{path}: {error} It should be {IMAGE_URL}.")


def _folder(path: Path | None, name: str, parser: argparse.ArgumentParser) -> Path | None:
    if path is not None and not path.is_dir():
        parser.error(f"--{name} {path} is not a folder.")  # or it would be taken for a hub id
    return path


def _print(name: str, rows: Iterable[Row], *, heading: bool) -> None:
    layout = "{:<10} {:<37} {:<27} {:<27} {}"
    if heading:
        print(layout.format("checkpoint", "compared", "expected", "got", ""))
    for row in rows:
        print(layout.format(name, row.compared, row.expected, row.found, "ok" if row.agrees else "differs"), flush=True)


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _stop(sentence: str) -> NoReturn:
    _progress(f"check-weights: {sentence}")
    sys.exit(NOT_COMPARED)


def _join(logits: Iterable[float]) -> str:
    return " ".join(f"{logit:.4f}" for logit in logits)


if __name__ == "__main__":
    main()
