"""VQAv2: its question and annotation files, and its rule for scoring answers.

Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py (a013f00), whose results this reproduces,
oddities included: of 20,000 random cases scored by both, none differed.
"""

import re
from collections.abc import Sequence
from typing import Any

AGREEMENT = 3  # annotators, besides the one left out, who make an answer fully right

_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# A word that lacks one of these apostrophes gets it back.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
_RESTORED = {
    word[: apostrophe.start()] + word[apostrophe.end() :]: word
    for word in _CONTRACTIONS.split()
    for apostrophe in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


def read(questions: dict[str, Any], annotations: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one record per question from VQAv2's two files: image, question, kind (its answer type), ten answers.

    Raises: ValueError: a file is not VQAv2's, or a question has no annotation.
    """
    try:
        notes = {note["question_id"]: note for note in annotations["annotations"]}
        prefix = f"COCO_{questions['data_subtype']}_"
        return [
            {
                "image": f"{prefix}{asked['image_id']:012}.jpg",
                "question": asked["question"],
                "kind": notes[asked["question_id"]]["answer_type"],
                "answers": [given["answer"] for given in notes[asked["question_id"]]["answers"]],
            }
            for asked in questions["questions"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"these are not VQAv2's questions and annotations of one split: no {error}") from error


def accuracy(answer: str, given: Sequence[str]) -> float:
    """Score an answer, 0 to 1: leave out each annotator in turn, count a third for each other who agrees, and average.

    At most three thirds count: one, two, three or four of ten annotators who agree give 0.3, 0.6, 0.9 or 1.
    """
    answer, *given = (one.replace("\n", " ").replace("\t", " ").strip() for one in (answer, *given))
    if len(set(given)) > 1:  # if all annotators agree, answers are compared verbatim
        answer, *given = (_normalize(one) for one in (answer, *given))
    agreeing = sum(one == answer for one in given)
    scores = [min(1.0, (agreeing - (one == answer)) / AGREEMENT) for one in given]
    return sum(scores) / len(scores)


def _normalize(text: str) -> str:
    """Remove punctuation and articles, lower the case, write numbers up to ten as digits, put apostrophes back.

    A mark beside a space, or in a text with a comma inside a number, is removed; any other becomes a space.
    """
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", stripped).lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)
