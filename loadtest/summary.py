"""Figures from rows: percentiles, goodput, refusals, stages, and whether the generator kept its schedule."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Self

from loadtest.rows import LEAD_S, NOT_SENT, OK, REFUSED, Row

LATE_MS = 10.0  # or a tenth of the shortest deadline, if that is less
LATE_SHARE = 0.01
TOTAL, INFERENCE = "total", "inference"  # stages of Server-Timing
PARTS = ("text_embedding", "visual_embedding", "interaction")  # of inference


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Percentiles by nearest rank, so that each is a value that was measured.

    None where there are too few values: fewer than 10 for p90, 20 for p95, 100 for p99, 1,000 for p99.9.
    """

    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    p99_9: float | None
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Compute the percentiles of one value or more."""
        p90, p95, p99, p99_9 = (tail(values, share) for share in (0.9, 0.95, 0.99, 0.999))
        return cls(p50=percentile(values, 0.5), p90=p90, p95=p95, p99=p99, p99_9=p99_9, max=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some values, and their quartiles."""

    median: float
    p25: float
    p75: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Compute the quartiles of one value or more."""
        p25, median, p75 = quartiles(values)
        return cls(median=median, p25=p25, p75=p75)

    def __str__(self) -> str:
        return f"{self.median:8.2f} ({self.p25:.2f} to {self.p75:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run at one offered load, or its requests of one kind."""

    requests: int
    offered_per_s: float
    answered: int  # with 200
    answered_per_s: float  # until the schedule ends
    in_time: int  # answered within the deadline
    goodput_per_s: float  # answers in time, per second until the schedule ends
    checked: int  # answers that were compared with a right one
    wrong: int
    outcomes: dict[str, int]  # counts, "ok" first
    latency_ms: Percentiles | None  # of answers with 200, from the scheduled time
    lag_ms: Percentiles | None  # from the scheduled time to the sending
    stages_ms: dict[str, float]  # means of answers with 200
    outside_ms: float  # mean latency minus the total that the server reports
    flaws: list[str]  # reasons not to trust the figures

    @property
    def refused(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if is_refusal(outcome))

    @property
    def failed(self) -> int:
        return self.requests - self.answered - self.refused


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def tail(values: Sequence[float], share: float) -> float | None:
    """Return a percentile, or None if there are fewer than 1 / (1 - share) values: it would just be the maximum."""
    return percentile(values, share) if len(values) >= round(1 / (1 - share)) else None


def or_dash(value: float | None, width: int, digits: int) -> str:
    """Format a figure for a table, or a dash if there is none."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Compute the percentiles, or None if there are no values."""
    return Percentiles.of(values) if values else None


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Return p25, median and p75 of one value or more; all lie within what was measured.

    Raises: statistics.StatisticsError: there are no values.
    """
    found = list(values)
    p25, median, p75 = quantiles(found * 2 if len(found) == 1 else found, n=4, method="inclusive")
    return p25, median, p75


def is_refusal(outcome: str) -> bool:
    """Tell whether a key of Summary.outcomes is a refusal."""
    return outcome.startswith(tuple(f"{status} " for status in REFUSED))


def summarise(rows: Sequence[Row], *, seconds: float) -> Summary:
    """Summarise the requests of a schedule that lasted so many seconds."""
    answered = [row for row in rows if row.status == 200]
    in_time = [row for row in rows if row.in_time]
    latencies = [row.latency_ms for row in answered]
    timed = [row for row in answered if TOTAL in row.stages_ms]
    return Summary(
        requests=len(rows),
        offered_per_s=len(rows) / seconds,
        answered=len(answered),
        answered_per_s=_per_s(answered, seconds),
        in_time=len(in_time),
        goodput_per_s=_per_s(in_time, seconds),
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
    """Summarise each kind of request separately."""
    kinds = sorted({row.kind for row in rows})
    return {kind: summarise([row for row in rows if row.kind == kind], seconds=seconds) for kind in kinds}


def _per_s(answers: Sequence[Row], seconds: float) -> float:
    """Count those within the schedule: above capacity answers go on coming after it has ended."""
    return sum(row.done_s - LEAD_S <= seconds for row in answers) / seconds


def _outcomes(rows: Sequence[Row]) -> dict[str, int]:
    counts = Counter(row.outcome for row in rows)
    return {code: counts[code] for code in sorted(counts, key=lambda code: (code != OK, code))}


def _stages(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(stage for row in rows for stage in row.stages_ms))


def _flaws(rows: Sequence[Row]) -> list[str]:
    flaws = []
    late_ms = min([LATE_MS, *(row.deadline_ms / 10 for row in rows if row.deadline_ms)])
    late = sum(row.lag_ms > late_ms for row in rows)
    if late > max(1, LATE_SHARE * len(rows)):
        flaws.append(f"the generator sent {late:,} of {len(rows):,} requests more than {late_ms:.3g} ms late")
    not_sent = sum(row.code == NOT_SENT for row in rows)
    if not_sent:
        flaws.append(f"{not_sent:,} requests were not sent: too many were in flight")
    return flaws
