"""Do they answer the same? A server that answers something else is not a peer, however fast."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest import photo
from loadtest.contract import accepted

TOLERANCE = 1e-4  # of a score, in fp32; what another question changes is told beside it
TIMEOUT_S = 120.0

Answers = list[tuple[str, float]]  # the best first, with their scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One server's answers beside the reference's."""

    asked: int
    same_answer: int  # the best one; any of several that the reference scores alike
    max_score_difference: float  # place by place, over the best few

    @property
    def is_full(self) -> bool:
        return self.same_answer == self.asked and self.max_score_difference <= TOLERANCE


def ask(url: str, picture: bytes) -> list[Answers]:
    """Put every question once; it also warms the server up.

    Raises: ValueError: it refuses, or answers in another form.
    """
    found = []
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for request in itertools.islice(photo.requests(picture, multipart=True), len(photo.QUESTIONS)):
            headers = {"Content-Type": request.content_type}
            response = client.post(request.path, content=request.body, headers=headers)
            found.append(_answers(accepted(response).json()))
    return found


def compare(found: Sequence[Answers], reference: Sequence[Answers]) -> Agreement:
    """Compare answers to the same questions."""
    pairs = list(zip(found, reference, strict=True))
    return Agreement(
        asked=len(pairs),
        same_answer=sum(_is_best(ours[0][0], theirs) for ours, theirs in pairs),
        max_score_difference=max(_distance(ours, theirs) for ours, theirs in pairs),
    )


def spread(reference: Sequence[Answers]) -> float:
    """Tell how little two questions differ in score: what a server that ignores the question would be wrong by."""
    return min(_distance(one, other) for index, one in enumerate(reference) for other in reference[:index])


def strangers(agreements: Mapping[str, Agreement]) -> list[str]:
    """Name those who answer something else."""
    return [name for name, agreement in agreements.items() if not agreement.is_full]


def _answers(body: Any) -> Answers:
    try:
        return [(str(one["answer"]), float(one["score"])) for one in body["answers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it answered in another form: {str(body)[:200]}") from error


def _is_best(answer: str, reference: Answers) -> bool:
    best = reference[0][1]
    return any(answer == other and best - score <= TOLERANCE for other, score in reference)


def _distance(one: Answers, other: Answers) -> float:
    return max(abs(ours - theirs) for (_, ours), (_, theirs) in zip(one, other, strict=True))
