"""The slowest recent requests, kept in memory: where to look when somebody says that the server was slow.

There are two windows of half the time, each with the slowest requests of each task. When the newer one has lasted long
enough, it becomes the older. Never holds a text, an image or a key.
"""

import heapq
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import count

from server.types import Clock

KEPT = 20  # of each task: otherwise ranks, which take longest, would displace all others
WINDOW_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request that has its response, and where its time went."""

    request_id: str
    task: str
    model: str  # empty for a refusal
    status: int
    code: str
    when: datetime  # of its response
    total_ms: float
    timing_ms: dict[str, float]  # the stages it went through, and the parts of inference
    batch_size: int | None = None  # how many ran together; of a rank, in its last slice


Heap = list[tuple[float, int, RequestRecord]]  # by total_ms, the fastest first; the number settles ties


class Slowest:
    """The slowest requests of each task in the last 5 to 10 minutes."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._numbers = count()
        self._began_s = clock()
        self._recent: defaultdict[str, Heap] = defaultdict(list)
        self._older: defaultdict[str, Heap] = defaultdict(list)

    def add(self, request: RequestRecord) -> None:
        """Keep a request if it is one of the slowest."""
        self._turn()
        kept = self._recent[request.task]
        item = (request.total_ms, next(self._numbers), request)
        if len(kept) < KEPT:
            heapq.heappush(kept, item)
        else:
            heapq.heappushpop(kept, item)

    def worst(self) -> list[RequestRecord]:
        """Return the requests of all tasks, slowest first."""
        self._turn()
        tasks = {*self._recent, *self._older}
        kept = [item for task in tasks for item in _slowest(self._recent[task] + self._older[task])]
        return [request for _, _, request in sorted(kept, reverse=True)]

    def _turn(self) -> None:
        """Drop what is too old."""
        age_s = self._clock() - self._began_s
        if age_s < WINDOW_S / 2:
            return
        is_quiet = age_s >= WINDOW_S  # the newer window is too old as well
        self._older = defaultdict(list) if is_quiet else self._recent
        self._recent = defaultdict(list)
        self._began_s += age_s if is_quiet else WINDOW_S / 2


def _slowest(items: Iterable[tuple[float, int, RequestRecord]]) -> Heap:
    return heapq.nlargest(KEPT, items)
