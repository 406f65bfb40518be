"""Decides before any work is done whether a request is accepted: is there room, and is there time?"""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from server.errors import DeadlineExceeded, Overloaded, ServerError, Unavailable
from server.metrics import Metrics
from server.queue import RANK_TURN
from server.reservations import SHARE, Reservations
from server.types import Clock, Entry, LoadedModel, Mean, Urgency
from server.watchdog import Watchdog

FAULTS_IN_A_ROW = 3  # failed runs after which the server is no longer ready
FAULTY_S = 10.0  # after the last of them it is ready for another try; without traffic, no run could ever succeed
BROKEN_FAULTS, BROKEN_S = 10, 60.0  # faults in a row, spread over this time, after which the engine will not recover
BEYOND_DOUBT = 0.5  # of a run at warm-up: an idle engine refuses only requests that have less time than that


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run under way."""

    batch: Sequence[Entry]
    began_s: float
    estimate_s: float

    def done_s(self, now_s: float) -> float:
        """Return how much of the work in flight this run has already done.

        Entries whose clients have gone are no longer counted as work, but the run still spends its time on them.
        """
        share_gone = sum(not leader.is_wanted for leader in self.batch) / len(self.batch)
        return min(now_s - self.began_s, self.estimate_s) - share_gone * self.estimate_s


@dataclass(slots=True, kw_only=True)
class Forecast:
    """What a request would meet if it were admitted."""

    entries: int
    entry_s: float  # engine time of each
    prepare_s: float
    queued_s: float  # engine time of what goes ahead
    reserved_entries: int  # for refused requests that are due to come back
    reserved_s: float
    remaining_s: float  # until its deadline

    @property
    def run_s(self) -> float:
        """Engine time of all its entries."""
        return self.entries * self.entry_s

    @property
    def alone_s(self) -> float:
        """What the request would take if there were no other."""
        return self.run_s + self.prepare_s

    @property
    def estimate_s(self) -> float:
        return self.queued_s + self.reserved_s + self.alone_s

    @property
    def may_come_back(self) -> bool:
        """Whether a retry may succeed. Only runs count: preparing is slow while threads are busy, not later."""
        return self.run_s <= self.remaining_s


class Ticket:
    """A request's place in the work in flight; as a context manager, until the end of the block."""

    def __init__(self, admission: "Admission", urgency: Urgency, entries: int, entry_s: float) -> None:
        self._admission = admission
        self._urgency = urgency
        self._entries = entries
        self._entry_s = entry_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def finish(self, entries: int = 1) -> None:
        """Release the place of entries that have been run."""
        entries = min(entries, self._entries)
        self._entries -= entries
        self._admission.count(self._urgency, -entries, self._entry_s)

    def release(self) -> None:
        """Release what is left."""
        self.finish(self._entries)


