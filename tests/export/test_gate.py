"""What int8 and fp16 have to pass before they are served unasked."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import gate
from export.gate import Example, GateError
from export.parity import Logits, Runner
from models.batch import Feeds
from models.manifest import load_artifact
from server.settings import SHAPES

ARTIFACT = load_artifact(SHAPES)
SPEC = ARTIFACT.manifest.spec


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
) -> dict[str, Any]:
    asked = [Example("vqa_logits", ((picture, "what is it?"),), right) for right in rights]
    return check_all(fp32, other, asked, limits)


def check_all(
    fp32: Runner, other: Runner, asked: Sequence[Example], limits: gate.Limits = gate.INT8, *heads: str
) -> dict[str, Any]:
    return gate.check(
        fp32,
        other,
        asked,
        heads=heads or ["vqa_logits"],
        spec=SPEC,
        encoder=ARTIFACT.text_encoder,
        labels=ARTIFACT.labels,
        limits=limits,
    )


def test_same_answers_pass(picture: Path) -> None:
    """Scores may differ a little; how much is recorded."""
    found = check(picture, always([3] * 300), always([3] * 300, score=1.9), [None] * 300)

    assert found["status"] == "passed"
    assert found["agreement"] == 1
    assert found["accuracy"] is None
    assert 0 < found["max_score_difference"] < 0.02


@pytest.mark.parametrize(("others", "status"), [(3, "passed"), (4, "failed")])
def test_one_answer_in_a_hundred_may_differ(picture: Path, others: int, status: str) -> None:
    """More may not."""
    found = check(picture, always([3] * 300), always([4] * others + [3] * (300 - others)), [None] * 300)

    assert found["status"] == status
    assert found.get("why", "") == ("" if others == 3 else "questions: 4 of 300 answers differ from fp32's; 1.0% may")


@pytest.mark.parametrize(("score", "status"), [(2.01, "passed"), (2.2, "failed"), (np.nan, "failed")])
def test_half_precision_has_to_keep_scores_as_well(picture: Path, score: float, status: str) -> None:
    """Within 5e-3, and what is not a number is not within it."""
    found = check(picture, always([3] * 600), always([3] * 600, score), [None] * 600, gate.FP16)

    assert found["status"] == status


def test_one_score_too_far_off_in_two_thousand_fails_half_precision(picture: Path) -> None:
    """The limit is for the worst, whatever the others do; the answer need not change."""
    scores = itertools.chain([2.2], itertools.repeat(2.0))

    def off_once(feeds: Feeds) -> Logits:
        return always([3], next(scores))(feeds)

    found = check(picture, always([3] * 2000), off_once, [None] * 2000, gate.FP16)

    assert found["status"] == "failed"
    assert found["agreement"] == 1
    assert found["why"] == "questions: a score differs from fp32's by 0.01945; 0.005 is allowed"


def test_answers_that_become_wrong_fail_where_the_right_one_is_known(picture: Path) -> None:
    """One in a hundred costs a point of accuracy, and 0.3 are allowed."""
    right = ARTIFACT.labels[3]

    found = check(picture, always([3] * 300), always([4] * 3 + [3] * 297), [right] * 300)

    assert found["status"] == "failed"
    assert (found["accuracy_fp32"], found["accuracy"]) == (1.0, 0.99)


@pytest.mark.parametrize(
    ("asked", "known", "lost", "why"),
    [
        (300, 300, 1, ""),
        (300, 300, 2, "questions: 2 of 300 correct answers are lost; 0.3% or one may be"),
        (300, 10, 1, ""),
        (300, 10, 2, "questions: 2 of 10 correct answers are lost; 0.3% or one may be"),
        (1000, 1000, 3, ""),
        (1000, 1000, 4, "questions: 4 of 1000 correct answers are lost; 0.3% or one may be"),
    ],
)
def test_one_right_answer_lost_fails_nothing(picture: Path, asked: int, known: int, lost: int, why: str) -> None:
    """Though it be more than 0.3 points of the few whose answer is known; further ones count."""
    rights = [ARTIFACT.labels[3]] * known + [None] * (asked - known)

    found = check(picture, always([3] * asked), always([4] * lost + [3] * (asked - lost)), rights)

    assert (found["status"], found.get("why", "")) == ("failed" if why else "passed", why)


def shifted(shift: float, seed: int) -> Runner:
    """A model that ranks at random, far from zero."""
    rng = np.random.default_rng(seed)
    return lambda _: {"rank_logits": rng.normal(shift, 1.0, (1, 1)).astype(np.float32)}


@pytest.mark.parametrize("shift", [-15.0, 0.0, 15.0])
def test_ranks_fail_where_another_candidate_comes_first(picture: Path, shift: float) -> None:
    """All logits have one sign then, and scores are all but 0 or 1: neither says that ranks agree."""
    asked = [Example("rank_logits", tuple((picture, text) for text in "abcd"), 0)] * 300

    found = check_all(shifted(shift, 0), shifted(shift, 1), asked, gate.INT8, "rank_logits")

    assert found["status"] == "failed"
    assert found["agreement"] < 0.5
    assert found["ranks"] == 300


def test_ranks_pass_whatever_is_added_to_all_of_their_logits(picture: Path) -> None:
    """Training sees differences alone, and so does the order."""
    asked = [Example("rank_logits", tuple((picture, text) for text in "abcd"), 0)] * 600

    found = check_all(shifted(0.0, 2), shifted(2.0, 2), asked, gate.FP16, "rank_logits")

    assert found["status"] == "passed"
    assert found["max_score_difference"] < 1e-6


def test_no_more_ranks_are_judged_than_need_be(picture: Path) -> None:
    """Each is as many runs as it has candidates; nothing else is left out."""
    limits = replace(gate.INT8, agreement=0.0)
    assert limits.least_asked == 3
    ranks = [Example("rank_logits", ((picture, "a"), (picture, "b")), None)] * 5
    texts = [Example("itm_logits", ((picture, "a"),), None)] * 5
    ones = {"rank_logits": np.ones((1, 1), np.float32), "itm_logits": np.ones((1, 2), np.float32)}

    found = check_all(lambda _: ones, lambda _: ones, ranks + texts, limits, "rank_logits", "itm_logits")

    assert (found["ranks"], found["texts"]) == (3, 5)


@pytest.mark.parametrize(("texts", "status"), [(0, "not gated"), (299, "not gated"), (300, "passed")])
def test_a_head_that_was_asked_too_little_is_not_gated(picture: Path, texts: int, status: str) -> None:
    """Whatever the others were asked: int8 would be served for it, too."""
    asked = [Example("vqa_logits", ((picture, "a"),), None)] * 300 + [
        Example("itm_logits", ((picture, "a"),), None)
    ] * texts

    def run(_: Feeds) -> Logits:
        return {"vqa_logits": np.ones((1, len(ARTIFACT.labels)), np.float32), "itm_logits": np.ones((1, 2), np.float32)}

    found = check_all(run, run, asked, gate.INT8, "vqa_logits", "itm_logits")

    assert found["status"] == status
    assert found.get("why", "") == ("" if texts == 300 else f"--eval-data has {texts} texts: 300 of each are needed")
    assert found["heads"]["itm_logits"]["asked"] == texts


def test_a_head_that_fails_fails_all_though_answers_agree_in_total(picture: Path) -> None:
    """A thousand questions do not make up for it."""
    asked = [Example("vqa_logits", ((picture, "a"),), None)] * 1000 + [
        Example("itm_logits", ((picture, "a"),), None)
    ] * 300
    turns = itertools.cycle([0.0] * 1000 + [1.0] * 10 + [-1.0] * 290)

    def fp32(_: Feeds) -> Logits:
        return {"vqa_logits": np.ones((1, len(ARTIFACT.labels)), np.float32), "itm_logits": np.array([[0.0, -1.0]])}

    def other(feeds: Feeds) -> Logits:
        return fp32(feeds) | {"itm_logits": np.array([[0.0, next(turns)]])}

    found = check_all(fp32, other, asked, gate.INT8, "vqa_logits", "itm_logits")

    assert found["agreement"] > 0.99
    assert found["status"] == "failed"
    assert found["why"] == "texts: 10 of 300 answers differ from fp32's; 1.0% may"


def written(picture: Path, *records: object) -> Path:
    """Write records beside a picture."""
    data = picture.parent / "data.jsonl"
    data.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return data


def test_records_are_for_the_head_that_answers_them_and_others_are_left_out(picture: Path) -> None:
    """A text that matches says nothing of a head that was trained to rank."""
    data = written(
        picture,
        {"image": "1.png", "question": "how many?", "answer": 2, "kind": "count"},
        {"image": "1.png", "text": "a red circle", "match": True},
        {"text": "a red circle", "images": ["1.png", "1.png"], "match": 1},
        "",
        {"image": "1.png", "texts": ["a red circle", "a star"]},
    )

    assert gate.read(data, ["vqa_logits"], SPEC) == [Example("vqa_logits", ((picture, "how many?"),), "2")]
    assert gate.read(data, ["itm_logits"], SPEC) == [Example("itm_logits", ((picture, "a red circle"),), label=True)]
    assert gate.read(data, ["rank_logits"], SPEC) == [
        Example("rank_logits", ((picture, "a red circle"), (picture, "a red circle")), 1),
        Example("rank_logits", ((picture, "a red circle"), (picture, "a star")), None),
    ]
    assert len(gate.read(data, ARTIFACT.manifest.heads, SPEC)) == 4


def test_kinds_that_help_shows_are_those_that_are_read(picture: Path) -> None:
    """One of each, for every head there is."""
    Image.new("RGB", (160, 160)).save(picture.with_name("2.png"))

    asked = gate.read(written(picture, *gate.RECORDS.splitlines()), ARTIFACT.manifest.heads, SPEC)

    assert [one.head for one in asked] == ["vqa_logits", "itm_logits", "rank_logits", "rank_logits"]


REFUSED = {
    "no JSON": ("{", r"line 2 is not JSON"),
    "nested too deep": ("[" * 100_000, r"line 2 is not JSON"),
    "no object": ([1], r"line 2 is not a JSON object"),
    "no candidates": (
        {"text": "a", "images": []},
        r"line 2 is neither a question, a text nor a rank; it has text, images\.",
    ),
    "one candidate": ({"image": "1.png", "texts": ["a"]}, r"line 2 is neither a question, a text nor a rank"),
    "mistyped": ({"image": "1.png", "qestion": "a", "answer": "b"}, r"line 2 .* it has image, qestion, answer\."),
    "texts that are numbers": ({"image": "1.png", "texts": [1, 2]}, r"line 2 is neither a question, a text nor a rank"),
    "blank question": ({"image": "1.png", "question": " "}, r"line 2: The text is empty"),
    "text with a NUL": ({"text": "a\0", "images": ["1.png", "1.png"]}, r"line 2: The text contains a NUL"),
    "picture that is a number": ({"image": 1, "question": "a"}, r"line 2 has a value of the wrong type"),
    "match beyond the candidates": ({"image": "1.png", "texts": ["a", "b"], "match": 2}, r"line 2: match is 2"),
    "match that is a word": ({"image": "1.png", "text": "a", "match": "yes"}, r"line 2: match is 'yes'"),
    "missing picture": ({"image": "none.png", "question": "a"}, r"1 pictures are missing, the first is .*none\.png"),
    "name that no file can have": ({"image": "a" * 5000, "question": "a"}, r"1 pictures are missing"),
    "no picture": (
        {"image": "data.jsonl", "question": "a"},
        r"1 pictures cannot be used, the first is .*data\.jsonl: The image could not be identified",
    ),
    "picture that is too long": (
        {"image": "long.png", "question": "a"},
        r"1 pictures cannot be used, the first is .*long\.png: The image is 90 x 10 pixels; .* at most 8\.4 times",
    ),
}


@pytest.mark.parametrize(("record", "sentence"), REFUSED.values(), ids=REFUSED)
def test_data_of_no_use_is_refused_with_a_sentence(picture: Path, record: object, sentence: str) -> None:
    """Before anything is exported, and with the line that is to be mended."""
    Image.new("RGB", (90, 10)).save(picture.with_name("long.png"))
    data = written(picture, {"image": "1.png", "question": "what?"}, record)

    with pytest.raises(GateError, match=f"--eval-data.*{sentence}"):
        gate.read(data, ["vqa_logits"], SPEC)


def test_data_as_windows_writes_it_is_read(picture: Path) -> None:
    """With a mark at its start, which is no part of the first record."""
    data = picture.with_name("data.jsonl")
    data.write_text('{"image": "1.png", "question": "what?"}\r\n', encoding="utf-8-sig")

    assert len(gate.read(data, ["vqa_logits"], SPEC)) == 1


@pytest.mark.parametrize("text", ["", '{"image": "1.png", "text": "a"}'], ids=["empty", "for another head"])
def test_data_that_asks_nothing_is_refused_with_a_sentence(picture: Path, text: str) -> None:
    """As is a file that is not there."""
    with pytest.raises(GateError, match="asks nothing"):
        gate.read(written(picture, text), ["vqa_logits"], SPEC)
    with pytest.raises(GateError, match="cannot be read"):
        gate.read(picture.with_name("none.jsonl"), ["vqa_logits"], SPEC)


def test_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    """With the option that brought it up."""
    with pytest.raises(GateError, match=r"--eval-data: .*none\.png"):
        check(tmp_path / "none.png", always([1]), always([1]), [None])
