"""What one request's time is made of: the server's stages and the time beside them, as figures, text and bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from matplotlib.figure import Figure

from loadtest.plots import BLUE, OUTSIDE
from loadtest.rows import Row
from loadtest.summary import INFERENCE, PARTS, TOTAL, Spread

REST = "rest of inference"
VISUAL = "visual_embedding"
COLOURS = {
    "receive": "#d5dae0",
    "admit": "#9aa5b1",
    "decode": "#e08e2b",
    "preprocess": "#f0c36d",
    "tokenize": "#8a6d3b",
    "queue": "#b5446e",
    INFERENCE: BLUE,
    "text_embedding": "#2ba3b8",
    VISUAL: "#3d9970",
    "interaction": BLUE,
    REST: "#7f9fc4",
    "answer": "#7a5cc0",
    OUTSIDE: "#4a5560",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """How long the requests to one server took.

    Units: milliseconds.
    """

    model: dict[str, Any]  # from /v1/models
    http_ms: Spread  # from sending to the last byte, on the client's clock
    outside_ms: Spread  # of that, not in the server's stages
    beside_inference_ms: Spread  # of that, all but inference
    visual_embedding_share: Spread | None  # of inference
    stages_ms: dict[str, Spread]

    @classmethod
    def of(cls, model: dict[str, Any], rows: Sequence[Row]) -> Self:
        """Summarise rows that were all answered.

        Raises: ValueError: the server reports no stages.
        """
        if any({TOTAL, INFERENCE} - row.stages_ms.keys() for row in rows):
            raise ValueError("the server reports no stages: its answers lack Server-Timing")
        names = dict.fromkeys(name for row in rows for name in row.stages_ms)
        shares = [row.stages_ms[VISUAL] / row.stages_ms[INFERENCE] for row in rows if VISUAL in row.stages_ms]
        return cls(
            model=model,
            http_ms=Spread.of(row.latency_ms for row in rows),
            outside_ms=Spread.of(row.latency_ms - row.stages_ms[TOTAL] for row in rows),
            beside_inference_ms=Spread.of(row.latency_ms - row.stages_ms[INFERENCE] for row in rows),
            visual_embedding_share=Spread.of(shares) if shares else None,
            stages_ms={name: Spread.of(row.stages_ms.get(name, 0.0) for row in rows) for name in names},
        )

    def layers(self) -> Mapping[str, float]:
        """Split an answer's time into layers that do not overlap: inference as its parts, if it has any.

        Units: milliseconds, medians.
        """
        medians = {name: spread.median for name, spread in self.stages_ms.items()}
        medians[OUTSIDE] = self.outside_ms.median
        if any(part in medians for part in PARTS):
            medians[REST] = max(0.0, medians.pop(INFERENCE) - sum(medians.get(part, 0.0) for part in PARTS))
        return {name: medians[name] for name in COLOURS if name in medians}

    def __str__(self) -> str:
        lines = [f"{self.model['name']}, {self.model['precision']}: ms of one request, median and quartiles"]
        lines += [f"  {'  ' * (name in PARTS) + name:20}{spread}" for name, spread in self.stages_ms.items()]
        lines.append(f"  {OUTSIDE:20}{self.outside_ms}")
        lines.append(f"  {'HTTP':20}{self.http_ms}")
        lines.append(f"  {'HTTP less inference':20}{self.beside_inference_ms}")
        if self.visual_embedding_share:
            lines.append(f"  {VISUAL} is {self.visual_embedding_share.median:.1%} of inference")
        return "\n".join(lines)


def draw(found: Sequence[Breakdown], title: str, path: Path) -> None:
    """Draw a bar for each server: above the whole request, below all but inference, which dwarfs the rest."""
    figure = Figure(figsize=(9, 1.8 + 1.1 * len(found)), layout="constrained")
    whole, beside = figure.subplots(2, 1)
    bars = [one.layers() for one in found]
    names = [name for name in COLOURS if any(name in bar for bar in bars)]
    labels = [one.model["precision"] for one in found]
    for axes, left_out in ((whole, ()), (beside, (*PARTS, INFERENCE, REST))):
        base = [0.0] * len(found)
        for name in (name for name in names if name not in left_out):
            values = [bar.get(name, 0.0) for bar in bars]
            axes.barh(labels, values, left=base, height=0.6, color=COLOURS[name], label=name)
            base = [low + value for low, value in zip(base, values, strict=True)]
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
    whole.set_xlabel("ms, medians: the whole request")
    beside.set_xlabel("ms, medians: all but inference")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
