"""Detects runs that never end: a hanging GPU kernel, a deadlock, a lost driver.

Counts turns of the event loop instead of reading a clock: none pass while the process is suspended or starved of CPU.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TURN_S = 1.0
STUCK_S = 10.0  # longer than a healthy machine ever pauses
STUCK_FACTOR = 20.0  # times the estimate, which follows a machine that becomes slower up to a factor of ten
HOPELESS_S = 60.0  # after that: the default deadline, so nobody is waiting any more


@dataclass(slots=True, eq=False)
class WatchedRun:
    """A run under way."""

    stuck_after_s: float
    turned_s: float = 0.0  # turns of the event loop since it began


class Watchdog:
    """Watches runs under way."""

    def __init__(self) -> None:
        self._runs: set[WatchedRun] = set()

    @contextlib.contextmanager
    def watching(self, estimate_s: float) -> Iterator[None]:
        """Watch a run while it lasts."""
        run = WatchedRun(max(STUCK_S, STUCK_FACTOR * estimate_s))
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.remove(run)

    @property
    def is_stuck(self) -> bool:
        """Whether a run has taken so long that it may never end."""
        return self._are_over_by(0.0)

    async def until_idle_or_stuck(self) -> None:
        """Wait until no run is under way, or one is stuck."""
        while self._runs and not self.is_stuck:  # noqa: ASYNC110 turns are what is counted
            await asyncio.sleep(TURN_S)

    async def until_hopeless(self, is_broken: Callable[[], bool] = lambda: False) -> None:
        """Wait until a run is not expected to end any more, or the engine is broken."""
        while not (self._are_over_by(HOPELESS_S) or is_broken()):
            await asyncio.sleep(TURN_S)
            for run in self._runs:
                run.turned_s += TURN_S

    def _are_over_by(self, seconds: float) -> bool:
        return any(run.turned_s > run.stuck_after_s + seconds for run in self._runs)
