"""The result as Markdown: times, sizes and parameters by module, each beside the paper's."""

from collections.abc import Iterable, Sequence

from loadtest.claims import paper
from loadtest.claims.plan import STAGES, named
from loadtest.claims.summary import Measured, vilt_of


def markdown(found: Sequence[Measured]) -> str:
    """Format every table."""
    parts = [
        "## Times",
        f"ms, medians of {max((one.rounds for one in found), default=0)} interleaved rounds; the paper's on a"
        f" {paper.HARDWARE}, {paper.SCOPE}.",
        times(found),
        "## Sizes",
        sizes(found),
        "## Parameters by module, millions",
        parameters(found),
        "## From a JPEG, and ranks of 1,000 pictures",
        waits(found),
    ]
    return "\n\n".join(parts) + "\n"


def times(found: Sequence[Measured]) -> str:
    """Tabulate stages, totals and ratios."""
    baseline, theirs = vilt_of(found), paper.TABLE6["vilt"]
    rows = []
    for one in found:
        row = paper.TABLE6.get(one.name)
        rows.append(
            [
                f"structure of {one.title}, random weights",
                *(_ms(one.stages_ms[stage]) if stage in one.stages_ms else "" for stage in STAGES),
                f"**{_ms(one.total_ms)}**",
                f"{one.total_ms / baseline.total_ms:.2f}" if baseline else "",
                f"~{row.time_ms:g}" if row else "",
                f"{row.time_ms / theirs.time_ms:.1f}" if row else "",
            ]
        )
    names = [named(stage) for stage in STAGES]
    return _table(["design", *names, "total", "x ViLT", "paper's ms", "paper's x ViLT"], rows)


def sizes(found: Sequence[Measured]) -> str:
    """Tabulate tokens, parameters and operations, with the deviations from the paper's."""
    rows = []
    for one in found:
        row = paper.TABLE6.get(one.name)
        millions = sum(one.parameters.values()) / 1e6
        rows.append(
            [
                one.title,
                f"{one.image_px[0]}x{one.image_px[1]}",
                f"{one.visual_tokens}+{one.text_tokens}",
                f"{millions:.1f}",
                f"{row.parameters_m}" if row else "",
                _deviation(millions, row.parameters_m) if row else "",
                f"{one.gflops:.1f}",
                f"{row.gflops}" if row else "",
                _deviation(one.gflops, row.gflops) if row else "",
                f"{one.paper_gflops:.1f}" if row else "",
                _deviation(one.paper_gflops, row.gflops) if row else "",
            ]
        )
    header = ["design", "picture px", "tokens", "parameters M", "paper's", "", "GFLOPs, 2 x MAC", "paper's", ""]
    return _table([*header, "as the paper counts", ""], rows)


def parameters(found: Sequence[Measured]) -> str:
    """Tabulate the parameters of each stage; look-ups (words, positions) are separate, as the paper leaves them out."""
    rows = []
    for one in found:
        row = paper.TABLE6.get(one.name)
        cells = (_millions(one.parameters[stage]) if stage in one.parameters else "" for stage in STAGES)
        total = _millions(sum(one.parameters.values()))
        rows.append(
            [one.title, *cells, total, f"{row.parameters_m}" if row else "", _millions(one.dictionary_parameters)]
        )
    names = [named(stage) for stage in STAGES]
    return _table(["design", *names, "total", "paper's", "look-ups, not in the total"], rows)


def waits(found: Sequence[Measured]) -> str:
    """Tabulate what a user waits for."""
    rows = [
        [
            one.title,
            *(_ms(one.preparation_ms[stage]) for stage in ("decode", "preprocess")),
            _ms(one.wait_ms),
            _seconds(one.rank_ms),
            _seconds(one.rank_kept_ms),
        ]
        for one in found
    ]
    header = ["design", "decode ms", "preprocess ms", "JPEG to pooled output ms", "rank 1,000 new s"]
    return _table([*header, "rank 1,000 kept s"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _seconds(value_ms: float) -> str:
    return f"{value_ms / 1000:,.0f}" if value_ms >= 100_000 else f"{value_ms / 1000:.3g}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _deviation(found: float, expected: float) -> str:
    return f"{100 * (found / expected - 1):+.1f} %"
