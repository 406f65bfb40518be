"""Yes or no before any work is done: readiness, a bound on the work in flight, and whether there is time for more."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from server.errors import DeadlineExceeded, Overloaded, ServerError, Unavailable
from server.metrics import Metrics
from server.promises import SHARE, Promises
from server.types import Clock, Entry, Mean, ServedModel, Urgency
from server.watchdog import Watchdog

FAULTS_IN_A_ROW = 3  # runs that fail one after the other, until the server no longer calls itself ready
FAULTY_S = 10.0  # after the last of them it is ready for another try: whom a balancer leaves out has no run to succeed
BROKEN_FAULTS, BROKEN_S = (
    10,
    60.0,
)  # faults in a row, over at least so long, after which runs are not expected to succeed
BEYOND_DOUBT = 0.5  # of a run as it took at warm-up: an idle engine refuses only what has even less time


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run under way."""

    batch: Sequence[Entry]
    began_s: float
    estimate_s: float

    def done_s(self, now_s: float) -> float:
        """Tell how much less is ahead than the work in flight, of which those are no part who have gone meanwhile."""
        share_gone = sum(not leader.is_wanted for leader in self.batch) / len(self.batch)
        return min(now_s - self.began_s, self.estimate_s) - share_gone * self.estimate_s


class Ticket:
    """A request's place in the work in flight."""

    def __init__(self, admission: "Admission", urgency: Urgency, entries: int, entry_s: float) -> None:
        self._admission = admission
        self._urgency = urgency
        self._entries = entries
        self._entry_s = entry_s

    def finish(self, entries: int = 1) -> None:
        """Give back the place of entries that have been run."""
        entries = min(entries, self._entries)
        self._entries -= entries
        self._admission.count(self._urgency, -entries, self._entry_s)

    def release(self) -> None:
        """Give back whatever is left."""
        self.finish(self._entries)


