"""The figures: stages as in the paper's Figure 1, the wait from a JPEG, a rank of 1,000, suppression."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from loadtest.claims.plan import VILT, named
from loadtest.claims.summary import RANKED, VILT_INT8, Measured

INK, FADED, GREY, FAINT = "#22303c", "#5c6670", "#9aa5b1", "#eef1f4"
COLOURS = {
    "decode": "#c9b8a8",
    "preprocess": "#8f7a66",
    "visual_backbone": "#1f5ca8",
    "region_proposal": "#2ba3b8",
    "roi_head": "#3d9970",
    "nms": "#d95f4c",
    "visual_embedding": "#7a5cc0",
    "text_embedding": "#b5446e",
    "interaction": "#e0a32b",
    "head": "#5c6670",
}
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "svg.hashsalt": "claims",  # the same figures make the same file
}
ROW_HEIGHT = 0.36  # inches
ENLARGED = 12  # times ViLT's total: the least that the enlarged panel shows
FORMATS = ("png", "svg")
DPI = 150


def draw_all(
    found: Sequence[Measured],
    nms_curves: Mapping[int, Mapping[int, float]],
    levels_ms: Mapping[str, float],
    folder: Path,
) -> None:
    """Write every figure that was measured, as PNG and SVG."""
    if found:
        _save(stages(found), folder / "claims-stages")
        _save(wait(found), folder / "claims-wait")
        _save(rank(found), folder / "claims-rank")
    if nms_curves:
        _save(suppression(nms_curves, levels_ms), folder / "claims-nms")


def stages(found: Sequence[Measured]) -> Figure:
    """Stack each design's stages, from the resized picture to the pooled output."""
    layers = [one.stages_ms for one in found]
    return _stacked(found, layers, "From the resized picture to the pooled output, by stage")


def wait(found: Sequence[Measured]) -> Figure:
    """Stack what a user waits for: the same stages after decoding and resizing a JPEG."""
    layers = [{**one.preparation_ms, **one.stages_ms} for one in found]
    return _stacked(found, layers, "From the JPEG file to the pooled output, by stage")