class Admission:
    """Counts the entries in flight and the seconds they will take; refuses what would be too much or too late."""

    def __init__(self, capacity: int, metrics: Metrics, clock: Clock) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._clock = clock
        self._entries = dict.fromkeys(Urgency, 0)
        self._work_s = dict.fromkeys(Urgency, 0.0)
        self._prepare_s = Mean()  # recent time of decoding, preprocessing and tokenizing
        self._is_open = False
        self._faults, self._first_fault_s, self._fault_s = 0, 0.0, 0.0  # in a row; instants of the first and the last
        self._runs: list[Run] = []  # under way, the oldest first
        self.watchdog = Watchdog()
        self._reservations = Reservations(clock)
        self.is_draining = False
        metrics.ready.set_function(lambda: self.is_ready)
        metrics.in_flight.set_function(lambda: sum(self._entries.values()))
        metrics.work_seconds.set_function(lambda: sum(self._work_s.values()))

    @property
    def is_ready(self) -> bool:
        """Whether the server wants requests. Those that arrive anyway are answered."""
        is_faulty = self._faults >= FAULTS_IN_A_ROW and self._clock() < self._fault_s + FAULTY_S
        return self._is_open and not is_faulty and not self.watchdog.is_stuck

    @property
    def status(self) -> str:
        """Whether the server is ready, in a word; if not, the reason."""
        if self.is_ready:
            return "ready"
        return "draining" if self.is_draining else "stuck" if self.watchdog.is_stuck else "faulty"

    def open(self) -> None:
        """Become ready, unless already told to end."""
        self._is_open = not self.is_draining

    def close(self) -> None:
        """Stop being ready, for good."""
        self._is_open, self.is_draining = False, True

    def observe_run(self, is_sound: bool) -> None:
        """Record whether a run succeeded. From the third fault in a row on, the server is not ready for a while."""
        if is_sound:
            self._faults = 0
            return
        self._fault_s = self._clock()
        if not self._faults:
            self._first_fault_s = self._fault_s
        self._faults += 1

    @property
    def is_broken(self) -> bool:
        """Whether runs have failed for so long that the engine is not expected to recover."""
        return self._faults >= BROKEN_FAULTS and self._fault_s - self._first_fault_s >= BROKEN_S

    @contextlib.contextmanager
    def following(self, batch: Sequence[Entry], estimate_s: float) -> Iterator[None]:
        """Keep track of a run while it lasts: what it has already done is no longer ahead of anybody."""
        run = Run(batch, self._clock(), estimate_s)
        self._runs.append(run)
        try:
            with self.watchdog.watching(estimate_s):
                yield
        finally:
            self._runs.remove(run)

    def admit(self, model: LoadedModel, urgency: Urgency, entries: int, deadline_s: float, key: Hashable) -> Ticket:
        """Hold room for a request's entries until its ticket is released.

        The key identifies the request when it comes back after a refusal.

        Raises: DeadlineExceeded: it has passed. Overloaded: too many entries are in flight. Unavailable: the answer
            would come after the deadline.
        """
        forecast = self._forecast(model, urgency, entries, deadline_s, key)
        in_flight = sum(self._entries.values())
        excess = in_flight + forecast.reserved_entries + entries - self._capacity
        if in_flight and excess > 0:
            why = f"The server is at its limit of {self._capacity:,} image-text pairs in progress: retry later."
            wait_s = min(excess, in_flight) * forecast.entry_s
            raise self._refusal(Overloaded("overloaded", why), wait_s, forecast, key)
        needed_s = forecast.estimate_s if in_flight else BEYOND_DOUBT * model.latency.fitted_s(1)
        if forecast.remaining_s < needed_s:
            advice = "retry later, or allow more time" if forecast.may_come_back else "allow more time"
            why = (
                f"The answer would take about {1000 * forecast.estimate_s:.0f} ms,"
                f" and {1000 * forecast.remaining_s:.0f} ms are left: {advice}."
            )
            wait_s = max(0.0, min(forecast.estimate_s - forecast.remaining_s, forecast.queued_s))
            raise self._refusal(Unavailable("deadline_unreachable", why), wait_s, forecast, key)
        self._reservations.forget(key)
        ticket = Ticket(self, urgency, entries, forecast.entry_s)
        self.count(urgency, entries, forecast.entry_s)
        return ticket

    def _forecast(
        self, model: LoadedModel, urgency: Urgency, entries: int, deadline_s: float, key: Hashable
    ) -> Forecast:
        remaining_s = deadline_s - self._clock()
        if remaining_s <= 0:
            raise DeadlineExceeded
        queued_s, entry_s = self._ahead(model, urgency, entries)
        prepare_s = self._prepare_s.value
        until_s = queued_s + entries * entry_s + prepare_s
        reserved_entries, reserved_s = self._reservations.ahead_of(
            key, until_s, int(SHARE * self._capacity), SHARE * remaining_s
        )
        return Forecast(
            entries=entries,
            entry_s=entry_s,
            prepare_s=prepare_s,
            queued_s=queued_s,
            reserved_entries=reserved_entries,
            reserved_s=reserved_s,
            remaining_s=remaining_s,
        )

    def _refusal(self, error: ServerError, wait_s: float, forecast: Forecast, key: Hashable) -> ServerError:
        """Add when to come back. A request that even an idle server could not answer in time gets no reservation."""
        if forecast.alone_s > forecast.remaining_s:  # room on the engine is reserved, not a thread to prepare on
            wait_s = max(wait_s, forecast.prepare_s)
        if forecast.may_come_back:
            wait_s = self._reservations.make(key, forecast.entries, forecast.run_s, wait_s)
        error.retry_after_s = wait_s
        error.details = {
            "queued_ms": round(1000 * (forecast.queued_s + forecast.reserved_s), 1),
            "estimate_ms": round(1000 * forecast.estimate_s, 1),
            "deadline_ms": round(1000 * forecast.remaining_s, 1),
        }
        return error

    def _ahead(self, model: LoadedModel, urgency: Urgency, entries: int) -> tuple[float, float]:
        """Estimate the engine time of the work ahead of a request, and of each of its own entries."""
        latency, most = model.latency, model.max_batch_size
        queued_s = self._work_s[Urgency.INTERACTIVE]
        if urgency is Urgency.RANK:
            together = latency.slice_size(most)
            queued_s += self._work_s[Urgency.RANK]
        else:
            together = latency.batch_size(self._entries[urgency] + entries, most)
            if self._entries[Urgency.RANK]:
                turns = 1 + self._entries[urgency] // together // RANK_TURN  # the first for the slice that is running
                queued_s += min(turns, self._entries[Urgency.RANK]) * latency.run_s(1)
        if self._runs:  # only the oldest: the others have not begun to run
            queued_s = max(0.0, queued_s - self._runs[0].done_s(self._clock()))
        return queued_s, latency.run_s(together) / together

    def observe_preparation(self, seconds: float) -> None:
        """Record how long it took to prepare an answered request."""
        self._prepare_s.add(seconds)

    def count(self, urgency: Urgency, entries: int, entry_s: float) -> None:
        """Add entries to the work in flight or, if negative, remove them."""
        self._entries[urgency] += entries
        work_s = max(0.0, self._work_s[urgency] + entries * entry_s)  # rounding errors add up
        self._work_s[urgency] = work_s if self._entries[urgency] else 0.0
