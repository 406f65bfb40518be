"""May a precision be served in the place of fp32? Both are asked the same, and few answers may differ.

What is asked are JSON lines (RECORDS), as `vilt-bench accuracy` reads them, with pictures beside the file. Every head
has to be asked enough and its answers have to agree; where the right one is known ("answer", "match") accuracy may
fall by no more than so much, or by one answer.

Of a rank counts which candidate comes first. The ranking head is trained on differences between candidates: all its
logits may lie far above zero, or far below, and their signs say nothing.
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
ASKED_OF = {"vqa_logits": "questions", "itm_logits": "texts", "rank_logits": "ranks"}
MAX_PIXELS = 100_000_000
MATCH_FROM = 0.5
NOT_GATED = {"status": "not gated", "why": "no --eval-data was given"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a precision may be from fp32."""

    agreement: float  # of a head's answers, at least
    loss: float = 0.003  # of accuracy, at most: 0.3 points, or one answer
    score_difference: float | None = None  # the largest of anything asked, at most

    @property
    def least_asked(self) -> int:
        """How often a head has to be asked: so often that three answers may differ, and no single one decides."""
        return round(3 / (1 - self.agreement))


INT8 = Limits(agreement=0.99)
FP16 = Limits(agreement=0.995, score_difference=5e-3)
Progress = Callable[[Sequence["Asked"]], Iterable["Asked"]]
Right = str | bool | int | None
Scores = NDArray[np.float64]


class GateError(Exception):
    """The evaluation data cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture with a question or a text, or the candidates of a rank, for one head."""

    head: str
    pairs: tuple[tuple[Path, str], ...]
    right: Right


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the score of every one."""

    answer: Right
    scores: Scores


@dataclass(slots=True)
class Tally:
    """What came of what was asked."""

    asked: int = 0
    agreed: int = 0
    known: int = 0
    right_in_fp32: int = 0
    right: int = 0
    furthest: float = 0.0

    def add(self, expected: Said, found: Said, right: Right) -> None:
        self.asked += 1
        self.agreed += found.answer == expected.answer
        self.furthest = float(np.maximum(self.furthest, np.abs(found.scores - expected.scores).max()))  # NaN stays
        if right is not None:
            self.known += 1
            self.right_in_fp32 += expected.answer == right
            self.right += found.answer == right

    def faults(self, limits: Limits) -> Iterator[str]:
        """Say which limits it is beyond, with the figure and the limit."""
        if self.agreed < limits.agreement * self.asked:
            differ = self.asked - self.agreed
            yield f"{differ} of {self.asked} answers differ from fp32's, {1 - limits.agreement:.1%} may"
        lost = self.right_in_fp32 - self.right
        if lost > 1 and lost / self.known > limits.loss:
            yield f"{lost} of {self.known} right answers are lost, {limits.loss:.1%} or one may be"
        if limits.score_difference is not None and not self.furthest <= limits.score_difference:  # a NaN is not
            yield f"a score differs by {self.furthest:.4g} from fp32's, {limits.score_difference} is allowed"

    def figures(self) -> dict[str, float | None]:
        return {
            "agreement": self.agreed / self.asked if self.asked else None,
            "right_answers_known": self.known,
            "accuracy_fp32": self.right_in_fp32 / self.known if self.known else None,
            "accuracy": self.right / self.known if self.known else None,
            "max_score_difference": self.furthest,
        }


def read(data: Path, heads: Iterable[str], spec: ViltSpec) -> list[Asked]:
    """Read what the heads can be asked, and the headers of the pictures: an export need not begin to find a flaw.

    Raises: GateError: the file is not JSON lines, a line of it is of no known kind or has a text that no model reads, a
        picture is not there or of no use, or nothing is asked of these heads.
    """
    try:
        lines = data.read_text().split("\n")
    except (OSError, ValueError) as error:
        raise GateError(f"--eval-data {data} cannot be read: {error}.") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    found = [_parse(line, f"--eval-data {data}, line {number}", data.parent) for number, line in numbered]
    asked = [one for one in found if one.head in set(heads)]
    if not asked:
        raise GateError(f"--eval-data {data} asks nothing that this checkpoint answers.")
    pictures = dict.fromkeys(path for one in asked for path, _ in one.pairs)
    missing = [path for path in pictures if not path.is_file()]
    if missing:
        raise GateError(f"--eval-data {data}: {len(missing):,} pictures are not there, the first is {missing[0]}.")
    flaws = {path: flaw for path in pictures if (flaw := _flaw(path, spec))}
    if flaws:
        first = next(iter(flaws))
        raise GateError(
            f"--eval-data {data}: {len(flaws):,} pictures are of no use, the first is {first}: {flaws[first]}"
        )
    return asked


def check(
    fp32: Runner,
    other: Runner,
    asked: Sequence[Asked],
    *,
    heads: Iterable[str],
    spec: ViltSpec,
    encoder: TextEncoder,
    labels: Sequence[str],
    limits: Limits,
    progress: Progress = lambda asked: asked,
) -> dict[str, Any]:
    """Ask both the same, one at a time, and say whether each head of the other passes.

    Raises: GateError: a picture cannot be read.
    """
    total, of_head = Tally(), {head: Tally() for head in heads}
    for one in progress(_without_too_many_ranks(asked, limits.least_asked)):
        feeds = (collate([features]) for features in _features(one, spec, encoder))
        of_pairs = [(fp32(each), other(each)) for each in feeds]  # one after the other: a rank's pictures are many
        expected, found = (_said(logits, one.head, labels) for logits in zip(*of_pairs, strict=True))
        for tally in (total, of_head[one.head]):
            tally.add(expected, found, one.right)
    return {
        **_verdict(of_head, limits),
        **{name: of_head[head].asked for head, name in ASKED_OF.items() if head in of_head},
        **total.figures(),
        "heads": {head: {"asked": tally.asked, **tally.figures()} for head, tally in of_head.items()},
        "least_asked": limits.least_asked,
        "agreement_needed": limits.agreement,
        "loss_allowed": limits.loss,
        "score_difference_allowed": limits.score_difference,
    }


def _verdict(of_head: Mapping[str, Tally], limits: Limits) -> dict[str, str]:
    """Pass if every head does, and say why not; a head that was asked too little is not judged."""
    few = {head: tally.asked for head, tally in of_head.items() if tally.asked < limits.least_asked}
    judged = {head: tally for head, tally in of_head.items() if head not in few}
    faults = [f"{ASKED_OF[head]}: {fault}" for head, tally in judged.items() for fault in tally.faults(limits)]
    if faults:
        return {"status": "failed", "why": "; ".join(faults)}
    if few:
        counts = ", ".join(f"{count} {ASKED_OF[head]}" for head, count in few.items())
        return {"status": "not gated", "why": f"--eval-data has {counts}: {limits.least_asked} of each are needed"}
    return {"status": "passed"}


def _parse(line: str, where: str, folder: Path) -> Asked:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise GateError(f"{where} is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise GateError(f"{where} is not a JSON object.")
    try:
        asked = _asked(record, folder)
        for _, text in asked.pairs if asked else ():
            check_text(text)
    except TypeError as error:
        raise GateError(f"{where} has a value of another type: {error}.") from error
    except InvalidInput as error:
        raise GateError(f"{where}: {error}") from error
    if asked is None:
        keys = ", ".join(record) or "nothing"
        raise GateError(f"{where} is no question, text or rank; it has {keys}. See vilt-export --help.")
    matches = {"itm_logits": [False, True], "rank_logits": [*range(len(asked.pairs))]}
    if asked.right is not None and asked.right not in matches.get(asked.head, [asked.right]):
        raise GateError(f"{where}: match is {asked.right!r}; it has to be true or false, or the number of a candidate.")
    return asked


def _asked(record: dict[str, Any], folder: Path) -> Asked | None:
    """Tell a record's kind by its keys."""
    match record:
        case {"image": image, "question": str(question)}:
            right = record.get("answer")  # labels are strings; an answer may be a number
            return Asked("vqa_logits", ((folder / image, question),), None if right is None else str(right))
        case {"images": [_, _, *_] as images, "text": str(text)}:
            return Asked("rank_logits", tuple((folder / image, text) for image in images), record.get("match"))
        case {"image": image, "texts": [_, _, *_] as texts} if all(isinstance(text, str) for text in texts):
            return Asked("rank_logits", tuple((folder / image, text) for text in texts), record.get("match"))
        case {"image": image, "text": str(text)}:
            return Asked("itm_logits", ((folder / image, text),), record.get("match"))
    return None


