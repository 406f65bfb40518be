"""The storm's question whether the process is alive: a stall counts for as long as it lasts."""

import asyncio
import math
import time
from typing import Any

import pytest

from loadtest.trials.storm import PROBES_PER_S, probed, responsive


@pytest.mark.slow
def test_process_that_stalls_for_two_seconds_does_not_pass_as_responsive(fake_server: Any) -> None:
    """Whatever was to be asked meanwhile counts from its own time: it is not one slow answer of many."""
    fake_server.stalled_until_s = time.monotonic() + 2

    alive_ms = asyncio.run(probed(fake_server.url, seconds=4))

    assert len(alive_ms) == 4 * PROBES_PER_S
    assert not responsive(alive_ms).holds
    assert max(alive_ms) < math.inf


def test_process_that_is_not_there_is_not_responsive() -> None:
    """Nobody answers; the trial goes on, and its claim fails."""
    alive_ms = asyncio.run(probed("http://127.0.0.1:9", seconds=0.1))

    assert alive_ms == [math.inf] * round(0.1 * PROBES_PER_S)
    assert not responsive(alive_ms).holds
