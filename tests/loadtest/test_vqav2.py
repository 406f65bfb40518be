"""VQAv2's rule on cases worked out by hand from its definition, and its own files."""

from typing import Any

import pytest

from loadtest import vqav2


def annotators(**counts: int) -> list[str]:
    """Ten answers: each key so many times, the rest all different from each other and from the keys."""
    given = [answer for answer, count in counts.items() for _ in range(count)]
    return given + [f"something {index}" for index in range(10 - len(given))]


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_answer_is_as_right_as_annotators_agree(agreeing: int, expected: float) -> None:
    """Of the ten ways to leave one out: three who agree give 7 x 3/3 + 3 x 2/3 = 9 of 10."""
    assert vqav2.accuracy("cat", annotators(cat=agreeing)) == pytest.approx(expected)


@pytest.mark.parametrize(("answer", "expected"), [("yes", 1.0), ("no", 0.9), ("maybe", 0.0)])
def test_yes_and_no_are_scored_by_how_many_said_them(answer: str, expected: float) -> None:
    """Two answers can be right at once: seven said yes, three no."""
    assert vqav2.accuracy(answer, annotators(yes=7, no=3)) == pytest.approx(expected)


SAME = {
    "case": ("Yes", "yes"),
    "number word": ("two", "2"),
    "ten": ("ten", "10"),
    "none is zero": ("none", "0"),
    "article": ("a dog", "dog"),
    "two articles": ("the top of an oven", "top of oven"),
    "contraction": ("dont know", "don't know"),
    "second apostrophe": ("couldn'tve", "couldn't've"),
    "mark within a word": ("t-shirt", "t shirt"),
    "mark at a space": ("red, white", "red white"),
    "mark at the end after a space": ("why ?", "why"),
    "comma within a number": ("1,000", "1000"),
    "full stop": ("blue.", "blue"),
    "abbreviation": ("u.s.", "us"),
    "line break": ("red\nbus", "red bus"),
    "spaces around": ("  bus ", "bus"),
}


@pytest.mark.parametrize(("answer", "said"), SAME.values(), ids=SAME)
def test_answers_that_mean_the_same_are_the_same(answer: str, said: str) -> None:
    """In whichever of the two forms annotators wrote it, and in whichever the model answers."""
    assert vqav2.accuracy(answer, annotators(**{said: 5})) == 1
    assert vqav2.accuracy(said, annotators(**{answer: 5})) == 1


DIFFERENT = {
    "decimal point": ("3.5", "35"),
    "number word beyond ten": ("eleven", "11"),
    "contraction that is a word": ("well", "we'll"),
    "contraction without both apostrophes": ("couldntve", "couldn't've"),
    "article within a word": ("theatre", "atre"),
    "another number": ("two", "3"),
}


@pytest.mark.parametrize(("answer", "said"), DIFFERENT.values(), ids=DIFFERENT)
def test_answers_that_mean_something_else_are_not_the_same(answer: str, said: str) -> None:
    """Normalising goes as far as the official table and no further."""
    assert vqav2.accuracy(answer, annotators(**{said: 5})) == 0


def test_annotators_who_all_say_the_same_are_taken_at_their_word() -> None:
    """The official rule normalises only where they differ."""
    assert vqav2.accuracy("the dog", ["dog"] * 10) == 0
    assert vqav2.accuracy("the dog", ["dog"] * 9 + ["cat"]) == 1


QUESTIONS: dict[str, Any] = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 262148, "question": "What is this?", "question_id": 262148000},
        {"image_id": 42, "question": "Is it red?", "question_id": 42001},
    ],
}
ANNOTATIONS: dict[str, Any] = {
    "annotations": [
        {"question_id": 42001, "answer_type": "yes/no", "answers": [{"answer": "yes", "answer_id": 1}] * 10},
        {"question_id": 262148000, "answer_type": "other", "answers": [{"answer": "a cat", "answer_id": 1}] * 10},
    ]
}


def test_records_of_vqav2_files_join_questions_with_their_annotations() -> None:
    """Whatever order the two files are in, each question gets its answers, its type and COCO's file name."""
    records = vqav2.read(QUESTIONS, ANNOTATIONS)

    assert records[0] == {
        "image": "COCO_val2014_000000262148.jpg",
        "question": "What is this?",
        "kind": "other",
        "answers": ["a cat"] * 10,
    }
    assert records[1]["kind"] == "yes/no"


@pytest.mark.parametrize("annotations", [{"annotations": []}, {"annotations": [1]}, {}], ids=str)
def test_annotations_of_another_split_are_refused(annotations: dict[str, Any]) -> None:
    """A question without answers would silently count as wrong."""
    with pytest.raises(ValueError, match="not VQAv2's questions and annotations of one split"):
        vqav2.read(QUESTIONS, annotations)