def _flaw(picture: Path, spec: ViltSpec) -> str:
    """Say why a picture cannot be asked about, as far as its header tells; nothing of one that can."""
    try:
        identify(picture.read_bytes(), max_pixels=MAX_PIXELS, max_aspect_ratio=spec.max_aspect_ratio)
    except (OSError, InvalidInput) as error:
        return str(error)
    return ""


def _without_too_many_ranks(asked: Sequence[Asked], most: int) -> list[Asked]:
    """Draw ranks where there are more than need be, the same ones every time: each is as many runs as candidates."""
    ranks = [one for one in asked if one.head == "rank_logits"]
    others = [one for one in asked if one.head != "rank_logits"]
    if len(ranks) > most:
        drawn = np.random.default_rng(0).choice(len(ranks), most, replace=False)
        ranks = [ranks[index] for index in sorted(drawn)]
    return others + ranks


def _features(one: Asked, spec: ViltSpec, encoder: TextEncoder) -> Iterator[Features]:
    pictures: dict[Path, ImagePatches] = {}  # a rank of texts has one
    for path, text in one.pairs:
        try:
            if path not in pictures:
                image = decode(path.read_bytes(), max_pixels=MAX_PIXELS, max_aspect_ratio=spec.max_aspect_ratio)
                pictures[path] = to_patches(image, spec)
            yield Features(pictures[path], encoder.encode(text))
        except (OSError, InvalidInput) as error:
            raise GateError(f"--eval-data: {path}: {error}") from error


def _said(logits: Sequence[Logits], head: str, labels: Sequence[str]) -> Said:
    """Read the answer as the server would; scores of a rank as they were trained, by softmax."""
    values = np.concatenate([each[head][0] for each in logits]).astype(np.float64)
    if head == "itm_logits":
        score = matching_score(logits[0][head][0])
        return Said(score >= MATCH_FROM, np.array([score]))
    if head == "vqa_logits":
        return Said(labels[int(values.argmax())], 1 / (1 + np.exp(-values)))
    raised = np.exp(values - values.max())
    return Said(int(values.argmax()), raised / raised.sum())
