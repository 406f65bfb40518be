"""The peers as bars: latency with one client, throughput with several."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.peers.result import Measured
from loadtest.plots import BLUE, GREY


def draw(measured: Sequence[Measured], title: str, path: Path) -> None:
    """Draw p50 on the left (p99 as text, if known) and throughput by clients on the right; write a PNG."""
    figure = Figure(figsize=(11, 0.9 + 0.75 * len(measured)), layout="constrained")
    latency, throughput = figure.subplots(1, 2, sharey=True)
    for place, one in enumerate(measured):
        colour = BLUE if one.name.startswith("ours") else GREY
        latency.barh(place, one.p50_ms, height=0.5, color=colour)
        beside = "" if one.p99_ms is None else f", p99 {one.p99_ms:.0f}"
        _label(latency, one.p50_ms, place, f"{one.p50_ms:.0f}{beside}")
        height = 0.8 / len(one.throughput_per_s)
        for index, (clients, rates) in enumerate(one.throughput_per_s.items()):
            y = place - 0.4 + (index + 0.5) * height
            alpha = 0.4 + 0.6 * index / len(one.throughput_per_s)
            throughput.barh(y, rates.median, height=0.9 * height, color=colour, alpha=alpha)
            _label(throughput, rates.median, y, f"{rates.median:.1f} with {clients}")
    latency.set_yticks(range(len(measured)), [one.what for one in measured])
    latency.invert_yaxis()
    latency.set_xlabel("ms: p50 of one client")
    throughput.set_xlabel("answers per second with so many clients: median")
    for axes in (latency, throughput):
        axes.margins(x=0.25)  # room for the labels
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
