"""Train `shapes` on a stream of scenes.

A run saves its state every five minutes and when it stops; the same command continues from there.
"""

import argparse
import csv
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from export.shapes.heldout import HELD_OUT
from export.shapes.model import PATCH_HELPERS, ShapesModel, save_checkpoint, shapes_config
from export.shapes.questions import KINDS, LABELS
from export.shapes.stream import IGNORED, TRAINING, Batch, SceneStream
from models.spec import Grid

LOOK_SHARE = 0.4  # of the steps, the first ones, which look at crowded pictures and read nothing
PATCH_WEIGHTS = {"shape": 2.0}  # of the helpers' losses: shapes are learnt last
SAVE_EVERY_S = 300.0
MEASURE_EVERY_STEPS = 500


def run_model(model: ShapesModel, grid: Grid, batch: Batch, *, bf16: bool) -> dict[str, Tensor]:
    """Run the model on a batch; bfloat16 where the processor multiplies it in hardware."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if "questions" in batch:
            logits = model(batch["patches"], grid, batch["questions"], batch["captions"])
        else:
            logits = model.look(batch["patches"], grid)
    return {name: value.float() for name, value in logits.items()}


def loss_of(logits: dict[str, Tensor], batch: Batch) -> Tensor:
    """Add up the losses: binary cross-entropy over answers as in the paper, matching, ranking, helpers."""
    helpers = sum(
        PATCH_WEIGHTS.get(name, 1.0)
        * nn.functional.cross_entropy(logits[name].flatten(0, 1), batch[name].flatten(), ignore_index=IGNORED)
        for name in PATCH_HELPERS
    )
    if "vqa" not in logits:
        return helpers
    bce = nn.functional.binary_cross_entropy_with_logits
    return (
        bce(logits["vqa"], nn.functional.one_hot(batch["answers"], len(LABELS)).float()) * len(LABELS)
        + nn.functional.cross_entropy(logits["itm"], batch["matches"])
        + 0.5 * bce(logits["rank"][:, 0], batch["matches"].float())
        + 0.5 * helpers
        + nn.functional.cross_entropy(logits["places"].flatten(0, 1), batch["places"].flatten(), ignore_index=IGNORED)
    )


def accuracy_of(logits: dict[str, Tensor], batch: Batch) -> dict[str, float]:
    """Measure accuracy per question kind, of matching, and of the helpers; NaN for a kind that was not asked."""
    right = (logits["vqa"].argmax(-1) == batch["answers"]).float()
    busy = batch["color"] > 0
    return {
        **{kind: right[batch["kinds"] == index].mean().item() for index, kind in enumerate(KINDS)},
        "itm": (logits["itm"].argmax(-1) == batch["matches"]).float().mean().item(),
        **{
            f"patch_{name}": (logits[name].argmax(-1) == batch[name])[busy].float().mean().item()
            for name in PATCH_HELPERS
        },
    }


def measure(model: ShapesModel, *, batches: int, bf16: bool) -> dict[str, float]:
    """Average accuracy over held-out scenes; vqa is the mean of the kinds, however often each is asked."""
    stream = SceneStream(HELD_OUT, 0, 0)
    model.eval()
    rows = []
    with torch.inference_mode():
        for step in range(batches):
            grid, batch = stream.batch(step)
            rows.append(accuracy_of(run_model(model, grid, batch, bf16=bf16), batch))
    model.train()
    means = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    return {**means, "vqa": float(np.nanmean([means[kind] for kind in KINDS]))}


def schedule(step: int, steps: int) -> float:
    """Scale the learning rate: up in the first fortieth of the recipe, then down along a cosine."""
    return min((step + 1) * 40 / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))


class Run:
    """Model, optimizer and learning curve, as far as they have come; kept in a file between runs."""

    def __init__(self, path: Path, *, steps: int, learning_rate: float) -> None:
        self.path = path
        self.steps = steps
        self.learning_rate = learning_rate
        self.step = 0
        self.trained_s = 0.0
        self.curve: list[dict[str, float]] = []
        self.model = ShapesModel(shapes_config())
        decayed = [parameter for parameter in self.model.parameters() if parameter.ndim >= 2]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
        )
        capabilities = torch.cpu.get_capabilities()
        self.bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))  # else it is emulated
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.trained_s, self.curve = (saved["progress"][name] for name in ("step", "trained_s", "curve"))

    def save(self) -> None:
        """Write the state beside the old one, then replace it: a stop in between loses nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        progress = {"step": self.step, "trained_s": self.trained_s, "curve": self.curve}
        partial = self.path.with_suffix(".partial")
        torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "progress": progress}, partial
        )
        partial.replace(self.path)

    def learn(self, grid: Grid, batch: Batch) -> float:
        """Take one step and return its loss."""
        began_s = time.monotonic()
        loss = loss_of(run_model(self.model, grid, batch, bf16=self.bf16), batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.step, self.steps)
        self.optimizer.step()
        self.step += 1
        self.trained_s += time.monotonic() - began_s
        return loss.item()

    def measure(self, loss: float) -> dict[str, float]:
        """Add a row to the learning curve."""
        row = {"step": self.step, "trained_s": round(self.trained_s), "loss": round(loss, 4)}
        row |= {name: round(value, 4) for name, value in measure(self.model, batches=16, bf16=self.bf16).items()}
        self.curve.append(row)
        return row


def train(state: Path, *, steps: int, minutes: float, learning_rate: float, threads: int) -> bool:
    """Train until `steps` are done or `minutes` are over; tell whether the whole recipe is done."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = Run(state, steps=steps, learning_rate=learning_rate)
    stream = SceneStream(TRAINING, run.step, int(LOOK_SHARE * steps))
    stop_s = time.monotonic() + 60 * minutes
    save_s = time.monotonic() + SAVE_EVERY_S
    bar = tqdm(total=steps, initial=run.step, unit="step", smoothing=0.02)
    for grid, batch in DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=8):
        if run.step >= steps or time.monotonic() > stop_s:
            break
        loss = run.learn(grid, batch)
        bar.update()
        if run.step % MEASURE_EVERY_STEPS == 0 or run.step == steps:
            row = run.measure(loss)
            bar.set_postfix({name: row[name] for name in ("loss", "vqa", "itm")})
        if time.monotonic() > save_s:
            run.save()
            save_s = time.monotonic() + SAVE_EVERY_S
    bar.close()
    run.save()
    return run.step >= steps


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
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in (*KINDS, "vqa", "itm"):
        is_summary = name in ("vqa", "itm")
        values = [100 * row[name] for row in curve]
        axes.plot([row["step"] for row in curve], values, label=name, lw=2 if is_summary else 1)
    axes.set_xlabel("steps")
    axes.set_ylabel("accuracy on held-out scenes, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    figure.savefig(directory / "learning_curve.png", dpi=100, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.shapes.train", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/shapes"),
        help="folder for the training state and the checkpoint (default %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=13_600, help="training steps in all (default %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=75, help="stop this run after so many minutes (default %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=7e-4, help="peak learning rate (default %(default)s)")
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
    if not done:
        sys.exit("stopped before the training was complete: run the same command again to continue")


if __name__ == "__main__":
    main()
