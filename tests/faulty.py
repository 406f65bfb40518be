"""vilt-serve whose engine fails at random, in every tenth run, but for those that warm it up: `python -m faulty`.

SIGUSR1 ends the faults, and the next begins them again.
"""

import random
import signal
import threading
from collections.abc import Sequence

from models.batch import Features
from server import __main__ as command
from server import loading
from server.engine import OrtEngine
from server.types import EngineOutput

FAULTS = 0.1  # of all runs


class FaultyEngine(OrtEngine):
    """Fails now and then on the thread that answers requests."""

    is_sound = threading.Event()

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        is_warm = threading.current_thread() is not threading.main_thread()
        if is_warm and not self.is_sound.is_set() and random.random() < FAULTS:  # noqa: S311 an accident, not a secret
            raise RuntimeError("injected")
        return super().run(batch)


def change(*_: object) -> None:
    """Be sound from now on, or no longer."""
    if FaultyEngine.is_sound.is_set():
        FaultyEngine.is_sound.clear()
    else:
        FaultyEngine.is_sound.set()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, change)
    loading.OrtEngine = FaultyEngine  # type: ignore[misc]
    command.main()
