"""How many requests a client has in progress, and how many it may have."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator

from server.errors import Overloaded
from server.types import Clock, Mean


class Places:
    """Limits how many requests a client has at once; remembers a client only while it has one."""

    def __init__(self, most: int, run_s: float, clock: Clock) -> None:
        """Allow each client `most` requests, 0 for any number; until one has ended, it is assumed to take `run_s`."""
        self._most = most
        self._clock = clock
        self._taken: dict[str, dict[object, tuple[float, str]]] = {}  # since when and for which task, oldest first
        # By task: how long its recent requests have held their places.
        self._held_s: defaultdict[str, Mean] = defaultdict(lambda: Mean(run_s))

    @contextlib.contextmanager
    def take(self, client: str, task: str) -> Iterator[None]:
        """Hold one of a client's places while its request is answered.

        Raises: Overloaded: it has none left.
        """
        if not self._most:
            yield
            return
        taken = self._taken.setdefault(client, {})
        if len(taken) >= self._most:
            requests = "1 request" if len(taken) == 1 else f"{len(taken):,} requests"
            raise Overloaded(
                "client_over_limit",
                f"You have {requests} in progress, the limit for one client: retry when one is answered.",
                retry_after_s=self._until_free_s(taken),
            )
        place, since_s = object(), self._clock()
        taken[place] = since_s, task
        try:
            yield
        finally:
            del taken[place]
            if not taken:
                del self._taken[client]
            self._held_s[task].add(self._clock() - since_s)

    def _until_free_s(self, taken: dict[object, tuple[float, str]]) -> float:
        """Estimate when the oldest of a client's requests ends; if that is overdue, the time between two ends."""
        since_s, task = next(iter(taken.values()))
        mean_s = self._held_s[task].value
        return max(since_s + mean_s - self._clock(), mean_s / len(taken))
