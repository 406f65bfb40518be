"""Ranks in the three cases against a real server: what is kept is not done again."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import __main__ as command
from loadtest import retrieval


def test_every_round_has_pictures_of_its_own_however_many_there_are(fake_server: Any, said: Any) -> None:
    """Also the 257th."""
    fake_server.behave = lambda seen: said(seen, body={"timing_ms": {"total": 1.0}})

    retrieval.measure(fake_server.url, images=1, rounds=257)

    pictures = {seen.body.partition(b"image/jpeg")[2].rpartition(b"\r\n--")[0] for seen in fake_server.seen}
    assert len(fake_server.seen) == 3 * 257
    assert len(pictures) == 257


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
