"""Runs that do not end: a kernel of a GPU's that hangs, a deadlock, a driver that is gone.

Reads no clock, but counts turns of the event loop: while the process is suspended, or gets no processor, none pass.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TURN_S = 1.0
STUCK_S = 10.0  # longer than any pause of a machine that goes on
STUCK_FACTOR = 20.0  # times the estimate, which believes in a machine that has become ten times slower, but no more
HOPELESS_S = 60.0  # after that; as the default deadline: by then nobody waits any more


@dataclass(slots=True, eq=False)
class WatchedRun:
    """A run that is under way."""

    stuck_after_s: float
    turned_s: float = 0.0  # of the event loop's, since it began


class Watchdog:
    """Watches the runs that are under way."""

    def __init__(self) -> None:
        self._runs: set[WatchedRun] = set()

    @contextlib.contextmanager
    def watching(self, estimate_s: float) -> Iterator[None]:
        """Watch a run from its beginning to its end."""
        run = WatchedRun(max(STUCK_S, STUCK_FACTOR * estimate_s))
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.remove(run)

    @property
    def is_stuck(self) -> bool:
        """Whether a run takes so long that it may never end."""
        return self._are_over_by(0.0)

    async def until_idle_or_stuck(self) -> None:
        """Wait for the runs under way, as long as they may take."""
        while self._runs and not self.is_stuck:  # noqa: ASYNC110 turns are what is counted
            await asyncio.sleep(TURN_S)

    async def until_hopeless(self, is_broken: Callable[[], bool] = lambda: False) -> None:
        """Watch for as long as there is hope that every run ends, and the engine is not broken."""
        while not (self._are_over_by(HOPELESS_S) or is_broken()):
            await asyncio.sleep(TURN_S)
            for run in self._runs:
                run.turned_s += TURN_S

    def _are_over_by(self, seconds: float) -> bool:
        return any(run.turned_s > run.stuck_after_s + seconds for run in self._runs)
