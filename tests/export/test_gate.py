"""What int8 and fp16 have to pass before they are served unasked."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import gate
from export.gate import Asked, GateError
from export.parity import Logits, Runner
from models.batch import Feeds
from models.manifest import load_artifact
from server.settings import SHAPES

ARTIFACT = load_artifact(SHAPES)


def always(answers: Sequence[int], score: float = 2.0) -> Runner:
    """A model that gives these answers one after the other, whatever it is asked."""
    left = iter(answers)

    def run(_: Feeds) -> Logits:
        logits = np.full((1, len(ARTIFACT.labels)), -2.0, np.float32)
        logits[0, next(left)] = score
        return {"vqa_logits": logits}

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "1.png"
    Image.new("RGB", (160, 160), "red").save(path)
    return path


def check(
    picture: Path, fp32: Runner, other: Runner, rights: Sequence[str | None], limits: gate.Limits = gate.INT8
) -> dict[str, object]:
    asked = [Asked(picture, "what is it?", is_question=True, right=right) for right in rights]
    manifest = ARTIFACT.manifest
    return gate.check(
        fp32,
        other,
        asked,
        spec=manifest.spec,
        encoder=ARTIFACT.text_encoder,
        labels=ARTIFACT.labels,
        limits=limits,
    )


def test_same_answers_pass(picture: Path) -> None:
    """Scores may differ a little; how much is recorded."""
    found = check(picture, always([3] * 100), always([3] * 100, score=1.9), [None] * 100)

    assert found["status"] == "passed"
    assert found["agreement"] == 1
    assert found["accuracy"] is None
    assert 0 < found["max_score_difference"] < 0.02


@pytest.mark.parametrize(("others", "status"), [(1, "passed"), (2, "failed")])
def test_one_answer_in_a_hundred_may_differ(picture: Path, others: int, status: str) -> None:
    """Two may not."""
    found = check(picture, always([3] * 100), always([4] * others + [3] * (100 - others)), [None] * 100)

    assert found["status"] == status


@pytest.mark.parametrize(("score", "status"), [(2.01, "passed"), (2.2, "failed"), (np.nan, "failed")])
def test_half_precision_has_to_keep_scores_as_well(picture: Path, score: float, status: str) -> None:
    """Within 5e-3, and what is not a number is not within it."""
    found = check(picture, always([3] * 9), always([3] * 9, score), [None] * 9, gate.FP16)

    assert found["status"] == status


def test_one_score_too_far_off_in_two_thousand_fails_half_precision(picture: Path) -> None:
    """The limit is for the worst, whatever the others do; the answer need not change."""
    scores = itertools.chain([2.2], itertools.repeat(2.0))

    def off_once(feeds: Feeds) -> Logits:
        return always([3], next(scores))(feeds)

    found = check(picture, always([3] * 2000), off_once, [None] * 2000, gate.FP16)

    assert found["status"] == "failed"
    assert found["agreement"] == 1


def test_answers_that_become_wrong_fail_where_the_right_one_is_known(picture: Path) -> None:
    """One in a hundred costs a point of accuracy, and 0.3 are allowed."""
    right = ARTIFACT.labels[3]

    found = check(picture, always([3] * 100), always([4] + [3] * 99), [right] * 100)

    assert found["status"] == "failed"
    assert (found["accuracy_fp32"], found["accuracy"]) == (1.0, 0.99)


def test_records_that_the_heads_cannot_answer_are_left_out(tmp_path: Path) -> None:
    """A question needs the answering head, a text one of the others; ranks are not asked."""
    records = [
        {"image": "1.png", "question": "what?", "answer": "red"},
        {"image": "1.png", "text": "a red circle", "match": True},
        {"text": "a red circle", "images": ["1.png"], "match": 0},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, records)))

    assert gate.read(data, ["vqa_logits"]) == [Asked(tmp_path / "1.png", "what?", is_question=True, right="red")]
    assert [one.right for one in gate.read(data, ["rank_logits"])] == [True]


@pytest.mark.parametrize("text", ["{", "[1]", '{"text": "a", "images": []}', ""])
def test_data_of_no_use_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    """Before anything is exported."""
    data = tmp_path / "data.jsonl"
    data.write_text(text)

    with pytest.raises(GateError, match="--eval-data"):
        gate.read(data, ["vqa_logits"])


def test_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    """With the option that brought it up."""
    with pytest.raises(GateError, match=r"--eval-data: .*none\.png"):
        check(tmp_path / "none.png", always([1]), always([1]), [None])
