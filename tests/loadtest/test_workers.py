"""One process beside several: what is figured from turns, and that the command measures both."""

import json
import sys
from pathlib import Path

import pytest

from loadtest import __main__ as command
from loadtest.peers.turns import Timed
from loadtest.workers import summarise


def test_figures_are_of_all_requests_and_of_the_median_turn() -> None:
    """A turn that was disturbed moves a percentile, not the rate."""
    timed = Timed(latencies_ms={1: [1.0, 2.0, 3.0, 40.0]}, rates_per_s={1: [10.0, 11.0, 1.0]})

    assert summarise(timed) == {1: {"answers": 4, "p50_ms": 2.0, "p99_ms": None, "answers_per_s": 10.0}}


def test_p99_is_told_of_a_hundred_answers() -> None:
    """Of fewer it would be the slowest."""
    latencies_ms = [float(value) for value in range(1, 101)]

    assert summarise(Timed(latencies_ms={1: latencies_ms}, rates_per_s={1: [1.0]}))[1]["p99_ms"] == 99.0


@pytest.mark.slow
def test_command_takes_turns_with_one_process_and_with_two_fronts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have answered with every number of clients, and the file says so."""
    output = tmp_path / "workers.json"
    monkeypatch.setenv("VILT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "workers", "--rounds", "1", "--output", str(output)])

    command.main()

    servers = json.loads(output.read_text())["servers"]
    assert set(servers) == {"one process", "2 workers"}
    for by_clients in servers.values():
        assert set(by_clients) == {"1", "2", "4", "8"}
        assert all(figures["p99_ms"] is None and figures["p50_ms"] > 0 for figures in by_clients.values())
    assert "answers/s" in capsys.readouterr().out