def rank(found: Sequence[Measured]) -> Figure:
    """Mark how long a rank of 1,000 pictures takes if they are new, and if their side of the model was kept."""

    def draw(axes: Axes) -> None:
        for row, one in enumerate(found):
            new_s, kept_s = one.rank_ms / 1000, one.rank_kept_ms / 1000
            axes.plot([kept_s, new_s], [row, row], color=GREY, linewidth=2, zorder=1)
            axes.plot(new_s, row, "o", color=COLOURS["visual_backbone"], markersize=7)
            axes.plot(kept_s, row, "o", color=COLOURS["interaction"], markersize=7)
            axes.annotate(_seconds(new_s), (new_s, row), (8, 0), textcoords="offset points", va="center", fontsize=8)
            axes.annotate(
                _seconds(kept_s),
                (kept_s, row),
                (-8, 0),
                textcoords="offset points",
                va="center",
                ha="right",
                fontsize=8,
            )
        axes.plot([], [], "o", color=COLOURS["interaction"], label="pictures' side computed before and kept")
        axes.plot([], [], "o", color=COLOURS["visual_backbone"], label="new pictures, from their JPEGs")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 6, high * 6)  # room for the labels
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f} s" if value >= 1 else f"{1000 * value:g} ms")
        )
        axes.set_xlabel(f"to rank {RANKED:,} pictures for one text (logarithmic)")
        axes.grid(axis="x", alpha=0.3)

    with mpl.rc_context(STYLE):
        figure, (axes,) = _rows(found, 1)
        draw(axes)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def suppression(curves: Mapping[int, Mapping[int, float]], levels_ms: Mapping[str, float]) -> Figure:
    """Draw how per-class suppression grows with the number of classes detected, and other ways as levels."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for (per_class, curve), colour in zip(curves.items(), (COLOURS["interaction"], COLOURS["nms"]), strict=False):
            label = f"{per_class} boxes in each class that is detected"
            axes.plot(list(curve), list(curve.values()), "o-", color=colour, label=label)
        for (label, value), colour in zip(levels_ms.items(), (COLOURS["visual_backbone"], INK), strict=False):
            axes.axhline(value, color=colour, linewidth=1.2, linestyle="--", label=f"{label}: {value:.3g} ms")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel("classes detected (logarithmic)")
        axes.set_ylabel("ms to suppress among 1,000 boxes (logarithmic)")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _stacked(found: Sequence[Measured], layers: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Draw one bar per design in two panels: at full length, and enlarged with the long ones cut off."""
    totals = [sum(one.values()) for one in layers]
    baseline = next((total for one, total in zip(found, totals, strict=True) if one.name == VILT), min(totals))
    shorter = [total for total in totals if total <= ENLARGED * baseline]
    limits = [1.12 * max(totals), 1.15 * max([*shorter, baseline])]
    with mpl.rc_context(STYLE):
        figure, panels = _rows(found, 2)
        for axes, limit, name in zip(panels, limits, ("", "enlarged; longer bars run on"), strict=True):
            _bars(axes, layers, totals, limit)
            axes.set_xlim(0, limit)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.set_xlabel("ms" + (f" ({name})" if name else ""))
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
        used = [stage for stage in COLOURS if any(one.get(stage, 0) > 0 for one in layers)]
        handles = [Patch(color=COLOURS[stage], label=named(stage)) for stage in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(f"{title} (structures with random weights)", fontsize=11)
    return figure


def _bars(axes: Axes, layers: Sequence[Mapping[str, float]], totals: Sequence[float], limit: float) -> None:
    rows = range(len(layers))
    base = [0.0] * len(layers)
    for stage, colour in COLOURS.items():
        values = [one.get(stage, 0.0) for one in layers]
        axes.barh(rows, values, left=base, height=0.68, color=colour)
        base = [start + value for start, value in zip(base, values, strict=True)]
    for row, total in zip(rows, totals, strict=True):
        if total > limit:
            axes.text(0.995 * limit, row, "▸", va="center", ha="right", color="white", fontsize=11)
        else:
            axes.text(total + 0.012 * limit, row, _milliseconds(total), va="center", fontsize=8)


def _rows(found: Sequence[Measured], panels: int) -> tuple[Figure, Sequence[Axes]]:
    """Set up panels whose rows are designs, with families told apart by shading."""
    figure = Figure(figsize=(5.6 * panels + 2 * (panels == 1), 1.6 + ROW_HEIGHT * len(found)), layout="constrained")
    axes_of_panels = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axes in axes_of_panels:
        shaded, last = False, found[0].family
        for row, one in enumerate(found):
            shaded, last = shaded ^ (one.family != last), one.family
            if shaded:
                axes.axhspan(row - 0.5, row + 0.5, color=FAINT, zorder=0, linewidth=0)
        axes.tick_params(axis="y", length=0)
    for family in dict.fromkeys(one.family for one in found):
        rows = [row for row, one in enumerate(found) if one.family == family]
        axes_of_panels[-1].text(
            1.015,
            sum(rows) / len(rows),
            family.replace(", ", ",\n").replace(" ", "\n", 1 if len(rows) > 1 else 0),
            transform=axes_of_panels[-1].get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=FADED,
        )
    first = axes_of_panels[0]
    first.set_yticks(range(len(found)), [one.title for one in found])
    for label, one in zip(first.get_yticklabels(), found, strict=True):
        label.set_fontweight("bold" if one.name in {VILT, VILT_INT8} else "normal")
    first.set_ylim(len(found) - 0.5, -0.5)
    return figure, axes_of_panels


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _seconds(value: float) -> str:
    scales: list[tuple[float, float, str]] = [(3600, 3600, "h"), (60, 60, "min"), (1, 1, "s"), (0, 0.001, "ms")]
    size, unit = next((size, unit) for least, size, unit in scales if value >= least)
    return f"{value / size:.3g} {unit}"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, None]] = {"svg": {"Date": None}, "png": {}}
    with mpl.rc_context(STYLE):
        for file_format in FORMATS:
            figure.savefig(path.with_suffix(f".{file_format}"), dpi=DPI, metadata=metadata[file_format])
