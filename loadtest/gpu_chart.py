"""The result of `vilt-bench gpu` as a chart: the model's time by rows, and HTTP's throughput by clients."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from loadtest.plots import GREY, STAGE_COLOURS

Curves = Mapping[str, Mapping[int, float]]  # by label: what was measured, by rows or clients


def draw(found: Mapping[str, Any], patches: int, path: Path) -> None:
    """Draw what was found for images with so many patches; write a PNG, unless nothing was timed."""
    models = {name: [row for row in one["runs"] if row["patches"] == patches] for name, one in found["model"].items()}
    times, rates, best = times_ms(models, found["torch"]), answers_per_s(found["http"]), best_per_s(models)
    if not times:
        return
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_yscale("log")
    _lines(left, times)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("rows in a batch")
    left.set_ylabel("ms")
    left.set_title(f"the model without copies, {patches} patches", fontsize=10)
    _lines(right, rates)
    for name, rate in best.items():
        right.axhline(rate, color=GREY, linestyle=":", label=f"the model on {name}, with copies")
    right.set_ylim(bottom=0)
    right.set_xlabel("clients")
    right.set_ylabel("answers per second")
    right.set_title("HTTP", fontsize=10)
    left.legend(loc="upper left", fontsize=8, frameon=False)
    right.legend(loc="center left", fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(", ".join(dict.fromkeys(one["gpu"] for one in found["model"].values())), fontsize=10)
    figure.savefig(path, dpi=120)


def times_ms(models: Mapping[str, Iterable[Mapping[str, Any]]], torch: Mapping[str, Any] | None) -> Curves:
    """Return milliseconds per batch by rows, of each way to run torch, and of each provider at its shortest text."""
    curves: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in (torch or {}).get("runs", []):
        if "failed" not in row:
            curves[row["name"]][row["batch"]] = row["p50_ms"]
    for name, rows in models.items():
        for row in sorted(rows, key=lambda row: -row["tokens"]):
            curves[f"this server, {name}"][row["batch"]] = row["graph_p50_ms"]
    return curves


def answers_per_s(http: Mapping[str, Iterable[Mapping[str, Any]]]) -> Curves:
    """Return answers per second by clients, for each provider and number of workers."""
    curves: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for name, loops in http.items():
        for row in loops:
            workers = "one process" if row["workers"] == 1 else f"{row['workers']} workers"
            curves[f"{name}, {workers}"][row["clients"]] = row["answers_per_s"]
    return curves


def best_per_s(models: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, float]:
    """Return images per second of each provider's best batch."""
    return {name: max(row["images_per_s"] for row in rows) for name, rows in models.items() if rows}


def _lines(axes: Axes, curves: Curves) -> None:
    """Draw curves over a scale of powers of two."""
    for (label, values), colour in zip(curves.items(), STAGE_COLOURS, strict=False):
        axes.plot(list(values), list(values.values()), "o-", markersize=4, color=colour, label=label)
    axes.set_xscale("log", base=2)
    places = sorted({place for values in curves.values() for place in values})
    axes.set_xticks(places, [str(place) for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
