"""Decide whether a lower precision may be served in place of fp32.

Both answer the same examples: JSON lines (RECORDS), as `vilt-bench accuracy` reads them, with pictures beside the file.
For every head there must be enough examples, and the two must agree on nearly all of them. Where the correct answer is
known ("answer", "match"), accuracy may drop by at most `Limits.loss` or by one answer.

For ranking, only which candidate comes first is compared: the head is trained on differences between candidates, so
the sign of a ranking logit means nothing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity import Logits, Runner
from models.answers import matching_score
from models.batch import Features, collate
from models.errors import InvalidInput
from models.image import ImagePatches, decode, identify, to_patches
from models.spec import ViltSpec
from models.text import TextEncoder
from models.text import check as check_text

RECORDS = """\
  {"image": "1.png", "question": "how many circles are there?", "answer": "2"}
  {"image": "1.png", "text": "a red circle", "match": true}
  {"text": "a red circle", "images": ["1.png", "2.png"], "match": 0}
  {"image": "1.png", "texts": ["a red circle", "a blue star"], "match": 0}
"""
EXAMPLES_OF = {"vqa_logits": "questions", "itm_logits": "texts", "rank_logits": "ranks"}
MAX_PIXELS = 100_000_000
MATCH_FROM = 0.5
NOT_GATED = {"status": "not gated", "why": "no --eval-data was given"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a precision may be from fp32."""

    agreement: float  # least share of a head's answers that must be fp32's
    loss: float = 0.003  # largest drop in accuracy: 0.3 points, or one answer
    score_difference: float | None = None  # largest difference of any score

    @property
    def least_asked(self) -> int:
        """Examples needed for each head: enough that three answers may differ, so that no single one decides."""
        return round(3 / (1 - self.agreement))


INT8 = Limits(agreement=0.99)
FP16 = Limits(agreement=0.995, score_difference=5e-3)
Progress = Callable[[Sequence["Example"]], Iterable["Example"]]
Label = str | bool | int | None
Scores = NDArray[np.float64]


class GateError(Exception):
    """The evaluation data cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture with a question or a text, or the candidates of a rank, for one head."""

    head: str
    pairs: tuple[tuple[Path, str], ...]
    label: Label  # the correct answer, if known


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer, and the scores of all possible answers."""

    answer: Label
    scores: Scores


@dataclass(slots=True)
class Tally:
    """How the predictions of two precisions compare."""

    asked: int = 0
    agreed: int = 0
    known: int = 0
    correct_in_fp32: int = 0
    correct: int = 0
    furthest: float = 0.0

    def add(self, fp32: Prediction, other: Prediction, label: Label) -> None:
        self.asked += 1
        self.agreed += other.answer == fp32.answer
        self.furthest = float(np.maximum(self.furthest, np.abs(other.scores - fp32.scores).max()))  # NaN stays
        if label is not None:
            self.known += 1
            self.correct_in_fp32 += fp32.answer == label
            self.correct += other.answer == label

    def faults(self, limits: Limits) -> Iterator[str]:
        """Name the limits that are exceeded, with figures."""
        if self.agreed < limits.agreement * self.asked:
            differ = self.asked - self.agreed
            yield f"{differ} of {self.asked} answers differ from fp32's; {1 - limits.agreement:.1%} may"
        lost = self.correct_in_fp32 - self.correct
        if lost > 1 and lost / self.known > limits.loss:
            yield f"{lost} of {self.known} correct answers are lost; {limits.loss:.1%} or one may be"
        if limits.score_difference is not None and not self.furthest <= limits.score_difference:  # a NaN is not
            yield f"a score differs from fp32's by {self.furthest:.4g}; {limits.score_difference} is allowed"

    def figures(self) -> dict[str, float | None]:
        return {
            "agreement": self.agreed / self.asked if self.asked else None,
            "right_answers_known": self.known,
            "accuracy_fp32": self.correct_in_fp32 / self.known if self.known else None,
            "accuracy": self.correct / self.known if self.known else None,
            "max_score_difference": self.furthest,
        }


def read(data: Path, heads: Iterable[str], spec: ViltSpec) -> list[Example]:
    """Read the examples for these heads, and their pictures' headers, so that flaws are found before an export begins.

    Raises: GateError: the file is not JSON lines, a line of it is of no known kind or has a text that no model reads, a
        picture is missing or unusable, or there are no examples for these heads.
    """
    try:
        lines = data.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise GateError(f"--eval-data {data} cannot be read: {error}.") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    parsed = [_parse(line, f"--eval-data {data}, line {number}", data.parent) for number, line in numbered]
    examples = [one for one in parsed if one.head in set(heads)]
    if not examples:
        raise GateError(f"--eval-data {data} asks nothing that this checkpoint answers.")
    pictures = dict.fromkeys(path for one in examples for path, _ in one.pairs)
    missing = [path for path in pictures if not _is_file(path)]
    if missing:
        raise GateError(f"--eval-data {data}: {len(missing):,} pictures are missing, the first is {missing[0]}.")
    flaws = {path: flaw for path in pictures if (flaw := _flaw(path, spec))}
    if flaws:
        first = next(iter(flaws))
        raise GateError(
            f"--eval-data {data}: {len(flaws):,} pictures cannot be used, the first is {first}: {flaws[first]}"
        )
    return examples


def check(
    fp32: Runner,
    other: Runner,
    examples: Sequence[Example],
    *,
    heads: Iterable[str],
    spec: ViltSpec,
    encoder: TextEncoder,
    labels: Sequence[str],
    limits: Limits,
    progress: Progress = lambda examples: examples,
) -> dict[str, Any]:
    """Run both on the same examples, one at a time, and say whether each head of the other passes.

    Raises: GateError: a picture cannot be read.
    """
    total, of_head = Tally(), {head: Tally() for head in heads}
    for one in progress(_without_too_many_ranks(examples, limits.least_asked)):
        feeds = (collate([features]) for features in _features(one, spec, encoder))
        of_pairs = [(fp32(each), other(each)) for each in feeds]  # lazily: a rank's pictures are many
        predictions = [_predict(logits, one.head, labels) for logits in zip(*of_pairs, strict=True)]
        for tally in (total, of_head[one.head]):
            tally.add(*predictions, one.label)
    return {
        **_verdict(of_head, limits),
        **{name: of_head[head].asked for head, name in EXAMPLES_OF.items() if head in of_head},
        **total.figures(),
        "heads": {head: {"asked": tally.asked, **tally.figures()} for head, tally in of_head.items()},
        "least_asked": limits.least_asked,
        "agreement_needed": limits.agreement,
        "loss_allowed": limits.loss,
        "score_difference_allowed": limits.score_difference,
    }


def _verdict(of_head: Mapping[str, Tally], limits: Limits) -> dict[str, str]:
    """Pass if every head passes, else say why not; a head with too few examples is not judged."""
    few = {head: tally.asked for head, tally in of_head.items() if tally.asked < limits.least_asked}
    judged = {head: tally for head, tally in of_head.items() if head not in few}
    faults = [f"{EXAMPLES_OF[head]}: {fault}" for head, tally in judged.items() for fault in tally.faults(limits)]
    if faults:
        return {"status": "failed", "why": "; ".join(faults)}
    if few:
        counts = ", ".join(f"{count} {EXAMPLES_OF[head]}" for head, count in few.items())
        return {"status": "not gated", "why": f"--eval-data has {counts}: {limits.least_asked} of each are needed"}
    return {"status": "passed"}


def _parse(line: str, where: str, folder: Path) -> Example:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GateError(f"{where} is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise GateError(f"{where} is not a JSON object.")
    try:
        example = _example(record, folder)
        for _, text in example.pairs if example else ():
            check_text(text)
    except TypeError as error:
        raise GateError(f"{where} has a value of the wrong type: {error}.") from error
    except InvalidInput as error:
        raise GateError(f"{where}: {error}") from error
    if example is None:
        keys = ", ".join(record) or "nothing"
        raise GateError(f"{where} is neither a question, a text nor a rank; it has {keys}. See vilt-export --help.")
    possible = {"itm_logits": [False, True], "rank_logits": [*range(len(example.pairs))]}
    if example.label is not None and example.label not in possible.get(example.head, [example.label]):
        raise GateError(
            f"{where}: match is {example.label!r}; it must be true or false, or in a rank the number of a candidate."
        )
    return example


def _example(record: dict[str, Any], folder: Path) -> Example | None:
    """Tell a record's kind by its keys."""
    match record:
        case {"image": image, "question": str(question)}:
            answer = record.get("answer")  # labels are strings; an answer may be a number
            return Example("vqa_logits", ((folder / image, question),), None if answer is None else str(answer))
        case {"images": [_, _, *_] as images, "text": str(text)}:
            return Example("rank_logits", tuple((folder / image, text) for image in images), record.get("match"))
        case {"image": image, "texts": [_, _, *_] as texts} if all(isinstance(text, str) for text in texts):
            return Example("rank_logits", tuple((folder / image, text) for text in texts), record.get("match"))
        case {"image": image, "text": str(text)}:
            return Example("itm_logits", ((folder / image, text),), record.get("match"))
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its name is too long for a file
        return False


