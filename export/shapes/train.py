"""Train `shapes` on scenes that are drawn as they are needed, so that no scene is seen twice.

A run saves its state every five minutes and when it stops; the same command goes on from there.
"""

import argparse
import csv
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from export.shapes.heldout import HELD_OUT
from export.shapes.language import KINDS, LABELS, MAX_TEXT_TOKENS, caption, question
from export.shapes.model import IMAGE_PX, ShapesModel, save_checkpoint, shapes_config, shapes_tokenizer
from export.shapes.scenes import COLORS, GRID, SHAPES, Scene, draw, random_scene

TRAINING, LOOKING = 0, 2  # first number of a scene's seed; no scene of HELD_OUT is ever trained on
QUESTIONS, CAPTIONS = 4, 2  # about each scene; one caption is true
SCENES_PER_STEP = 32
LOOK_SHARE = 8  # one step in so many, the first ones, looks at crowded pictures and reads nothing
LOOK_SCENES_PER_STEP = 64
SAVE_EVERY_S = 300.0
IGNORED = -100


@dataclass(slots=True)
class Progress:
    """What a run needs to go on: steps done and the learning curve."""

    step: int = 0
    trained_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


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
        scenes, texts, answers, matches, kinds = [], [], [], [], []
        for index in range(SCENES_PER_STEP):
            seed = (self.split, step * SCENES_PER_STEP + index)
            scene, rng = random_scene(seed), np.random.default_rng((*seed, 2))
            scenes.append(scene)
            asked = 0
            while asked < QUESTIONS:
                made = question(scene, KINDS[int(rng.integers(len(KINDS)))], rng)
                if made is None:
                    continue
                texts.append(made.text)
                answers.append(LABELS.index(made.answer))
                kinds.append(KINDS.index(made.kind))
                matches.append(IGNORED)
                asked += 1
            for is_true in (True, False):
                texts.append(caption(scene, rng, true=is_true))
                answers.append(IGNORED)
                kinds.append(IGNORED)
                matches.append(int(is_true))
        encodings = self.tokenizer.encode_batch(texts)
        return {
            **picture_tensors(scenes),
            "input_ids": torch.tensor([encoding.ids for encoding in encodings]),  # (S * K, L)
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
            "answers": torch.tensor(answers),
            "matches": torch.tensor(matches),
            "kinds": torch.tensor(kinds),
        }


def picture_tensors(scenes: list[Scene]) -> dict[str, Tensor]:
    """Draw scenes and say which colour and shape each patch holds; 0 is none."""
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
    }


def photograph(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bring a picture to the model's size as different senders would: box or bicubic, at times through JPEG."""
    small = picture.reduce(2) if rng.random() < 0.5 else picture.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=int(rng.integers(70, 96)))
        small = Image.open(file)
    return small


def run_model(model: ShapesModel, batch: dict[str, Tensor], *, bf16: bool) -> dict[str, Tensor]:
    """Run the model on a batch; bfloat16 where the processor multiplies it in hardware."""
    pixels = batch["pictures"].permute(0, 3, 1, 2).float() / 127.5 - 1  # (S, 3, H, W)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        looks = "input_ids" not in batch
        logits = model.look(pixels) if looks else model(pixels, batch["input_ids"], batch["attention_mask"])
    return {name: value.float() for name, value in logits.items()}


