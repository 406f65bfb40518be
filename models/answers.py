"""From logits to answers: what the numbers of each head mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRUE_PAIR = 1  # index in the matching head's logits; Source: dandelin/ViLT issue 40


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An answer and its score, 0 to 1; scores of several answers do not sum to 1."""

    answer: str
    score: float


def top_answers(logits: NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[RankedAnswer]:
    """List the best answers, best first.

    Shapes: logits (labels,).
    Source: trained with binary cross-entropy over soft targets (paper, 4.3), so a score is a sigmoid.
    """
    top_k = min(top_k, len(logits))
    least = -np.partition(-logits, top_k - 1)[top_k - 1]
    among = np.flatnonzero(~(logits < least))  # so that only these few are sorted; equal ones keep the labels' order
    best = among[np.argsort(-logits[among], kind="stable")[:top_k]]
    scores = sigmoids(logits[best])
    return [RankedAnswer(labels[index], score) for index, score in zip(best.tolist(), scores, strict=True)]


def matching_score(itm_logits: NDArray[np.float32]) -> float:
    """Compute the probability that text and image belong together.

    Shapes: itm_logits (2,), the true pair second.
    """
    return sigmoid(float(itm_logits[TRUE_PAIR] - itm_logits[1 - TRUE_PAIR]))  # softmax over two


def sigmoid(logit: float) -> float:
    """Squash a logit to 0..1 without overflow."""
    return sigmoids([logit])[0]


def sigmoids(logits: Sequence[float] | NDArray[np.float32]) -> list[float]:
    """Squash several logits; thousands take a fraction of a millisecond."""
    squashed: list[float] = (0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64)))).tolist()
    return squashed
