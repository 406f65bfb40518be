"""One row for each request: the raw result from which every figure is computed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from loadtest.workload import Request, answer_of

REFUSED = {429, 503}  # statuses: the server declined, which is not a wrong answer
OK = "ok"
TIMED_OUT = "timed_out"
ABANDONED = "abandoned"
CONNECTION_FAILED = "connection_failed"
NOT_SENT = "not_sent"  # too many were in flight
LEAD_S = 0.05  # from a run's first instant to the beginning of its schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The response, if there was one."""

    status: int = 0  # no response
    code: str = ""  # why there is none
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A request and its reply.

    Units: seconds since the run's first instant, on a monotonic clock.
    """

    kind: str
    scheduled_s: float
    sent_s: float
    done_s: float  # the last byte had arrived, or the wait was over
    status: int  # 0: no response
    code: str  # ok, the server's code, or one of those above
    deadline_ms: float | None
    stages_ms: dict[str, float]  # from Server-Timing
    retry_after_ms: float | None
    expected: str | None
    answer: str | None
    correct: bool | None  # None: not a 200, or the right answer is unknown
    request_id: str | None

    @property
    def latency_ms(self) -> float:
        """From the scheduled time, not from when it was sent."""
        return 1000 * (self.done_s - self.scheduled_s)

    @property
    def lag_ms(self) -> float:
        """How late the generator was."""
        return 1000 * (self.sent_s - self.scheduled_s)

    @property
    def in_time(self) -> bool:
        """Answered with 200, and within the deadline if there was one."""
        return self.status == 200 and (self.deadline_ms is None or self.latency_ms <= self.deadline_ms)

    @property
    def outcome(self) -> str:
        """The code; errors carry their status."""
        return self.code if self.status in {0, 200} else f"{self.status} {self.code}"

    @property
    def line(self) -> str:
        """The line of Locust's table that the request counts in."""
        return f"{self.kind} refused: {self.code}" if self.status in REFUSED else self.kind


def row_of(
    request: Request, reply: Reply, *, scheduled_s: float, sent_s: float, done_s: float, deadline_ms: float | None
) -> Row:
    """Make the row of a request from its reply."""
    content = _json(reply.body)
    refusal = content if isinstance(content, dict) and reply.status != 200 else {}
    answer = answer_of(request.kind, content) if reply.status == 200 else None
    return Row(
        kind=request.kind,
        scheduled_s=scheduled_s,
        sent_s=sent_s,
        done_s=done_s,
        status=reply.status,
        code=OK if reply.status == 200 else reply.code or str(refusal.get("code", "")),
        deadline_ms=deadline_ms,
        stages_ms=stages_of(reply.headers.get("Server-Timing", "")),
        retry_after_ms=refusal.get("retry_after_ms"),
        expected=request.expected,
        answer=answer,
        correct=None if answer is None or request.expected is None else answer == request.expected,
        request_id=reply.headers.get("X-Request-ID"),
    )


def stages_of(server_timing: str) -> dict[str, float]:
    """Read a Server-Timing header: milliseconds by stage."""
    entries = (entry.strip().partition(";dur=") for entry in server_timing.split(","))
    return {name: float(duration) for name, found, duration in entries if found}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    """Read rows that `write` has written."""
    names = [field.name for field in fields(Row)]
    records = (json.loads(line) for line in path.read_text().splitlines())
    return [Row(**{name: record[name] for name in names}) for record in records]


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
