"""Scenes as a stream of training batches: pictures, texts about them, and the targets of every head.

Scenes are drawn when they are needed, so that none is seen twice.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from export.shapes.captions import false_caption, true_caption
from export.shapes.model import BINS, PATCH_HELPERS, PLACES, SPEC, Texts, shapes_tokenizer
from export.shapes.questions import KINDS, LABELS, Question, question
from export.shapes.scenes import COLORS, SCALES, SHAPES, Scene, draw, random_scene, random_size
from export.shapes.statements import size_of
from export.shapes.words import MAX_TEXT_TOKENS
from models.image import to_patches
from models.spec import Grid

TRAINING, LOOKING = 0, 2  # first number of a scene's seed; no scene of heldout.HELD_OUT is ever trained on
QUESTIONS = 4  # about each scene, beside a true caption and a false one
SCENES_PER_STEP = 32
LOOK_SCENES_PER_STEP = 64
LOOK_COUNTS = (5, 9)  # objects in a crowded picture
IGNORED = -100
NOWHERE = [IGNORED] * PLACES
KIND_SHARES = (0.05, 0.07, 0.28, 0.05, 0.14, 0.33, 0.04, 0.04)  # of KINDS: counts and relations are learnt last
Batch = dict[str, Any]  # tensors, and Texts under questions and captions


class SceneStream(IterableDataset[tuple[Grid, Batch]]):
    """Batches from a given step on: first crowded pictures without texts, then scenes with questions and captions.

    All scenes of a step have the same size and so the same grid; steps differ.
    """

    def __init__(self, split: int, first_step: int, look_steps: int) -> None:
        self.split, self.first_step, self.look_steps = split, first_step, look_steps
        self.tokenizer = shapes_tokenizer()
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(MAX_TEXT_TOKENS)

    def __iter__(self) -> Iterator[tuple[Grid, Batch]]:
        step = self.first_step
        while True:
            yield self.batch(step) if step >= self.look_steps else self.look_batch(step)
            step += 1

    def look_batch(self, step: int) -> tuple[Grid, Batch]:
        """Draw one step's crowded pictures, with labels of what is in each patch."""
        size = size_of_step(np.random.default_rng((LOOKING, step, 4)))
        first = step * LOOK_SCENES_PER_STEP
        seeds = [(LOOKING, first + index) for index in range(LOOK_SCENES_PER_STEP)]
        scenes = [random_scene(seed, counts=LOOK_COUNTS, size=size) for seed in seeds]
        return picture_tensors([replace(scene, scale=min(SCALES)) for scene in scenes])  # drawn fast

    def batch(self, step: int) -> tuple[Grid, Batch]:
        """Draw one step's scenes, with questions and captions about each, and the targets of every head."""
        size = size_of_step(np.random.default_rng((self.split, step, 4)))
        scenes, asked, captions, matches, places = [], [], [], [], []
        for index in range(SCENES_PER_STEP):
            seed = (self.split, step * SCENES_PER_STEP + index)
            scene, rng = random_scene(seed, size=size), np.random.default_rng((*seed, 2))
            scenes.append(scene)
            while len(asked) < len(scenes) * QUESTIONS:
                made = question(scene, KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))], rng)
                if made is not None:
                    asked.append(made)
                    places.append(places_of(scene, made))
            captions += [str(true_caption(scene, rng)), str(false_caption(scene, rng))]
            matches += [1, 0]
        grid, pictures = picture_tensors(scenes)
        return grid, {
            **pictures,
            "questions": self._encode([made.text for made in asked]),
            "answers": torch.tensor([LABELS.index(made.answer) for made in asked]),  # (S * QUESTIONS,)
            "kinds": torch.tensor([KINDS.index(made.kind) for made in asked]),
            "places": torch.tensor(places),  # (S * QUESTIONS, PLACES)
            "captions": self._encode(captions),
            "matches": torch.tensor(matches),  # (S * 2,)
        }

    def _encode(self, texts: list[str]) -> Texts:
        encodings = self.tokenizer.encode_batch(texts)
        return {
            "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
        }


def size_of_step(rng: np.random.Generator) -> tuple[float, float]:
    """Draw a size whose pictures have one grid, however many pixels each is drawn with."""
    while True:
        width, height = random_size(rng)
        slightly_other = ((width + dx, height + dy) for dx in (-2, 2) for dy in (-2, 2))
        if len({SPEC.resized(round(8 * w), round(8 * h)) for w, h in slightly_other}) == 1:
            return width, height


def places_of(scene: Scene, asked: Question) -> list[int]:
    """Locate the objects that a question names: x and y of each that is the only one of its name."""
    places = list(NOWHERE)
    for index, noun in enumerate(asked.about):
        found = [thing for thing in scene.things if noun.describes(thing) is not False]
        if len(found) == 1:
            places[2 * index : 2 * index + 2] = (
                int(found[0].x / scene.width * BINS),
                int(found[0].y / scene.height * BINS),
            )
    return places


def picture_tensors(scenes: list[Scene]) -> tuple[Grid, Batch]:
    """Draw scenes of one size, and label each patch with the object whose centre is in it (0 if none) and its place."""
    pictures = [to_patches(photograph(draw(scene), np.random.default_rng((*scene.seed, 3))), SPEC) for scene in scenes]
    rows, columns = pictures[0].grid
    labels = {name: np.zeros((len(scenes), rows, columns), np.int64) for name in PATCH_HELPERS}
    for name in ("shape", "size"):  # what is not there has neither: only its colour says none
        labels[name] += IGNORED
    labels["x"] += ((np.arange(columns) + 0.5) / columns * BINS).astype(int)
    labels["y"] += ((np.arange(rows)[:, None] + 0.5) / rows * BINS).astype(int)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            x, y = thing.x / scene.width, thing.y / scene.height
            patch = index, int(y * rows), int(x * columns)
            labels["color"][patch] = 1 + list(COLORS).index(thing.color)
            labels["shape"][patch] = 1 + SHAPES.index(thing.shape)
            labels["size"][patch] = 1 + ("small", None, "large").index(size_of(thing))
            labels["x"][patch] = int(x * BINS)
            labels["y"][patch] = int(y * BINS)
    return pictures[0].grid, {
        "patches": torch.from_numpy(np.stack([picture.patches for picture in pictures])),  # (S, P, 3072) uint8
        **{name: torch.from_numpy(values).flatten(1) for name, values in labels.items()},  # (S, P)
    }


def photograph(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Degrade some pictures as users' are: reduced, or compressed as JPEG."""
    if rng.random() < 0.3:
        picture = picture.reduce(2)
    if rng.random() < 0.2:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(70, 96)))
        picture = Image.open(file)
    return picture
