"""The peers as bars: latency of one client, throughput of several."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from loadtest.peers.result import Measured
from loadtest.plots import BLUE, GREY

SHADES = {"ours": BLUE, "theirs": GREY}


def draw(measured: Sequence[Measured], title: str, path: Path) -> None:
    """Draw p50 as bars with p99 as their whiskers, and throughput by clients as groups of bars; write a PNG."""
    figure = Figure(figsize=(11, 0.8 + 0.72 * len(measured)), layout="constrained")
    latency, throughput = figure.subplots(1, 2, sharey=True)
    places = range(len(measured))
    p50 = [one.p50_ms for one in measured]
    colours = [SHADES["ours" if one.name.startswith("ours") else "theirs"] for one in measured]
    late = [[0.0] * len(measured), [one.p99_ms - one.p50_ms for one in measured]]
    latency.barh(places, p50, height=0.6, color=colours, xerr=late, error_kw={"elinewidth": 1, "capsize": 3})
    for place, one in zip(places, measured, strict=True):
        latency.annotate(
            f"{one.p50_ms:.0f}", (0, place), xytext=(4, 0), textcoords="offset points", va="center", color="white"
        )
    latency.set_yticks(places, [one.what for one in measured])
    latency.invert_yaxis()
    latency.set_xlabel("ms, one client: p50; whisker: p99")
    counts = list(measured[0].throughput_per_s)
    height = 0.8 / len(counts)
    for index, clients in enumerate(counts):
        rates = [one.throughput_per_s[clients].median for one in measured]
        offsets = [place + (index - (len(counts) - 1) / 2) * height for place in places]
        share = 0.35 + 0.65 * (index + 1) / len(counts)
        bars = throughput.barh(offsets, rates, height=0.9 * height, color=colours)
        for bar in bars:
            bar.set_alpha(share)
        for offset, rate in zip(offsets, rates, strict=True):
            throughput.annotate(
                f"{rate:.1f} with {clients}",
                (rate, offset),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    throughput.set_xlabel("answers per second, with 1 to 8 clients")
    for axes in (latency, throughput):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