def _flaw(picture: Path, spec: ViltSpec) -> str:
    """Say why a picture cannot be used, as far as its header tells, or return an empty string."""
    try:
        identify(picture.read_bytes(), max_pixels=MAX_PIXELS, max_aspect_ratio=spec.max_aspect_ratio)
    except (OSError, InvalidInput) as error:
        return str(error)
    return ""


def _without_too_many_ranks(examples: Sequence[Example], most: int) -> list[Example]:
    """Draw no more ranks than are needed, the same ones every time: each costs as many runs as it has candidates."""
    ranks = [one for one in examples if one.head == "rank_logits"]
    others = [one for one in examples if one.head != "rank_logits"]
    if len(ranks) > most:
        drawn = np.random.default_rng(0).choice(len(ranks), most, replace=False)
        ranks = [ranks[index] for index in sorted(drawn)]
    return others + ranks


def _features(one: Example, spec: ViltSpec, encoder: TextEncoder) -> Iterator[Features]:
    pictures: dict[Path, ImagePatches] = {}  # a rank of texts has one
    for path, text in one.pairs:
        try:
            if path not in pictures:
                image = decode(path.read_bytes(), max_pixels=MAX_PIXELS, max_aspect_ratio=spec.max_aspect_ratio)
                pictures[path] = to_patches(image, spec)
            yield Features(pictures[path], encoder.encode(text))
        except (OSError, InvalidInput) as error:
            raise GateError(f"--eval-data: {path}: {error}") from error


def _predict(logits: Sequence[Logits], head: str, labels: Sequence[str]) -> Prediction:
    """Read an answer off the logits as the server would; a rank's scores by softmax, as they were trained."""
    values = np.concatenate([each[head][0] for each in logits]).astype(np.float64)
    if head == "itm_logits":
        score = matching_score(logits[0][head][0])
        return Prediction(score >= MATCH_FROM, np.array([score]))
    if head == "vqa_logits":
        return Prediction(labels[int(values.argmax())], 1 / (1 + np.exp(-values)))
    exponentials = np.exp(values - values.max())
    return Prediction(int(values.argmax()), exponentials / exponentials.sum())
