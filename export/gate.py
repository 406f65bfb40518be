"""May a precision be served in the place of fp32? Both answer the same questions, and few answers may differ.

The questions are JSON lines, as `vilt-bench accuracy` reads them, pictures beside the file; ranks are left out:

    {"image": "1.png", "question": "how many circles are there?", "answer": "2"}
    {"image": "1.png", "text": "a red circle", "match": true}

Answers have to agree, and where the right one is known ("answer", "match") accuracy may fall by no more than so much.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.parity import Logits, Runner
from models.answers import matching_score, sigmoid
from models.batch import Features, collate
from models.errors import InvalidInput
from models.image import decode, to_patches
from models.spec import ViltSpec
from models.text import TextEncoder

MAX_PIXELS = 100_000_000
MATCH_FROM = 0.5
NOT_GATED = {"status": "not gated", "why": "no --eval-data was given"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a precision may be from fp32."""

    agreement: float  # of answers, at least
    loss: float = 0.003  # of accuracy, at most: 0.3 points
    score_difference: float | None = None  # the largest of any question's, at most


INT8 = Limits(agreement=0.99)
FP16 = Limits(agreement=0.995, score_difference=5e-3)
Progress = Callable[[Sequence["Asked"]], Iterable["Asked"]]


class GateError(Exception):
    """The evaluation data cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture with a question, or with a text that matches or does not."""

    image: Path
    text: str
    is_question: bool
    right: str | bool | None


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the score of every one."""

    answer: str | bool
    scores: np.ndarray[tuple[int], np.dtype[np.float64]]


def read(data: Path, heads: Iterable[str]) -> list[Asked]:
    """Read what the heads can be asked.

    Raises: GateError: the file is not JSON lines, or asks nothing of these heads.
    """
    try:
        records = [json.loads(line) for line in data.read_text().splitlines() if line.strip()]
        asked = list(_asked(records, data.parent, set(heads)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GateError(f"--eval-data {data} cannot be used: {error!r}; see vilt-export --help.") from error
    if not asked:
        raise GateError(f"--eval-data {data} asks nothing that this checkpoint answers.")
    return asked


def check(
    fp32: Runner,
    other: Runner,
    asked: Sequence[Asked],
    *,
    spec: ViltSpec,
    encoder: TextEncoder,
    labels: Sequence[str],
    limits: Limits,
    progress: Progress = lambda asked: asked,
) -> dict[str, Any]:
    """Ask both the same, one at a time, and say whether the other passes.

    Raises: GateError: a picture cannot be read.
    """
    agree = {True: 0, False: 0}
    right = {"fp32": 0, "other": 0}
    known, largest = 0, []
    for one in progress(asked):
        feeds = collate([_features(one, spec, encoder)])
        expected, found = (_said(run(feeds), one, labels) for run in (fp32, other))
        agree[found.answer == expected.answer] += 1
        largest.append(float(np.abs(found.scores - expected.scores).max()))
        if one.right is not None:
            known += 1
            right["fp32"] += expected.answer == one.right
            right["other"] += found.answer == one.right
    agreement, loss = agree[True] / len(asked), (right["fp32"] - right["other"]) / max(1, known)
    furthest = float(np.max(largest))
    passed = agreement >= limits.agreement and loss <= limits.loss
    if limits.score_difference is not None:
        passed &= furthest <= limits.score_difference  # a NaN fails, too
    return {
        "status": "passed" if passed else "failed",
        "questions": sum(one.is_question for one in asked),
        "texts": sum(not one.is_question for one in asked),
        "agreement": agreement,
        "agreement_needed": limits.agreement,
        "right_answers_known": known,
        "accuracy_fp32": right["fp32"] / known if known else None,
        "accuracy": right["other"] / known if known else None,
        "loss_allowed": limits.loss,
        "max_score_difference": furthest,
        "score_difference_allowed": limits.score_difference,
    }


def _asked(records: Iterable[dict[str, Any]], folder: Path, heads: set[str]) -> Iterator[Asked]:
    for record in records:
        if "question" in record and "vqa_logits" in heads:
            yield Asked(folder / record["image"], record["question"], is_question=True, right=record.get("answer"))
        elif "image" in record and "text" in record and heads & {"itm_logits", "rank_logits"}:
            yield Asked(folder / record["image"], record["text"], is_question=False, right=record.get("match"))


def _features(one: Asked, spec: ViltSpec, encoder: TextEncoder) -> Features:
    try:
        picture = decode(one.image.read_bytes(), max_pixels=MAX_PIXELS, max_aspect_ratio=spec.max_aspect_ratio)
        return Features(to_patches(picture, spec), encoder.encode(one.text))
    except (OSError, InvalidInput) as error:
        raise GateError(f"--eval-data: {one.image}: {error}") from error


def _said(logits: Logits, one: Asked, labels: Sequence[str]) -> Said:
    """Read the answer as the server would."""
    if one.is_question:
        scores = 1 / (1 + np.exp(-logits["vqa_logits"][0].astype(np.float64)))
        return Said(labels[int(scores.argmax())], scores)
    if "itm_logits" in logits:
        score = matching_score(logits["itm_logits"][0])
    else:
        score = sigmoid(float(logits["rank_logits"][0, 0]))
    return Said(score >= MATCH_FROM, np.array([score]))
