"""All that a load run found, as load.json has it and the report shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from loadtest.capacity import Capacity
from loadtest.rows import Row
from loadtest.summary import Summary, by_kind, summarise

PERCENTILES = {"p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "p99_9": "p99.9", "max": "max"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one offered rate brought."""

    rate_per_s: float
    seconds: float
    rows: str  # file, beside the report
    summary: Summary
    by_kind: dict[str, Summary]

    @classmethod
    def of(cls, rate_per_s: float, seconds: float, file: str, rows: Sequence[Row]) -> Self:
        """Sum up a run."""
        return cls(
            rate_per_s=rate_per_s,
            seconds=seconds,
            rows=file,
            summary=summarise(rows, seconds=seconds),
            by_kind=by_kind(rows, seconds=seconds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a report says."""

    benchmark: str = "vilt-bench load"
    date: str
    commit: str | None
    uncommitted: bool | None = None  # changes to the sources; None: nobody knows
    command: str
    environment: dict[str, str] = field(default_factory=dict)  # variables that matter
    machine: dict[str, Any]
    versions: dict[str, str]
    models: list[dict[str, Any]]  # as GET /v1/models has them
    same_machine: bool  # server and generator share its processors
    scenario: str
    arrivals: str
    identical: bool
    seed: int
    samples: int
    right: int  # answers given alone
    known: int  # samples whose right answer is known
    alone_ms: dict[str, float]  # median latency without load, by kind
    deadline_ms: dict[str, float]  # by kind; empty is none
    capacity: Capacity | None
    loads: list[Load]
    ended_early: str | None = None  # why, if not all rates are there