class Admission:
    """Counts entries in flight and the seconds that they will take; refuses what is too much or would be too late."""

    def __init__(self, capacity: int, metrics: Metrics, clock: Clock) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._clock = clock
        self._entries = dict.fromkeys(Urgency, 0)
        self._work_s = dict.fromkeys(Urgency, 0.0)
        self._prepare_s = Mean()  # what decoding and the like have taken of late
        self._is_open = False
        self._faults, self._first_fault_s, self._fault_s = 0, 0.0, 0.0  # in a row; instants of the first and the last
        self._runs: list[Run] = []  # under way, the oldest first
        self.watchdog = Watchdog()
        self._promises = Promises(clock)
        self.is_draining = False
        metrics.ready.set_function(lambda: self.is_ready)

    @property
    def is_ready(self) -> bool:
        """Whether the server wants requests; those that arrive all the same are answered."""
        is_faulty = self._faults >= FAULTS_IN_A_ROW and self._clock() < self._fault_s + FAULTY_S
        return self._is_open and not is_faulty and not self.watchdog.is_stuck

    @property
    def status(self) -> str:
        """Say the same in a word, and why not."""
        if self.is_ready:
            return "ready"
        return "draining" if self.is_draining else "stuck" if self.watchdog.is_stuck else "faulty"

    def open(self) -> None:
        """Become ready, unless told to end before."""
        self._is_open = not self.is_draining

    def close(self) -> None:
        """Stop being ready, for good."""
        self._is_open, self.is_draining = False, True

    def report(self, is_sound: bool) -> None:
        """Learn how a run went: the third fault in a row and each after it end readiness, a success brings it back."""
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
        """Follow a run from its beginning to its end: what it has done by now is ahead of nobody."""
        run = Run(batch, self._clock(), estimate_s)
        self._runs.append(run)
        try:
            with self.watchdog.watching(estimate_s):
                yield
        finally:
            self._runs.remove(run)

    @contextlib.contextmanager
    def admit(
        self, model: ServedModel, urgency: Urgency, entries: int, deadline_s: float, key_of: Callable[[], Hashable]
    ) -> Iterator[Ticket]:
        """Hold room for a request's entries while it is answered; by its key one that was refused is known again.

        Raises: DeadlineExceeded: it has passed. Overloaded: too many entries are in flight. Unavailable: the deadline
            would pass before the answer.
        """
        remaining_s = deadline_s - self._clock()
        if remaining_s <= 0:
            raise DeadlineExceeded
        queued_s, entry_s = self._ahead(model, urgency, entries)
        alone_s = entries * entry_s + self._prepare_s.value
        # Preparing others may have taken long because they waited for a thread: that tells nothing of an idle server.
        may_come_back = entries * entry_s <= remaining_s
        in_flight = sum(self._entries.values())
        kept_entries, kept_s = 0, 0.0  # for those whose turn it is to come back
        key = None
        if self._promises:
            key = key_of()
            if not self._promises.is_due(key):
                kept_entries, kept_s = self._promises.due(
                    queued_s + alone_s, int(SHARE * self._capacity), SHARE * remaining_s
                )
        estimate_s = queued_s + kept_s + alone_s

        def refusal(kind: type[Overloaded | Unavailable], code: str, why: str, wait_s: float) -> ServerError:
            """Say no, and when to come back; what could not be done in time by an idle server gets no slot."""
            if alone_s > remaining_s:  # room is the engine's: nobody keeps a thread to prepare on
                wait_s = max(wait_s, self._prepare_s.value)
            if may_come_back:
                wait_s = self._promises.make(key or key_of(), entries, entries * entry_s, wait_s)
            details_ms = {
                "queued_ms": round(1000 * (queued_s + kept_s), 1),
                "estimate_ms": round(1000 * estimate_s, 1),
                "deadline_ms": round(1000 * remaining_s, 1),
            }
            return kind(code, why, retry_after_s=wait_s, details=details_ms)

        if in_flight and in_flight + kept_entries + entries > self._capacity:
            excess = in_flight + kept_entries + entries - self._capacity
            raise refusal(
                Overloaded,
                "overloaded",
                f"{in_flight} entries are in flight and at most {self._capacity} are taken on: come back later.",
                min(excess, in_flight) * entry_s,
            )
        if remaining_s < (estimate_s if in_flight else BEYOND_DOUBT * model.latency.fitted_s(1)):
            advice = "come back later, or allow more time" if may_come_back else "allow more time"
            raise refusal(
                Unavailable,
                "deadline_unreachable",
                f"The answer would take about {1000 * estimate_s:.0f} ms and {1000 * remaining_s:.0f} ms are left:"
                f" {advice}.",
                max(0.0, min(estimate_s - remaining_s, queued_s)),
            )
        if key is not None:
            self._promises.forget(key)
        ticket = Ticket(self, urgency, entries, entry_s)
        self.count(urgency, entries, entry_s)
        try:
            yield ticket
        finally:
            ticket.release()

    def _ahead(self, model: ServedModel, urgency: Urgency, entries: int) -> tuple[float, float]:
        """Estimate the engine time of what goes ahead of a request, and of each of its own entries."""
        latency, most = model.latency, model.max_batch_size
        queued_s = self._work_s[Urgency.INTERACTIVE]
        if urgency is Urgency.RANK:
            together = latency.slice_size(most)
            queued_s += self._work_s[Urgency.RANK]
        else:
            together = latency.batch_size(self._entries[urgency] + entries, most)
            queued_s += latency.run_s(1) if self._work_s[Urgency.RANK] else 0.0  # the slice that is running
        if self._runs:  # those behind the oldest wait for it
            queued_s = max(0.0, queued_s - self._runs[0].done_s(self._clock()))
        return queued_s, latency.run_s(together) / together

    def prepared(self, seconds: float) -> None:
        """Learn from an answer how long a request takes beside the queue and the run."""
        self._prepare_s.add(seconds)

    def count(self, urgency: Urgency, entries: int, entry_s: float) -> None:
        """Add entries to the work in flight, or take them out."""
        self._entries[urgency] += entries
        work_s = max(0.0, self._work_s[urgency] + entries * entry_s)  # sums of what is added and taken away drift
        self._work_s[urgency] = work_s if self._entries[urgency] else 0.0
        self._metrics.in_flight.set(sum(self._entries.values()))
        self._metrics.work_seconds.set(sum(self._work_s.values()))
