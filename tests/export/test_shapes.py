"""The recipe of shapes: its answers are right, its held-out scenes held out, what it trains is what is served."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViltModel

from export.shapes import heldout, stream, train
from export.shapes.captions import false_caption, true_caption
from export.shapes.model import SPEC, ShapesModel, shapes_config, shapes_tokenizer
from export.shapes.questions import KINDS, LABELS, question
from export.shapes.scenes import COLORS, SHAPES, Scene, Thing, draw, random_scene
from export.shapes.statements import NUMBERS
from export.shapes.words import VOCABULARY

SCENES = [random_scene((7, index)) for index in range(300)]
PLURALS = {f"{noun}s": noun for noun in (*SHAPES, "object")} | {"crosses": "cross"}
ANYTHING = {"object", "thing", "one"}
NOUN_WORDS = {*COLORS, *SHAPES, *PLURALS, *ANYTHING, "small", "large"}
DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "above": (0, -1), "over": (0, -1), "top": (0, -1),
    "below": (0, 1), "under": (0, 1), "bottom": (0, 1),
}  # fmt: skip


def things_called(scene: Scene, noun: str) -> list[Thing]:
    """Find what a noun phrase means, from its words alone."""
    words = {PLURALS.get(word, word) for word in noun.split()} - ANYTHING - {"a", "an", "the"}
    return [thing for thing in scene.things if words <= {thing.color, thing.shape, size_word(thing)}]


def size_word(thing: Thing) -> str:
    return "small" if thing.radius <= 16 else "large" if thing.radius >= 24 else "medium"


def nouns_in(text: str) -> list[str]:
    """List the noun phrases of a question: the longest runs of words that describe."""
    words = re.findall(r"\w+", text)
    runs = itertools.groupby(words, key=lambda word: word in NOUN_WORDS)
    return [" ".join(run) for describes, run in runs if describes]


def difference(first: Thing, second: Thing, word: str) -> float:
    """Measure how much further to a side one thing lies than another; negative, if less far."""
    dx, dy = DIRECTIONS[word]
    return (first.x - second.x) * dx + (first.y - second.y) * dy


def way_aside(scene: Scene, thing: Thing, word: str) -> float:
    """Measure how far to a side of the middle a thing lies, as a share of the scene."""
    dx, dy = DIRECTIONS[word]
    return (thing.x / scene.width - 0.5) * dx + (thing.y / scene.height - 0.5) * dy


def direction_in(text: str) -> str:
    return next(word for word in re.findall(r"\w+", text) if word in DIRECTIONS)


def answer_to(scene: Scene, kind: str, text: str) -> str:
    """Answer a question from its words and the scene: a second opinion on the recipe."""
    if kind == "size":
        text = re.sub(r"(small or large|large or small)\?$|^how large", "", text)
    called = [things_called(scene, noun) for noun in nouns_in(text)]
    match kind:
        case "exists" | "both":
            return "yes" if all(called) else "no"
        case "count":
            return str(len(called[0]))
        case "relation":
            (first,), (second,) = called
            return "yes" if difference(first, second, direction_in(text)) > 0 else "no"
    ((thing,),) = called  # these ask about one thing, which must be the only one of its description
    match kind:
        case "side":
            sides = [word for word in re.findall(r"\w+", text) if word in DIRECTIONS]
            return max(sides, key=lambda side: way_aside(scene, thing, side))
        case "size":
            return size_word(thing)
    return str(getattr(thing, kind))


def says_the_truth(scene: Scene, text: str) -> bool:
    """Check a caption from its words and the scene."""
    text = text.removeprefix("there is ").removeprefix("a picture of ")
    if found := re.fullmatch(r"(.*?) (left of|right of|above|below) (.*)", text):
        pairs = itertools.product(things_called(scene, found[1]), things_called(scene, found[3]))
        return any(difference(first, second, found[2].split()[0]) > 0 for first, second in pairs)
    if found := re.fullmatch(r"(.*) (?:on|at) the (\w+)", text):
        return any(way_aside(scene, thing, found[2]) > 0 for thing in things_called(scene, found[1]))
    return all(clause_holds(scene, clause) for clause in re.split(r", | and ", text))


def clause_holds(scene: Scene, clause: str) -> bool:
    first, _, rest = clause.partition(" ")
    found = things_called(scene, rest if first in NUMBERS else clause)
    return len(found) == NUMBERS.index(first) if first in NUMBERS else bool(found)


@pytest.mark.parametrize("kind", KINDS)
def test_question_of_any_scene_has_the_answer_that_its_words_mean(kind: str) -> None:
    """An answer derived from the objects is the answer that a reader of the question would give."""
    asked = [(scene, question(scene, kind, np.random.default_rng(scene.seed))) for scene in SCENES]
    answered = [(scene, made) for scene, made in asked if made is not None]

    wrong = [made for scene, made in answered if answer_to(scene, kind, made.text) != made.answer]

    assert len(answered) > 100
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_questions_of_a_kind_are_asked_in_many_ways(kind: str) -> None:
    """Paraphrases: with every noun and direction taken out, several wordings are left."""
    taken_out = NOUN_WORDS | set(DIRECTIONS) | {"a", "an"}
    made = [question(scene, kind, np.random.default_rng(scene.seed)) for scene in SCENES]

    wordings = {
        " ".join(word for word in re.findall(r"\w+", asked.text) if word not in taken_out) for asked in made if asked
    }

    assert len(wordings) >= 4


def test_relation_is_asked_only_where_it_is_clear() -> None:
    """No one has to measure whether a thing is left of another: half a medium thing lies between their centres."""
    made = [(scene, question(scene, "relation", np.random.default_rng(scene.seed))) for scene in SCENES]

    apart = []
    for scene, asked in made:
        if asked:
            (first,), (second,) = (things_called(scene, noun) for noun in nouns_in(asked.text))
            apart.append(abs(difference(first, second, direction_in(asked.text))))

    assert min(apart) >= 24


def test_side_is_asked_only_away_from_the_middle() -> None:
    """A thing in the middle is on neither side."""
    made = [(scene, question(scene, "side", np.random.default_rng(scene.seed))) for scene in SCENES]

    asides = [
        abs(way_aside(scene, things_called(scene, nouns_in(asked.text)[0])[0], asked.answer))
        for scene, asked in made
        if asked
    ]

    assert min(asides) >= 0.1


@pytest.mark.parametrize("true", [True, False], ids=["true", "false"])
def test_caption_of_any_scene_holds_exactly_when_it_should(true: bool) -> None:
    """A hard negative is false in its scene, not merely different."""
    say = true_caption if true else false_caption
    captions = [
        (scene, str(say(scene, np.random.default_rng((*scene.seed, draws))))) for scene in SCENES for draws in range(4)
    ]

    assert [text for scene, text in captions if says_the_truth(scene, text) is not true] == []


def test_some_captions_name_every_object() -> None:
    """Captions reach from one object to all six of a crowded scene."""
    crowded = [scene for scene in SCENES if len({thing.name for thing in scene.things}) == 6]

    named = [str(true_caption(scene, np.random.default_rng((*scene.seed, 1)))).count(",") for scene in crowded]

    assert max(named) == 4  # and an "and" before the sixth


def test_words_of_the_recipe_are_all_tokens() -> None:
    """No question or caption holds a word that the tokenizer does not know, or more words than the model reads."""
    rng = np.random.default_rng(0)
    texts = [str(say(scene, rng)) for scene in SCENES for say in (true_caption, false_caption)]
    texts += [made.text for scene in SCENES for kind in KINDS if (made := question(scene, kind, rng))]

    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)}

    assert words - set(VOCABULARY) == set()
    assert max(len(encoding.ids) for encoding in shapes_tokenizer().encode_batch(texts)) <= SPEC.max_text_tokens


def test_answers_to_yes_or_no_questions_are_balanced() -> None:
    """Neither yes nor no is the better guess."""
    rng = np.random.default_rng(0)
    made = [question(scene, kind, rng) for scene in SCENES for kind in ("exists", "both", "relation")]

    answers = Counter(asked.answer for asked in made if asked)

    assert set(answers) == {"yes", "no"}
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.07  # 3.5 standard deviations of a fair coin


def test_labels_are_every_answer_that_the_recipe_can_give_once() -> None:
    """The classifier has an output for each: colours, shapes, numbers to six, yes and no, sizes, sides."""
    rng = np.random.default_rng(0)
    made = [question(scene, kind, rng) for _ in range(3) for scene in SCENES for kind in KINDS]

    assert {asked.answer for asked in made if asked} == set(LABELS)
    assert len(set(LABELS)) == len(LABELS) == len(COLORS) + len(SHAPES) + 7 + 2 + 2 + 4


def test_scene_from_the_same_seed_is_drawn_the_same() -> None:
    """A seed is a picture: held-out data can be made again anywhere."""
    assert random_scene((1, 5)) == random_scene((1, 5))
    assert np.array_equal(draw(random_scene((1, 5))), draw(random_scene((1, 5))))


def test_objects_lie_anywhere_in_the_picture_and_do_not_touch() -> None:
    """The model card says 20 to 64 pixels, free positions, no overlap."""
    things = [(scene, thing) for scene in SCENES for thing in scene.things]
    for scene, thing in things:
        assert 10 <= thing.radius <= 32
        assert thing.radius <= thing.x <= scene.width - thing.radius
        assert thing.radius <= thing.y <= scene.height - thing.radius
    for scene in SCENES:
        assert 1 <= len(scene.things) <= 6
        for a, b in itertools.combinations(scene.things, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
    crossing = [(thing.x - thing.radius) // 32 != (thing.x + thing.radius) // 32 for _, thing in things]
    assert np.mean(crossing) > 0.7


def test_pictures_have_every_shape_that_a_camera_gives() -> None:
    """Square, 4:3, 3:2, 16:9 and upright ones: positions are interpolated to several grids."""
    sizes = {SPEC.resized(*draw(scene).size) for scene in SCENES}

    assert {(160, 160), (192, 160), (224, 160), (256, 128), (160, 192), (160, 224), (128, 256)} <= sizes


def test_objects_differ_from_their_background() -> None:
    """Whatever a background's pattern, no object's colour comes near it."""
    for scene in SCENES[:50]:
        pixels = np.asarray(draw(scene), np.int64)
        for thing in scene.things:
            inside = pixels[int(thing.y * scene.scale), int(thing.x * scene.scale)]
            tones = np.array(scene.background.rows).reshape(-1, 3)
            assert np.abs(tones - inside).sum(-1).min() > 60, thing


def test_patches_are_labelled_with_the_objects_whose_centres_they_hold() -> None:
    """The dense signal of training points at the right patches, in a picture that is not square."""
    scene = next(scene for scene in SCENES if scene.width > 1.3 * scene.height and len(scene.things) == 5)

    (rows, columns), labels = stream.picture_tensors([scene])

    assert columns > rows
    for thing in scene.things:
        patch = int(thing.y / scene.height * rows) * columns + int(thing.x / scene.width * columns)
        assert labels["color"][0, patch] == 1 + list(COLORS).index(thing.color)
        assert labels["shape"][0, patch] == 1 + SHAPES.index(thing.shape)
    assert (labels["color"] > 0).sum() == 5


def test_pictures_of_a_step_have_one_grid_whatever_their_pixels() -> None:
    """They are stacked: one that rounds to another grid would end a run."""
    for step in range(300):
        width, height = stream.size_of_step(np.random.default_rng((stream.TRAINING, step, 4)))
        scales = [scale / reduced for scale in (1.5, 2, 2.5, 3) for reduced in (1, 2)]
        assert len({SPEC.resized(round(width * scale), round(height * scale)) for scale in scales}) == 1


def test_model_in_training_is_the_model_of_transformers() -> None:
    """What is trained, positions interpolated for a wide picture included, is what a checkpoint will be."""
    torch.manual_seed(0)
    model = ShapesModel(shapes_config()).eval()
    batches = map(stream.SceneStream(heldout.HELD_OUT, 0, 0).batch, itertools.count())
    grid, batch = next(found for found in batches if found[0][1] > found[0][0])  # a wide one
    rows, columns = grid
    patches = batch["patches"][:1].float() / 127.5 - 1
    pixels = (
        patches.reshape(1, rows, columns, 32, 32, 3).permute(0, 5, 1, 3, 2, 4).reshape(1, 3, 32 * rows, 32 * columns)
    )
    questions = {name: values[:2] for name, values in batch["questions"].items()}
    reference = ViltModel(shapes_config()).eval()
    reference.load_state_dict(model.vilt.state_dict())

    with torch.inference_mode():
        ours, _ = model._read(model._embed(batch["patches"][:1], grid), questions)
        theirs = reference(**questions, pixel_values=pixels.expand(2, -1, -1, -1)).pooler_output

    assert (ours - theirs).abs().max() < 1e-4


def test_held_out_scenes_are_none_of_training() -> None:
    """Neither of its scenes with texts, nor of the crowded ones; and no scene is drawn twice."""
    drawn = [heldout.held_out_scene(index) for index in range(200)]
    numbers = range(heldout.FIRST, heldout.FIRST + 200)
    drawn += [random_scene((split, number)) for split in (stream.TRAINING, stream.LOOKING) for number in numbers]

    assert len({scene.things for scene in drawn}) == len(drawn)


def test_candidates_that_should_lose_a_rank_are_false_of_the_scene(tmp_path: Path) -> None:
    """Of twenty candidates one is right: the others are checked here from the caption's words."""
    heldout.write(tmp_path, scenes=60, asked=150, ranked=15)

    records = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    by_images = [record for record in records if "images" in record]
    by_texts = [record for record in records if "texts" in record]
    scene_of = {heldout.name_of(index): heldout.held_out_scene(index) for index in range(60)}
    assert len(by_images) == len(by_texts) == 15
    for record in by_images:
        truths = [says_the_truth(scene_of[image], record["text"]) for image in record["images"]]
        assert truths == [index == record["match"] for index in range(20)], record
    for record in by_texts:
        truths = [says_the_truth(scene_of[record["image"]], text) for text in record["texts"]]
        assert truths == [index == record["match"] for index in range(20)], record
    assert 145 <= sum("question" in record for record in records) <= 150  # a scene of one object allows few kinds
    assert all((tmp_path / name).is_file() for name in scene_of)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [((39, 1), "at least 40 scenes"), ((40, 41), "at most 40 ranks"), ((2000, 1001), "at most 1000 ranks")],
    ids=["too few to rank among", "more than scenes", "more than the first thousand"],
)
def test_ranks_that_there_are_no_scenes_for_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: tuple[int, int],
    sentence: str,
) -> None:
    """With a sentence, before anything is drawn."""
    scenes, ranks = map(str, asked)
    flags = ["--output", str(tmp_path / "new"), "--scenes", scenes, "--ranks", ranks]
    monkeypatch.setattr("sys.argv", ["heldout", *flags])

    with pytest.raises(SystemExit):
        heldout.main()

    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


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
