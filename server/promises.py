"""When those who were refused may come back, and the room that is kept for them then.

A time to come back is worth little if everybody who comes anew takes the room first: under a long overload a retry
would be refused as often as any request. So slots are given out one after the other, no faster than SHARE of the engine
serves them, and newcomers leave that share of their own time free for those whose slots are due.
"""

import bisect
from collections.abc import Hashable
from dataclasses import dataclass, field
from operator import attrgetter

from server.types import Clock

SHARE = 0.4  # of the engine's time, for those who come back; what they leave, newcomers take
LAPSE_S = 1.5  # after its slot a promise is forgotten: Retry-After has whole seconds, so some come that much late
LONGEST_S = 60.0  # to wait; in a line that is longer all are told the same
MOST = 4096  # slots


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A time at which somebody was told to come back, with what they will ask for."""

    at_s: float
    key: Hashable = field(repr=False)
    entries: int
    work_s: float


class Promises:
    """Slots for who was refused, each known again by a key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_time: list[Slot] = []
        self._by_key: dict[Hashable, Slot] = {}
        self._line_ends_s = 0.0  # all the work promised, at SHARE of the engine

    def __bool__(self) -> bool:
        """Whether anybody may still come; those who did not are forgotten."""
        lapsed_s = self._clock() - LAPSE_S
        while self._by_time and self._by_time[0].at_s < lapsed_s:
            del self._by_key[self._by_time.pop(0).key]
        return bool(self._by_time)

    def is_due(self, key: Hashable) -> bool:
        """Tell whether who asks was told to come back by now."""
        slot = self._by_key.get(key)
        return slot is not None and slot.at_s <= self._clock()

    def make(self, key: Hashable, entries: int, work_s: float, wait_s: float) -> float:
        """Give out a slot no sooner than the wait, and tell how long it is until then; who has one ahead keeps it."""
        now_s = self._clock()
        earlier = self._by_key.get(key)
        if earlier is not None and earlier.at_s > now_s:
            return earlier.at_s - now_s
        self.forget(key)
        if len(self._by_time) == MOST:  # one more would cost the first theirs, and so on until nobody's is kept
            return min(max(wait_s, self._line_ends_s - now_s), LONGEST_S)
        turn_s = max(now_s, self._line_ends_s)
        self._line_ends_s = min(turn_s, now_s + LONGEST_S) + work_s / SHARE
        slot = Slot(min(max(turn_s, now_s + wait_s), now_s + LONGEST_S), key, entries, work_s)
        bisect.insort(self._by_time, slot, key=attrgetter("at_s"))
        self._by_key[key] = slot
        return slot.at_s - now_s

    def forget(self, key: Hashable) -> None:
        """Take a slot out, if there is one: who had it is in, or has another."""
        slot = self._by_key.pop(key, None)
        if slot is not None:
            self._by_time.remove(slot)

    def due(self, within_s: float, most_entries: int, most_s: float) -> tuple[int, float]:
        """Sum up what was promised until then: entries and seconds of work, no more than so much of each."""
        until_s = self._clock() + within_s
        entries, work_s = 0, 0.0
        for slot in self._by_time:
            if slot.at_s > until_s or (entries >= most_entries and work_s >= most_s):
                break
            entries += slot.entries
            work_s += slot.work_s
        return min(entries, most_entries), min(work_s, most_s)
