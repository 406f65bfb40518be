"""The plots of a load report, each an SVG in a data: URI."""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from loadtest.result import PERCENTILES, Result
from loadtest.rows import OK
from loadtest.summary import PARTS, TOTAL, is_refusal

OUTSIDE = "outside the server"
BLUE, RED, GREY = "#1f5ca8", "#c0392b", "#9aa5b1"
STAGE_COLOURS = (BLUE, "#e08e2b", "#3d9970", "#b5446e", "#7a5cc0", "#2ba3b8", "#8a6d3b", "#d95f4c")
OUTCOME_COLOURS = {  # of answers, refusals, failures
    0: (BLUE,),
    1: ("#e8b04a", "#c98a1b", "#f3d08f", "#8f620f"),
    2: (RED, "#e58a80", "#7d1f16", "#f0b8b2"),
}


def latency(result: Result) -> str:
    """Draw percentiles over offered load, and the deadline, in a panel per kind: ranks take longer than questions."""

    def draw(axes: Axes, kind: str) -> None:
        found = [(load.rate_per_s, load.by_kind[kind].latency_ms) for load in result.loads if kind in load.by_kind]
        for depth, (name, label) in enumerate(PERCENTILES.items(), start=1):
            shown = [(rate, value) for rate, one in found if (value := getattr(one, name, None)) is not None]
            rates, values = [rate for rate, _ in shown], [value for _, value in shown]
            (line,) = axes.plot(rates, values, "o-", markersize=3.5, color=BLUE, label=label)
            line.set_alpha(depth / len(PERCENTILES))
        if kind in result.deadline_ms:
            axes.axhline(result.deadline_ms[kind], color=RED, linewidth=1, linestyle="--", label="deadline", zorder=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("ms")
        axes.set_title(kind)
        _over_rate(axes, result)

    return _drawn([functools.partial(draw, kind=kind) for kind in result.alone_ms])


def goodput(result: Result) -> str:
    """Draw answers per second, and those in time, over offered load."""

    def draw(axes: Axes) -> None:
        rates = [load.summary.offered_per_s for load in result.loads]  # as whole requests were sent
        axes.plot([0, max(rates)], [0, max(rates)], color=GREY, linewidth=1, linestyle=":", label="offered")
        answered = [load.summary.answered_per_s for load in result.loads]
        in_time = [load.summary.goodput_per_s for load in result.loads]
        axes.plot(rates, answered, "o-", markersize=3.5, color=GREY, label="answered")
        axes.plot(rates, in_time, "o-", markersize=3.5, color=BLUE, label="in time")
        if result.capacity:
            axes.axvline(result.capacity.rate_per_s, color=RED, linewidth=1, linestyle="--", label="capacity", zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("per second")
        _over_rate(axes, result)

    return _drawn([draw])


def stages(result: Result) -> str:
    """Stack the mean stages, and the time outside the server, for each offered load and kind."""
    found = [summary for load in result.loads for summary in load.by_kind.values()]
    names = dict.fromkeys(name for one in found for name in one.stages_ms if name not in {*PARTS, TOTAL})

    def draw(axes: Axes, kind: str) -> None:
        summaries = [load.by_kind.get(kind) for load in result.loads]
        layers = {name: [one.stages_ms.get(name, 0.0) if one else 0.0 for one in summaries] for name in names}
        layers[OUTSIDE] = [one.outside_ms if one else 0.0 for one in summaries]
        _stack(axes, result, layers, [*STAGE_COLOURS[: len(names)], "#d5dae0"])
        axes.set_ylabel("ms")
        axes.set_title(kind)

    return _drawn([functools.partial(draw, kind=kind) for kind in result.alone_ms])


def outcomes(result: Result) -> str:
    """Stack the shares of the outcomes for each offered load."""

    def draw(axes: Axes) -> None:
        found = [load.summary for load in result.loads]
        codes = sorted({code for one in found for code in one.outcomes}, key=lambda code: (_sort_of(code), code))
        shares = {code: [100 * one.outcomes.get(code, 0) / max(1, one.requests) for one in found] for code in codes}
        shades = {sort: iter(colours) for sort, colours in OUTCOME_COLOURS.items()}
        _stack(axes, result, shares, [next(shades[_sort_of(code)], GREY) for code in codes])
        axes.set_ylabel("% of requests")

    return _drawn([draw])


def _drawn(panels: Sequence[Callable[[Axes], None]]) -> str:
    """Draw panels side by side, with one legend. Text becomes outlines, so that it looks the same everywhere."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}):
        figure = Figure(figsize=(6.4 if len(panels) == 1 else 4.4 * len(panels), 4.2), layout="constrained")
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
        axes.legend(
            reverse=True, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8
        )  # for all panels
        file = io.BytesIO()
        figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _sort_of(code: str) -> int:
    """Return 0 for answers, 1 for refusals, 2 for failures."""
    return 0 if code == OK else 1 if is_refusal(code) else 2


def _stack(axes: Axes, result: Result, layers: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """Draw one bar per load."""
    places = range(len(result.loads))
    base = [0.0] * len(result.loads)
    for (name, values), colour in zip(layers.items(), colours, strict=True):
        axes.bar(places, values, bottom=base, width=0.7, label=name, color=colour)
        base = [low + value for low, value in zip(base, values, strict=True)]
    axes.set_xticks(places, [f"{load.rate_per_s:g}" for load in result.loads])
    axes.set_xlabel("offered, requests per second")


def _over_rate(axes: Axes, result: Result) -> None:
    axes.set_xlabel("offered, requests per second")
    axes.set_xlim(0, 1.05 * max(max(load.rate_per_s, load.summary.offered_per_s) for load in result.loads))
    axes.grid(alpha=0.25)
