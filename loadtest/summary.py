"""Rows to figures: percentiles, goodput, refusals, stages, and whether the generator kept its schedule."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from loadtest.rows import NOT_SENT, OK, REFUSED, Row

LATE_MS = 10.0
LATE_SHARE = 0.01
TOTAL = "total"  # of the stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Values that such a share of all do not exceed; each is one that was measured (nearest rank).

    None where there are too few to show it: fewer than 10 for p90, 20 for p95, 100 for p99, 1,000 for p99.9.
    """

    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    p99_9: float | None
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run at one offered load, or those of its requests that are of one kind."""

    requests: int
    offered_per_s: float
    answered: int  # with 200
    in_time: int  # of those, within the deadline
    goodput_per_s: float  # in time, per second of the schedule
    checked: int  # answers whose right one is known
    wrong: int
    outcomes: dict[str, int]  # by code, "ok" first
    latency_ms: Percentiles | None  # of answers with 200, from the scheduled time
    lag_ms: Percentiles | None  # from the scheduled time to the sending
    stages_ms: dict[str, float]  # means over answers with 200
    outside_ms: float  # mean latency less what the server says it took
    flaws: list[str]  # why the figures say little about the server; none is good

    @property
    def refused(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if is_refusal(outcome))

    @property
    def failed(self) -> int:
        return self.requests - self.answered - self.refused


def percentile(values: Sequence[float], share: float) -> float:
    """Find the smallest value that at least this share of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def tail(values: Sequence[float], share: float) -> float | None:
    """Find a percentile that there are enough values to show: at least one of them is beyond it. Else there is none."""
    return percentile(values, share) if len(values) >= round(1 / (1 - share)) else None


def or_dash(value: float | None, width: int, digits: int) -> str:
    """Write a figure into a table, or a dash where there is none."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Find them all; of nothing there are none."""
    if not values:
        return None
    p90, p95, p99, p99_9 = (tail(values, share) for share in (0.9, 0.95, 0.99, 0.999))
    return Percentiles(p50=percentile(values, 0.5), p90=p90, p95=p95, p99=p99, p99_9=p99_9, max=max(values))


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Find the quartiles and the median between them, of one value or more; none is beyond what was measured.

    Raises: statistics.StatisticsError: there are no values.
    """
    found = list(values)
    p25, median, p75 = quantiles(found * 2 if len(found) == 1 else found, n=4, method="inclusive")
    return p25, median, p75


def is_refusal(outcome: str) -> bool:
    """Tell whether a name of Summary.outcomes is a refusal's."""
    return outcome.startswith(tuple(f"{status} " for status in REFUSED))


def summarise(rows: Sequence[Row], *, seconds: float) -> Summary:
    """Sum up what was scheduled within so many seconds."""
    answered = [row for row in rows if row.status == 200]
    in_time = sum(row.in_time for row in rows)
    latencies = [row.latency_ms for row in answered]
    timed = [row for row in answered if TOTAL in row.stages_ms]
    return Summary(
        requests=len(rows),
        offered_per_s=len(rows) / seconds,
        answered=len(answered),
        in_time=in_time,
        goodput_per_s=in_time / seconds,
        checked=sum(row.correct is not None for row in rows),
        wrong=sum(row.correct is False for row in rows),
        outcomes=_outcomes(rows),
        latency_ms=percentiles(latencies),
        lag_ms=percentiles([row.lag_ms for row in rows]),
        stages_ms={stage: fmean(row.stages_ms.get(stage, 0.0) for row in timed) for stage in _stages(timed)},
        outside_ms=fmean(row.latency_ms - row.stages_ms[TOTAL] for row in timed) if timed else 0.0,
        flaws=_flaws(rows),
    )


def by_kind(rows: Sequence[Row], *, seconds: float) -> dict[str, Summary]:
    """Sum up each kind of request apart."""
    kinds = sorted({row.kind for row in rows})
    return {kind: summarise([row for row in rows if row.kind == kind], seconds=seconds) for kind in kinds}


def _outcomes(rows: Sequence[Row]) -> dict[str, int]:
    """Count codes, each refusal with its status."""
    counts = Counter(row.code if row.status in {0, 200} else f"{row.status} {row.code}" for row in rows)
    return {code: counts[code] for code in sorted(counts, key=lambda code: (code != OK, code))}


def _stages(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(stage for row in rows for stage in row.stages_ms))


def _flaws(rows: Sequence[Row]) -> list[str]:
    flaws = []
    late = sum(row.lag_ms > LATE_MS for row in rows)
    if late > max(1, LATE_SHARE * len(rows)):
        flaws.append(f"the generator sent {late:,} of {len(rows):,} requests more than {LATE_MS:g} ms late")
    not_sent = sum(row.code == NOT_SENT for row in rows)
    if not_sent:
        flaws.append(f"{not_sent:,} requests were not sent: too many were in flight")
    return flaws
