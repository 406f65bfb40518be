"""The instruments: that the process is among them, and that the buckets can tell what they should."""

import itertools
import sys

import pytest

from server.metrics import SECONDS, Metrics
from server.settings import Settings


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus-client reads /proc")
def test_process_s_memory_and_open_files_are_exposed() -> None:
    """A leak of either shows where the rest is read, under the names that every dashboard knows."""
    read = Metrics().registry.get_sample_value

    assert (read("process_resident_memory_bytes") or 0) > 1e6
    assert 0 < (read("process_open_fds") or 0) < (read("process_max_fds") or 0)


def test_buckets_tell_stages_below_a_millisecond_and_reach_beyond_the_deadline() -> None:
    """Admission takes microseconds, and a request at most its deadline."""
    assert len([bound for bound in SECONDS if bound < 0.001]) >= 3
    assert max(SECONDS) > Settings().deadline_ms / 1000
    assert all(later == pytest.approx(2 * earlier, rel=0.03) for earlier, later in itertools.pairwise(SECONDS))
