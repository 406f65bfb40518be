"""Questions beside ranks: they are asked at their times, and their answers have to be right."""

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest import openloop, workload
from loadtest.trials import blocking
from loadtest.trials.trial import Check, Figures

BEFORE = len(workload.read(workload.SAMPLES, "vqa")) + openloop.ALONE  # questions asked alone


def try_out(monkeypatch: pytest.MonkeyPatch, server: Any) -> tuple[Figures, dict[str, Check]]:
    """Carry out a small trial."""
    monkeypatch.setattr(blocking, "SECONDS", 1.0)
    monkeypatch.setattr(blocking, "QUESTIONS", 100)
    figures, checks = asyncio.run(blocking.run(SimpleNamespace(url=server.url)))  # type: ignore[arg-type]
    return figures, {check.says: check for check in checks}


def test_server_that_stalls_makes_all_questions_of_that_time_slow(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any
) -> None:
    """A client that waited for its answer would have asked one of them, whose time no p99 shows."""
    fake_server.one_at_a_time = True
    asked = itertools.count()

    def stall_once(seen: Any) -> Any:
        is_slow = seen.route == "/v1/vqa" and next(asked) == BEFORE + 10
        return said(seen, delay_s=1.0 if is_slow else 0.005)

    fake_server.behave = stall_once

    figures, checks = try_out(monkeypatch, fake_server)

    assert figures["questions"] >= 100
    assert figures["beside_ranks_ms"].p90 > 200
    assert not checks["p99 of questions over the median of one alone"].holds


def test_wrong_answer_beside_ranks_fails(monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any) -> None:
    """However soon it comes."""
    red = {"answers": [{"answer": "red", "score": 0.9}]}
    fake_server.behave = lambda seen: (
        said(seen, body=red) if seen.route == "/v1/vqa" and seen.number > BEFORE else said(seen, delay_s=0.002)
    )

    _, checks = try_out(monkeypatch, fake_server)

    assert checks["share of questions answered"].holds
    assert not checks["wrong answers"].holds
