"""Scenes as a stream of training batches: pictures, texts about them, and what each head should say.

Scenes are drawn as they are needed, so that none is seen twice.
"""

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from export.shapes.language import KINDS, LABELS, MAX_TEXT_TOKENS, Question, caption, question
from export.shapes.model import IMAGE_PX, PLACES, shapes_tokenizer
from export.shapes.scenes import COLORS, GRID, SHAPES, Scene, draw, random_scene

TRAINING, LOOKING = 0, 2  # first number of a scene's seed; no scene of heldout.HELD_OUT is ever trained on
QUESTIONS = 4  # about each scene, beside a true caption and a false one
SCENES_PER_STEP = 32
LOOK_SCENES_PER_STEP = 64
IGNORED = -100
NOWHERE = [IGNORED] * PLACES
KIND_SHARES = (0.15, 0.15, 0.2, 0.15, 0.35)  # of KINDS: relations are learnt last


class SceneStream(IterableDataset[dict[str, Tensor]]):
    """Batches of scenes and targets, from a step on: crowded pictures without texts first, then scenes with them."""

    def __init__(self, split: int, first_step: int, look_steps: int) -> None:
        self.split, self.first_step, self.look_steps = split, first_step, look_steps
        self.tokenizer = shapes_tokenizer()
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(MAX_TEXT_TOKENS)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        step = self.first_step
        while True:
            yield self.batch(step) if step >= self.look_steps else self.look_batch(step)
            step += 1

    def look_batch(self, step: int) -> dict[str, Tensor]:
        """Draw one step's crowded pictures and what is in each patch."""
        first = step * LOOK_SCENES_PER_STEP
        seeds = [(LOOKING, first + index) for index in range(LOOK_SCENES_PER_STEP)]
        return picture_tensors([random_scene(seed, GRID * GRID, GRID * GRID // 2) for seed in seeds])

    def batch(self, step: int) -> dict[str, Tensor]:
        """Draw one step's scenes: S pictures, K texts each, and what each head should say."""
        scenes, texts, answers, matches, kinds, places = [], [], [], [], [], []
        for index in range(SCENES_PER_STEP):
            seed = (self.split, step * SCENES_PER_STEP + index)
            scene, rng = random_scene(seed), np.random.default_rng((*seed, 2))
            scenes.append(scene)
            asked = 0
            while asked < QUESTIONS:
                made = question(scene, KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))], rng)
                if made is None:
                    continue
                texts.append(made.text)
                answers.append(LABELS.index(made.answer))
                kinds.append(KINDS.index(made.kind))
                matches.append(IGNORED)
                places.append(places_of(scene, made))
                asked += 1
            for is_true in (True, False):
                texts.append(caption(scene, rng, true=is_true))
                answers.append(IGNORED)
                kinds.append(IGNORED)
                matches.append(int(is_true))
                places.append(NOWHERE)
        encodings = self.tokenizer.encode_batch(texts)
        return {
            **picture_tensors(scenes),
            "input_ids": torch.tensor([encoding.ids for encoding in encodings]),  # (S * K, L)
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
            "answers": torch.tensor(answers),
            "matches": torch.tensor(matches),
            "kinds": torch.tensor(kinds),
            "places": torch.tensor(places),  # (S * K, PLACES)
        }


def places_of(scene: Scene, asked: Question) -> list[int]:
    """Say where the objects that a question names lie: row and column of each that is the only one of its name."""
    places = list(NOWHERE)
    for index, name in enumerate(asked.about):
        found = [thing for thing in scene.things if thing.name == name]
        if len(found) == 1:
            places[2 * index : 2 * index + 2] = found[0].row, found[0].column
    return places


def picture_tensors(scenes: list[Scene]) -> dict[str, Tensor]:
    """Draw scenes and say of each patch which colour and shape it holds, 0 being none, and where it is."""
    pictures = []
    colors = np.zeros((len(scenes), GRID * GRID), np.int64)
    shapes = np.zeros((len(scenes), GRID * GRID), np.int64)
    for index, scene in enumerate(scenes):
        pictures.append(np.asarray(photograph(draw(scene), np.random.default_rng((*scene.seed, 3)))))
        for thing in scene.things:
            colors[index, thing.row * GRID + thing.column] = 1 + list(COLORS).index(thing.color)
            shapes[index, thing.row * GRID + thing.column] = 1 + SHAPES.index(thing.shape)
    return {
        "pictures": torch.from_numpy(np.stack(pictures)),  # (S, H, W, 3) uint8
        "color": torch.from_numpy(colors),  # (S, P)
        "shape": torch.from_numpy(shapes),
        "row": torch.arange(GRID).repeat_interleave(GRID).expand(len(scenes), -1),
        "column": torch.arange(GRID).repeat(GRID).expand(len(scenes), -1),
    }


def photograph(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bring a picture to the model's size as different senders would: box or bicubic, at times through JPEG."""
    small = picture.reduce(2) if rng.random() < 0.5 else picture.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=int(rng.integers(70, 96)))
        small = Image.open(file)
    return small
