"""Chaos: what is sent is what is said, and a small share of it is weathered by a server that fails."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import workload
from loadtest.trials import chaos
from loadtest.trials.chaos import LONGEST_S, MALFORMED, SHORTEST_S, hostile


@pytest.fixture(scope="module")
def requests() -> Iterator[workload.Request]:
    return workload.stream(workload.read(workload.SAMPLES, "vqa"), "vqa")


def test_hostile_requests_are_spoiled_in_every_way_and_all_abandoned(requests: Iterator[workload.Request]) -> None:
    """Three in ten, and nobody waits longer than is said."""
    made = list(itertools.islice(hostile(requests), 2000))

    spoiled = [request for request in made if request.kind == "malformed"]
    assert len(spoiled) / len(made) == pytest.approx(MALFORMED, abs=0.05)
    assert all(request.expected is None for request in spoiled)
    assert all(SHORTEST_S <= (request.abandon_after_s or 0) <= LONGEST_S for request in made)
    assert len({(request.path.partition("?")[0], request.content_type) for request in spoiled}) >= 7


@pytest.mark.slow
def test_server_whose_engine_fails_weathers_hostile_clients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of the trial; the command fails where a claim does."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(chaos, "REQUESTS", 1000)
    parser = argparse.ArgumentParser()
    chaos.add_to(parser.add_subparsers())
    options = parser.parse_args(["chaos"])

    options.run(options)

    assert "FAILED" not in capsys.readouterr().out
