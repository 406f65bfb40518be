"""When refused requests may come back, and the room that is kept for them until then.

A time to come back is worth little if newcomers take all the room first: under a long overload a retry would then be
refused as often as any other request. So reservations follow one another, no faster than SHARE of the engine serves
them, and newcomers leave that share of their own time to requests whose reservation is due.
"""

import bisect
from collections.abc import Hashable
from dataclasses import dataclass, field
from operator import attrgetter

from server.types import Clock

SHARE = 0.4  # of the engine's time is reserved; newcomers take the rest
LAPSE_S = 1.5  # after its time a reservation lapses: Retry-After is in whole seconds, so some clients come late
LONGEST_S = 60.0  # beyond this the line is too long, and everybody is given the same time
MAX_RESERVATIONS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """The time at which a client was told to come back, and how much work it will bring."""

    at_s: float
    key: Hashable = field(repr=False)
    entries: int
    work_s: float


class Reservations:
    """The reservations of refused requests, each recognised by its key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_time: list[Reservation] = []
        self._by_key: dict[Hashable, Reservation] = {}
        self._line_ends_s = 0.0  # when all reserved work would be done, at SHARE of the engine

    def make(self, key: Hashable, entries: int, work_s: float, wait_s: float) -> float:
        """Reserve a time at least `wait_s` from now, and return how long it is until then.

        A request that comes back too early keeps the reservation that it has.
        """
        now_s = self._clock()
        earlier = self._by_key.get(key)
        if earlier is not None and earlier.at_s > now_s:
            return earlier.at_s - now_s
        self.forget(key)
        if len(self._by_time) == MAX_RESERVATIONS:  # dropping the oldest for each new one would keep none to its time
            return min(max(wait_s, self._line_ends_s - now_s), LONGEST_S)
        turn_s = max(now_s, self._line_ends_s)
        self._line_ends_s = min(turn_s, now_s + LONGEST_S) + work_s / SHARE
        reservation = Reservation(min(max(turn_s, now_s + wait_s), now_s + LONGEST_S), key, entries, work_s)
        bisect.insort(self._by_time, reservation, key=attrgetter("at_s"))
        self._by_key[key] = reservation
        return reservation.at_s - now_s

    def forget(self, key: Hashable) -> None:
        """Remove a reservation, if there is one: its request has been admitted, or gets another."""
        reservation = self._by_key.pop(key, None)
        if reservation is not None:
            self._by_time.remove(reservation)

    def ahead_of(self, key: Hashable, within_s: float, max_entries: int, max_s: float) -> tuple[int, float]:
        """Return the entries and seconds of work that are reserved from now on until then, up to a maximum of each.

        A request whose own reservation is due has nothing ahead of it.
        """
        now_s = self._clock()
        while self._by_time and self._by_time[0].at_s < now_s - LAPSE_S:
            del self._by_key[self._by_time.pop(0).key]
        own = self._by_key.get(key)
        if own is not None and own.at_s <= now_s:
            return 0, 0.0
        entries, work_s = 0, 0.0
        for reservation in self._by_time:
            if reservation.at_s > now_s + within_s or (entries >= max_entries and work_s >= max_s):
                break
            entries += reservation.entries
            work_s += reservation.work_s
        return min(entries, max_entries), min(work_s, max_s)
