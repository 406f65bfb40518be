"""The storm's question whether the process is alive: a stall counts for as long as it lasts."""

import asyncio
import math
import time
from typing import Any

import pytest

from loadtest.rows import Reply, row_of
from loadtest.trials.storm import PROBES_PER_S, answered, probed, responsive
from loadtest.workload import Request


@pytest.mark.slow
def test_process_that_stalls_for_two_seconds_does_not_pass_as_responsive(fake_server: Any) -> None:
    """Whatever was to be asked meanwhile counts from its own time: it is not one slow answer of many."""
    fake_server.stalled_until_s = time.monotonic() + 2

    alive_ms = asyncio.run(probed(fake_server.url, seconds=4))

    assert len(alive_ms) == 4 * PROBES_PER_S
    assert not responsive(alive_ms).holds
    assert max(alive_ms) < math.inf


@pytest.mark.parametrize(
    ("statuses", "holds"),
    [([200, 503, 504], [True, True]), ([503] * 9, [True, False]), ([200, 500], [False, True])],
    ids=["some", "none is decoded", "an error"],
)
def test_storm_in_which_no_photo_is_answered_fails(statuses: list[int], holds: list[bool]) -> None:
    """A server that refuses every photo has not decoded any."""
    request = Request(kind="vqa", path="/v1/vqa", content_type="", body=b"")
    rows = [
        row_of(request, Reply(status=status), scheduled_s=0, sent_s=0, done_s=1, deadline_ms=None)
        for status in statuses
    ]

    assert [check.holds for check in answered(rows)] == holds


def test_process_that_is_not_there_is_not_responsive() -> None:
    """Nobody answers; the trial goes on, and its claim fails."""
    alive_ms = asyncio.run(probed("http://127.0.0.1:9", seconds=0.1))

    assert alive_ms == [math.inf] * round(0.1 * PROBES_PER_S)
    assert not responsive(alive_ms).holds
