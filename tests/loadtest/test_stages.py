"""One request's time: what the figures are, that they sum up, and what the command writes."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest import __main__ as command
from loadtest import photo
from loadtest.breakdown import OUTSIDE, REST, Breakdown
from loadtest.rows import Reply, Row, row_of
from loadtest.stages import TURN, WARM_UP, measure
from loadtest.workload import Request

MODEL = {"name": "<fake>", "precision": "fp32"}
TIMING = "decode;dur=2, inference;dur=10, text_embedding;dur=1, visual_embedding;dur=3, interaction;dur=5, total;dur=12"


def rows(latencies_ms: Sequence[float], timing: str = TIMING) -> list[Row]:
    """Make rows of answers."""
    request = Request(kind="vqa", path="/v1/vqa", content_type="image/jpeg", body=b"")
    reply = Reply(status=200, headers={"Server-Timing": timing}, body=b"{}")
    return [
        row_of(request, reply, scheduled_s=0.0, sent_s=0.0, done_s=latency_ms / 1000, deadline_ms=None)
        for latency_ms in latencies_ms
    ]


def test_figures_are_medians_and_quartiles_of_the_rows() -> None:
    """HTTP is the client's time; what is beside the server's total, and beside inference, is told apart."""
    found = Breakdown.of(MODEL, rows([13, 14, 15, 16, 17]))

    assert found.http_ms.median == pytest.approx(15)
    assert (found.http_ms.p25, found.http_ms.p75) == pytest.approx((14, 16))
    assert found.outside_ms.median == pytest.approx(3)
    assert found.beside_inference_ms.median == pytest.approx(5)
    assert found.visual_embedding_share is not None
    assert found.visual_embedding_share.median == pytest.approx(0.3)


def test_layers_of_a_bar_sum_to_the_http_time() -> None:
    """Inference is counted as its parts, and what they leave of it."""
    found = Breakdown.of(MODEL, rows([15, 15]))

    layers = found.layers()

    assert sum(layers.values()) == pytest.approx(15)
    assert layers[REST] == pytest.approx(1)
    assert layers[OUTSIDE] == pytest.approx(3)
    assert "inference" not in layers


def test_engine_without_parts_has_inference_as_one_layer() -> None:
    """As a fused graph reports it."""
    found = Breakdown.of(MODEL, rows([15, 15], "decode;dur=2, inference;dur=10, total;dur=12"))

    assert found.layers() == pytest.approx({"decode": 2, "inference": 10, OUTSIDE: 3})
    assert found.visual_embedding_share is None


def test_server_that_tells_no_stages_is_refused_with_a_sentence() -> None:
    """There is nothing to break down."""
    with pytest.raises(ValueError, match="lack Server-Timing"):
        Breakdown.of(MODEL, rows([15, 15], ""))


def run(monkeypatch: pytest.MonkeyPatch, fake_server: Any, *flags: str) -> None:
    """Run the command."""
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "stages", "--url", fake_server.url, "--repeat", "4", *flags])
    command.main()


def test_command_writes_figures_and_a_plot_beside_them(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With where and with what they were measured."""
    run(monkeypatch, fake_server, "--output", str(tmp_path / "stages.json"))

    found = json.loads((tmp_path / "stages.json").read_text())
    assert found["servers"][0]["stages_ms"]["inference"] == {"median": 2.0, "p25": 2.0, "p75": 2.0}
    assert found["machine"]["cpus"]
    assert found["repeat"] == 4
    assert found["servers"][0]["model"]["name"] == "<fake>"
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    assert "HTTP less inference" in capsys.readouterr().out
    assert len({seen.body for seen in fake_server.seen}) == len(fake_server.seen)


def test_servers_take_turns_and_their_first_requests_are_left_out(fake_server: Any) -> None:
    """What follows another server's turn is not what a server takes alone."""
    repeat = TURN + 1

    found, _ = asyncio.run(measure([fake_server.url] * 2, photo.draw(), repeat))

    assert [len(rows) for rows in found] == [repeat, repeat]
    paths = [seen.path for seen in fake_server.seen]
    length = TURN + WARM_UP
    assert len(paths) == 2 * (repeat + 2 * WARM_UP)
    assert paths[:length] == paths[length : 2 * length]


def test_server_that_refuses_ends_the_command_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, refused: Any
) -> None:
    """Its code says why."""
    fake_server.behave = lambda _: refused

    with pytest.raises(SystemExit, match="vilt-bench stages: the server did not answer: 503 deadline_unreachable"):
        run(monkeypatch, fake_server)


def test_refusal_after_a_turn_leaves_what_all_have_been_asked(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, refused: Any, tmp_path: Path
) -> None:
    """It is written, and the command says what ended it."""
    fake_server.behave = lambda seen: refused if seen.number > TURN + WARM_UP else said(seen)

    with pytest.raises(
        SystemExit, match="503 deadline_unreachable; 10 of 40 requests to each server are reported above"
    ):
        run(monkeypatch, fake_server, "--repeat", "40", "--output", str(tmp_path / "stages.json"))

    found = json.loads((tmp_path / "stages.json").read_text())
    assert found["repeat"] == TURN
    assert "503" in found["ended_early"]