def loss_of(logits: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Add up the losses: binary cross-entropy over answers as in the paper, matching, ranking, helpers."""
    helpers = sum(
        nn.functional.cross_entropy(logits[name].flatten(0, 1), batch[name].flatten()) for name in ("color", "shape")
    )
    if "vqa" not in logits:
        return helpers
    asked, said = batch["answers"] != IGNORED, batch["matches"] != IGNORED
    targets = nn.functional.one_hot(batch["answers"][asked], len(LABELS)).float()
    bce = nn.functional.binary_cross_entropy_with_logits
    matches = batch["matches"][said]
    return (
        bce(logits["vqa"][asked], targets) * len(LABELS)
        + nn.functional.cross_entropy(logits["itm"][said], matches)
        + 0.5 * bce(logits["rank"][said, 0], matches.float())
        + 0.5 * helpers
    )


def accuracy_of(logits: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, float]:
    """Measure accuracy per question kind, over all questions, and of matching."""
    right = (logits["vqa"].argmax(-1) == batch["answers"]).float()
    said = batch["matches"] != IGNORED
    busy = batch["shape"] > 0
    return {
        **{kind: right[batch["kinds"] == index].mean().item() for index, kind in enumerate(KINDS)},
        "vqa": right[batch["answers"] != IGNORED].mean().item(),
        "itm": (logits["itm"].argmax(-1) == batch["matches"])[said].float().mean().item(),
        "patch_color": (logits["color"].argmax(-1) == batch["color"])[busy].float().mean().item(),
        "patch_shape": (logits["shape"].argmax(-1) == batch["shape"])[busy].float().mean().item(),
    }


def measure(model: ShapesModel, *, batches: int, bf16: bool) -> dict[str, float]:
    """Average accuracy over held-out scenes."""
    stream = SceneStream(HELD_OUT, 0, 0)
    model.eval()
    rows = []
    with torch.inference_mode():
        for step in range(batches):
            batch = stream.batch(step)
            rows.append(accuracy_of(run_model(model, batch, bf16=bf16), batch))
    model.train()
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def train(state: Path, *, steps: int, minutes: float, learning_rate: float, threads: int) -> bool:
    """Train until `steps` are done or `minutes` are over; tell whether the whole recipe is done."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False) or torch.cpu.get_capabilities().get("amx_bf16", False)
    model = ShapesModel(shapes_config())
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    progress = Progress()
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress(**saved["progress"])
    warm_up = max(1, steps // 40)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
    )
    schedule.last_epoch = progress.step - 1
    schedule.step()

    def save() -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "progress": {"step": progress.step, "trained_s": progress.trained_s, "curve": progress.curve},
        }
        torch.save(kept, state.with_suffix(".partial"))
        state.with_suffix(".partial").replace(state)

    loader = DataLoader(
        SceneStream(TRAINING, progress.step, steps // LOOK_SHARE), batch_size=None, num_workers=1, prefetch_factor=8
    )
    began = saved_at = lap = time.monotonic()
    bar = tqdm(total=steps, initial=progress.step, unit="step", smoothing=0.02)
    for batch in loader:
        if progress.step >= steps or time.monotonic() - began > 60 * minutes:
            break
        logits = run_model(model, batch, bf16=bf16)
        loss = loss_of(logits, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.step += 1
        now = time.monotonic()
        progress.trained_s, lap = progress.trained_s + now - lap, now
        bar.update()
        if progress.step % 500 == 0 or progress.step == steps:
            row = {"step": progress.step, "trained_s": round(progress.trained_s), "loss": round(loss.item(), 4)}
            measured = measure(model, batches=16, bf16=bf16)
            row.update({name: round(value, 4) for name, value in measured.items()})
            progress.curve.append(row)
            bar.set_postfix({name: row[name] for name in ("loss", "vqa", "itm")})
        if now - saved_at > SAVE_EVERY_S:
            save()
            saved_at = time.monotonic()
    bar.close()
    save()
    return progress.step >= steps


def write_checkpoint(state: Path, directory: Path) -> None:
    """Turn a training state into a Hugging Face checkpoint with its learning curve beside it."""
    saved = torch.load(state, weights_only=True)
    model = ShapesModel(shapes_config())
    model.load_state_dict(saved["model"])
    save_checkpoint(model, directory)
    curve = saved["progress"]["curve"]
    with (directory / "learning_curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.shapes.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/shapes"), help="where state and checkpoint go")
    parser.add_argument("--steps", type=int, default=12000, help="steps of the whole recipe (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=75, help="stop this run after so long (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=7e-4, help="peak (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    options = parser.parse_args()
    state = options.output / "state.pt"
    done = train(
        state,
        steps=options.steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        threads=options.threads,
    )
    write_checkpoint(state, options.output / "checkpoint")
    print("done" if done else "stopped early: run the same command again to go on")


if __name__ == "__main__":
    main()
