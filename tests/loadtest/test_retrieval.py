"""Ranks in the three cases against a real server: what is kept is not done again."""

import json
import statistics
import sys
from pathlib import Path

import pytest

from loadtest import __main__ as command


def test_ranks_are_sooner_done_the_more_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With shapes and a few pictures: all kept needs neither a decoder nor the model."""
    output = tmp_path / "retrieval.json"
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "retrieval", "--images", "20", "--output", str(output)])

    command.main()

    result = json.loads(output.read_text())
    (found,) = result["servers"]
    rates = {case: statistics.median(values) for case, values in found["pairs_per_s"].items()}
    assert [len(values) for values in found["pairs_per_s"].values()] == [3, 3, 3]
    assert found["model"]["name"] == "shapes"
    assert rates["all kept"] > 3 * rates["new"]  # nearly all of a new pair is decoding and the model
