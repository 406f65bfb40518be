"""The recipe of shapes: its answers are right, its held-out scenes are held out, its training resumes."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from export.shapes import heldout, stream, train
from export.shapes.language import KINDS, LABELS, NUMBERS, RELATIONS, VOCABULARY, caption, question
from export.shapes.scenes import CELL_PX, COLORS, GRID, SHAPES, Scene, Thing, draw, random_scene

SCENES = [random_scene((7, index)) for index in range(300)]


def things_called(scene: Scene, noun: str) -> list[Thing]:
    """Find what a noun phrase means, from its words alone."""
    words = [word.removesuffix("es") if word == "crosses" else word for word in noun.split()]
    words = [word.removesuffix("s") if word.removesuffix("s") in (*SHAPES, "object") else word for word in words]
    return [
        thing
        for thing in scene.things
        if all(word in (thing.color, thing.shape, "object", "a", "an", "the") for word in words)
    ]


def is_related(scene: Scene, first: str, relation: str, second: str) -> bool:
    """Compare centres in pixels, which the recipe does by cells."""
    dx, dy = RELATIONS[relation.removeprefix("to the ")]
    pairs = itertools.product(things_called(scene, first), things_called(scene, second))
    return any((a.x_px - b.x_px) * dx + (a.y_px - b.y_px) * dy > 0 for a, b in pairs)


def answer_to(scene: Scene, text: str) -> str:
    """Answer a question from its words and the scene: a second opinion on the recipe."""
    text = text.removesuffix("?").removesuffix(" in the picture")
    if found := re.fullmatch(r"is the (.*?) ((?:to the )?(?:left of|right of)|above|below) the (.*)", text):
        return "yes" if is_related(scene, *found.groups()) else "no"
    if found := re.fullmatch(r"(?:is there|do you see) (.*)", text):
        return "yes" if things_called(scene, found[1]) else "no"
    if found := re.fullmatch(r"how many (.*?)(?: are there| do you see| are)", text):
        return str(len(things_called(scene, found[1])))
    if found := re.fullmatch(r"what colou?r is the (.*)|what is the color of the (.*)", text):
        return next(thing.color for thing in things_called(scene, found[1] or found[2]))
    found = re.fullmatch(r"what (?:shape is the|is the shape of the|is the) (.*)", text)
    assert found, text
    return next(thing.shape for thing in things_called(scene, found[1]))


def says_the_truth(scene: Scene, text: str) -> bool:
    """Check a caption from its words and the scene."""
    text = text.removeprefix("there is ").removeprefix("a picture of ")
    if found := re.fullmatch(r"(.*) (left of|right of|above|below) (.*)", text):
        return is_related(scene, *found.groups())
    first, *_ = text.split()
    if first in NUMBERS:
        return len(things_called(scene, text.removeprefix(first))) == NUMBERS.index(first)
    return all(things_called(scene, noun) for noun in text.split(" and "))


@pytest.mark.parametrize("kind", KINDS)
def test_question_of_any_scene_has_the_answer_that_its_words_mean(kind: str) -> None:
    """An answer derived from the objects is the answer that a reader of the question would give."""
    asked = [(scene, question(scene, kind, np.random.default_rng(scene.seed))) for scene in SCENES]
    answered = [(scene, made) for scene, made in asked if made is not None]

    wrong = [made for scene, made in answered if answer_to(scene, made.text) != made.answer]

    assert len(answered) > 100
    assert wrong == []


@pytest.mark.parametrize("true", [True, False], ids=["true", "false"])
def test_caption_of_any_scene_holds_exactly_when_it_should(true: bool) -> None:
    """A hard negative is false in its scene, not merely different."""
    captions = [(scene, caption(scene, np.random.default_rng(scene.seed), true=true)) for scene in SCENES]

    assert [text for scene, text in captions if says_the_truth(scene, text) is not true] == []


def test_words_of_the_recipe_are_all_tokens() -> None:
    """No question or caption of the recipe holds a word that the tokenizer does not know."""
    rng = np.random.default_rng(0)
    texts = [caption(scene, rng, true=True) for scene in SCENES]
    texts += [made.text for scene in SCENES for kind in KINDS if (made := question(scene, kind, rng))]

    words = {word for text in texts for word in re.findall(r"\w+|\?", text)}

    assert words - set(VOCABULARY) == set()


def test_answers_to_yes_or_no_questions_are_balanced() -> None:
    """Neither yes nor no is the better guess."""
    rng = np.random.default_rng(0)
    made = [question(scene, kind, rng) for scene in SCENES for kind in ("exists", "relation")]

    answers = Counter(asked.answer for asked in made if asked)

    assert set(answers) == {"yes", "no"}
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.08  # 2.5 standard deviations of a fair coin


def test_scene_from_the_same_seed_is_drawn_the_same() -> None:
    """A seed is a picture: held-out data can be made again anywhere."""
    assert random_scene((1, 5)) == random_scene((1, 5))
    assert np.array_equal(draw(random_scene((1, 5))), draw(random_scene((1, 5))))


def test_objects_of_a_scene_stay_inside_their_cells() -> None:
    """The model card says that no object crosses a patch border."""
    for thing in (thing for scene in SCENES for thing in scene.things):
        for centre, cell in ((thing.x_px, thing.column), (thing.y_px, thing.row)):
            assert cell * CELL_PX <= centre - thing.radius_px
            assert centre + thing.radius_px <= (cell + 1) * CELL_PX
            assert 0 <= cell < GRID


def test_held_out_scenes_share_no_seed_with_training() -> None:
    """Training and held-out scenes come from different families of seeds."""
    assert heldout.HELD_OUT not in (stream.TRAINING, stream.LOOKING)


def test_labels_are_every_color_shape_number_and_yes_and_no() -> None:
    """The classifier has an output for every answer that the recipe can give, once."""
    assert len(set(LABELS)) == len(LABELS) == len(COLORS) + len(SHAPES) + 6 + 2


@pytest.mark.slow
def test_training_stopped_and_started_again_goes_on_from_there(tmp_path: Path) -> None:
    """A run that is stopped loses nothing: the next one finishes the recipe and writes a checkpoint."""
    state = tmp_path / "state.pt"
    settings = {"steps": 16, "learning_rate": 7e-4, "threads": 1}

    stopped = train.train(state, minutes=0.01, **settings)
    half_way = torch.load(state, weights_only=True)["progress"]["step"]
    finished = train.train(state, minutes=5, **settings)
    train.write_checkpoint(state, tmp_path / "checkpoint")

    assert not stopped
    assert 0 < half_way < 16
    assert finished
    assert torch.load(state, weights_only=True)["progress"]["step"] == 16
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "vocab.txt",
    }
