"""The claims about those who hang up: they fail where work of theirs stays behind."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest import openloop, workload
from loadtest.rows import Reply, row_of
from loadtest.trials import abandon, trial
from loadtest.trials.abandon import passed
from loadtest.trials.trial import Check
from loadtest.workload import Request

PEOPLE = 20
ANSWERED, GONE = (f'vilt_engine_seconds_total{{use="{use}"}}' for use in ("answered", "abandoned"))


def try_out(
    monkeypatch: pytest.MonkeyPatch, server: Any, *, gone_s: tuple[float, float, float], entries: float = 0.0
) -> dict[str, Check]:
    """Carry out a small trial of a server whose metrics say so before the storm, after it, and at the end."""
    told = iter([{ANSWERED: 1.0, GONE: seconds} for seconds in gone_s])

    async def metrics(_: str) -> dict[str, float]:
        return next(told)

    async def settled(*_: Any) -> float:
        return entries

    monkeypatch.setattr(trial, "metrics", metrics)
    monkeypatch.setattr(trial, "settled", settled)
    monkeypatch.setattr(abandon, "ABANDONED", PEOPLE)
    monkeypatch.setattr(abandon, "NORMAL", PEOPLE)
    _, checks = asyncio.run(abandon.run(SimpleNamespace(url=server.url)))  # type: ignore[arg-type]
    return {check.says.partition(",")[0]: check for check in checks}


def test_engine_that_goes_on_for_those_who_have_gone_fails(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    """What it took during the storm had begun; an hour afterwards had not."""
    checks = try_out(monkeypatch, fake_server, gone_s=(0.0, 3600.0, 7200.0))

    assert not checks["engine time on abandoned requests"].holds


def test_engine_that_had_begun_with_those_who_have_gone_may_end(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any
) -> None:
    """However long the storm was."""
    checks = try_out(monkeypatch, fake_server, gone_s=(0.0, 3600.0, 3600.0))

    assert checks["engine time on abandoned requests"].holds


def test_entries_that_stay_once_all_have_gone_fail(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    """They are looked at before anybody else asks."""
    checks = try_out(monkeypatch, fake_server, gone_s=(0.0, 0.0, 0.0), entries=1.0)

    assert not checks["entries in the queue"].holds
    assert not checks["entries in flight"].holds


@pytest.mark.parametrize(("delay_s", "holds"), [(0.2, True), (0.0, False)], ids=["waits", "is answered at once"])
def test_storm_that_abandons_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, delay_s: float, holds: bool
) -> None:
    """All its requests were answered before anybody lost patience: nothing was tried."""
    monkeypatch.setattr(abandon, "ABANDON_S", (0.1, 0.1) if holds else (10.0, 10.0))
    storm = range(len(workload.read(workload.SAMPLES, "vqa")) + openloop.ALONE, 10_000)
    fake_server.behave = lambda seen: said(seen, delay_s=delay_s if seen.number in storm else 0.0)

    checks = try_out(monkeypatch, fake_server, gone_s=(0.0, 0.0, 0.0))

    assert checks["requests abandoned"].holds is holds


def test_engine_that_hardly_runs_while_people_wait_fails(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    """Something else holds them up, such as bodies of those who have gone."""
    checks = try_out(monkeypatch, fake_server, gone_s=(0.0, 0.0, 0.0))

    assert not checks["share of the time that others wait in which the engine runs for them"].holds


def test_whoever_is_passed_is_counted_however_fast_the_machine_is() -> None:
    """Of the one who waited from 0 to 10, all who were answered meanwhile; of the others, those before them."""
    request = Request(kind="vqa", path="/v1/vqa", content_type="", body=b"")
    times = [(0.0, 10.0), (0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (9.0, 11.0)]
    rows = [
        row_of(request, Reply(status=200), scheduled_s=sent_s, sent_s=sent_s, done_s=done_s, deadline_ms=None)
        for sent_s, done_s in times
    ]

    assert passed(rows) == [3, 0, 0, 0, 1]
