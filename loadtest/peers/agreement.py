"""Do the servers give the same answers? One that does not cannot be compared, however fast it is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest import photo
from loadtest.contract import TIMEOUT_S, accepted

TOLERANCE = 1e-4  # of a score, in fp32; `spread` shows how much another question changes

Answers = list[tuple[str, float]]  # the best first, with their scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One server's answers beside the reference's."""

    asked: int
    same_answer: int  # the best answer, or any that the reference scores alike
    max_score_difference: float  # between the answers of the same rank

    @property
    def is_full(self) -> bool:
        return self.same_answer == self.asked and self.max_score_difference <= TOLERANCE


def ask(url: str, picture: bytes) -> list[Answers]:
    """Ask every question once, which also warms the server up.

    Raises: ValueError: the server refuses, or answers in another form.
    """
    found = []
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for request in itertools.islice(photo.requests(picture, multipart=True), len(photo.QUESTIONS)):
            headers = {"Content-Type": request.content_type}
            response = client.post(request.path, content=request.body, headers=headers)
            found.append(_answers(accepted(response).json()))
    return found


def compare(found: Sequence[Answers], reference: Sequence[Answers]) -> Agreement:
    """Compare two servers' answers to the same questions."""
    pairs = list(zip(found, reference, strict=True))
    return Agreement(
        asked=len(pairs),
        same_answer=sum(_is_best(ours[0][0], theirs) for ours, theirs in pairs),
        max_score_difference=max(_distance(ours, theirs) for ours, theirs in pairs),
    )


def spread(reference: Sequence[Answers]) -> float:
    """Return the smallest difference between two questions: the error of a server that ignores the question."""
    return min(_distance(one, other) for index, one in enumerate(reference) for other in reference[:index])


def strangers(agreements: Mapping[str, Agreement]) -> list[str]:
    """Name the servers that give other answers."""
    return [name for name, agreement in agreements.items() if not agreement.is_full]


def _answers(body: Any) -> Answers:
    try:
        return [(str(one["answer"]), float(one["score"])) for one in body["answers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the server answered in another form: {str(body)[:200]}") from error


def _is_best(answer: str, reference: Answers) -> bool:
    best = reference[0][1]
    return any(answer == other and best - score <= TOLERANCE for other, score in reference)


def _distance(one: Answers, other: Answers) -> float:
    if len(one) != len(other):
        return math.inf
    return max(abs(ours - theirs) for (_, ours), (_, theirs) in zip(one, other, strict=True))
