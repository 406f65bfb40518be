"""The checks under overload: they fail where the engine idles, or people wait to be refused."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from loadtest import openloop, workload
from loadtest.capacity import Capacity
from loadtest.rows import LEAD_S, Reply, Row, row_of
from loadtest.trials import overload, trial
from loadtest.trials.overload import judge, judge_all, judge_burst
from loadtest.trials.trial import Check
from loadtest.workload import Request

SECONDS, ALONE_MS, DEADLINE_MS = 60.0, 100.0, 400.0


def row(status: int, number: int, latency_ms: float, **changes: Any) -> Row:
    """Make the row of one of a minute's 1,200 requests."""
    at_s = LEAD_S + SECONDS * number / 1200
    request = Request(kind="vqa", path="/v1/vqa", content_type="", body=b"")
    done_s = at_s + latency_ms / 1000
    reply = Reply(status=status, **changes)
    return row_of(request, reply, scheduled_s=at_s, sent_s=at_s, done_s=done_s, deadline_ms=DEADLINE_MS)


def checks(
    *,
    answered: int = 580,
    expired: int = 0,
    answered_after_ms: float = 300.0,
    refused_after_ms: float = 5.0,
    capacity_per_s: float = 5.0,
) -> dict[str, Check]:
    """Check a server that answers so many of 1,200, at 100 ms each, and refuses the others."""
    statuses = [200] * answered + [504] * expired + [503] * (1200 - answered - expired)
    latency_ms = {200: answered_after_ms, 504: DEADLINE_MS, 503: refused_after_ms}
    rows = [row(status, number, latency_ms[status]) for number, status in enumerate(statuses)]
    spent_s = {"answered": 58.0, "late": 0.0, "abandoned": 0.0}
    _, found = judge(
        rows,
        SECONDS,
        capacity_per_s=capacity_per_s,
        alone_p50_ms=ALONE_MS,
        deadline_ms=DEADLINE_MS,
        spent_s=spent_s,
    )
    return {check.says: check for check in found}


def test_server_that_does_what_its_engine_can_passes() -> None:
    """9.7 of 10 answers a second, the others refused at once."""
    found = checks()

    assert all(check.holds for check in found.values()), found
    assert found["goodput"].figure == pytest.approx(9.67, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({"answered": 360}, ["goodput"]),
        ({"capacity_per_s": 10.5}, ["goodput"]),
        ({"answered_after_ms": DEADLINE_MS + 11}, ["goodput", "p99 of answers"]),
        ({"refused_after_ms": 390.0}, ["p99 of refusals"]),
        ({"expired": 100}, ["share that failed after the deadline (504)"]),
    ],
    ids=["idle for 40 %", "less than capacity", "answered late", "refused late", "told after the deadline"],
)
def test_server_that_idles_or_lets_people_wait_in_vain_fails(changes: dict[str, Any], fails: list[str]) -> None:
    """As often answered as at capacity, which is only 58 % of what the engine does, is not enough."""
    assert [says for says, check in checks(**changes).items() if not check.holds] == fails


def test_answer_may_be_as_late_as_the_generator_may_be() -> None:
    """The client's clock starts earlier than the server's."""
    assert checks(answered_after_ms=DEADLINE_MS + 9)["p99 of answers"].holds


def test_wrong_answer_fails_whoever_gets_it() -> None:
    """One of all requests is enough."""
    request = Request(kind="vqa", path="/v1/vqa", content_type="", body=b"", expected="blue")
    body = b'{"answers": [{"answer": "red", "score": 1.0}]}'
    wrong = row_of(request, Reply(status=200, body=body), scheduled_s=0, sent_s=0, done_s=1, deadline_ms=None)

    assert [check.holds for check in judge_all([row(200, 0, 100.0)])] == [True, True]
    assert [check.holds for check in judge_all([row(200, 0, 100.0), wrong])] == [True, False]


def test_trial_times_a_question_alone_before_and_after(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any
) -> None:
    """Where the machine has become slower meanwhile, the bound is of both; the result has the generator's share."""
    asked_before = len(workload.read(workload.SAMPLES, "vqa")) + openloop.ALONE
    fake_server.behave = lambda seen: said(seen, delay_s=0.0 if seen.number < asked_before else 0.02)
    found = Capacity(rate_per_s=20, share=0.99, confirmed_share=1.0, confirmed_requests=500, runs=[], flaws=[])
    monkeypatch.setattr(overload, "capacity", AsyncMock(return_value=found))
    monkeypatch.setattr(trial, "metrics", AsyncMock(return_value={}))
    for name, value in {"SECONDS": 0.5, "ANSWERS": 1, "BURST_S": 0.1, "AFTERWARDS_S": 0.1}.items():
        monkeypatch.setattr(overload, name, value)

    figures, checks = asyncio.run(overload.run(SimpleNamespace(url=fake_server.url)))  # type: ignore[arg-type]

    before_ms, after_ms = figures["alone_p50_ms_before_and_after"]
    assert before_ms < 20 < after_ms
    assert before_ms < figures["alone_p50_ms"] < after_ms
    assert figures["overload"]["outside_ms"] > 0
    assert figures["overload"]["lag_ms"].max >= 0
    assert checks[1].holds


def test_who_comes_back_when_told_to_has_to_be_answered() -> None:
    """Nine in ten; the waits that they were told are recorded."""
    refusal = b'{"code": "deadline_unreachable", "retry_after_ms": 2000}'
    firsts = [row(503, number, 5.0, body=refusal) for number in range(10)]

    figures, check = judge_burst(firsts, [row(200, 0, 100.0)] * 9 + [row(503, 0, 5.0)])
    _, fewer = judge_burst(firsts, [row(200, 0, 100.0)] * 8 + [row(503, 0, 5.0)] * 2)

    assert figures["wait_s"] == {"p50": 2.0, "max": 2.0}
    assert (check.holds, fewer.holds) == (True, False)
