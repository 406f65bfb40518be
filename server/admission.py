"""Yes or no before any work is done: readiness, and a bound on the work in flight."""

import contextlib
from collections.abc import Iterator

from server.errors import Overloaded
from server.metrics import Metrics

FIRST_GUESS_S = 0.05  # for one entry, until some have been answered
SMOOTHING = 0.1  # weight of the newest answer in the running mean


class Admission:
    """Counts entries in flight and refuses those beyond capacity; an idle server always admits."""

    def __init__(self, capacity: int, metrics: Metrics) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._in_flight = 0
        self._seconds_per_entry = FIRST_GUESS_S
        self.is_ready = False  # whether the server wants requests; those that arrive all the same are answered

    def open(self) -> None:
        """Become ready."""
        self.is_ready = True
        self._metrics.ready.set(1)

    def close(self) -> None:
        """Stop being ready."""
        self.is_ready = False
        self._metrics.ready.set(0)

    @contextlib.contextmanager
    def admit(self, entries: int) -> Iterator[None]:
        """Hold room for a request's entries while it is answered.

        Raises: Overloaded: too much work is in flight.
        """
        if self._in_flight and self._in_flight + entries > self._capacity:
            raise Overloaded(
                "overloaded",
                f"{self._in_flight} entries are in flight and at most {self._capacity} are taken on: come back later.",
                retry_after_s=self._in_flight * self._seconds_per_entry,
            )
        self._count(entries)
        try:
            yield
        finally:
            self._count(-entries)

    def answered(self, entries: int, inference_s: float) -> None:
        """Learn from an answer how fast the backlog shrinks."""
        self._seconds_per_entry += SMOOTHING * (inference_s / entries - self._seconds_per_entry)

    def _count(self, entries: int) -> None:
        self._in_flight += entries
        self._metrics.in_flight.set(self._in_flight)
