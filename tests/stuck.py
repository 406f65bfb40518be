"""vilt-serve whose engine never ends a run, except to warm up: `python -m tests.stuck`.

This is noticed within a second, and the process gives up a second later.
"""

import threading
from collections.abc import Sequence

from models.batch import Features
from server import __main__ as command
from server import loading, watchdog
from server.engine import OrtEngine
from server.types import EngineOutput


class StuckEngine(OrtEngine):
    """Waits for ever on the thread that answers requests."""

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait()
        return super().run(batch)


if __name__ == "__main__":
    watchdog.TURN_S, watchdog.STUCK_S, watchdog.HOPELESS_S = 0.1, 0.9, 1.0
    loading.OrtEngine = StuckEngine  # type: ignore[misc]
    command.main()
