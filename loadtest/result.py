"""The result of a load run, as it is written to load.json and shown by the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from loadtest.capacity import Capacity
from loadtest.rows import Row
from loadtest.summary import Summary, by_kind, summarise

PERCENTILES = {"p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "p99_9": "p99.9", "max": "max"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The figures of one offered rate."""

    rate_per_s: float
    seconds: float
    rows: str  # name of their file, beside the report
    summary: Summary
    by_kind: dict[str, Summary]

    @classmethod
    def of(cls, rate_per_s: float, seconds: float, file: str, rows: Sequence[Row]) -> Self:
        """Summarise a run."""
        return cls(
            rate_per_s=rate_per_s,
            seconds=seconds,
            rows=file,
            summary=summarise(rows, seconds=seconds),
            by_kind=by_kind(rows, seconds=seconds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything that a report shows."""

    benchmark: str = "vilt-bench load"
    date: str
    commit: str | None
    uncommitted: bool | None = None  # changes to the sources; None: not a clone
    command: str
    environment: dict[str, str] = field(default_factory=dict)  # variables that may matter
    machine: dict[str, Any]
    versions: dict[str, str]
    models: list[dict[str, Any]]  # from GET /v1/models
    same_machine: bool  # server and generator share processors
    scenario: str
    arrivals: str
    identical: bool
    seed: int
    samples: int
    right: int  # of the answers given alone
    known: int  # number of samples with a known answer
    alone_ms: dict[str, float]  # median latency without load, by kind
    deadline_ms: dict[str, float]  # by kind; empty: none
    capacity: Capacity | None
    loads: list[Load]
    ended_early: str | None = None  # why, if rates are missing

    @property
    def checked(self) -> int:
        """Answers that were compared with those given alone, also while the capacity was searched."""
        return sum(one.checked for one in self._summaries())

    @property
    def wrong(self) -> int:
        return sum(one.wrong for one in self._summaries())

    def _summaries(self) -> list[Summary]:
        return [*(self.capacity.runs if self.capacity else ()), *(load.summary for load in self.loads)]
