"""The command, against a server that is known: what it writes, and that the report says what the rows say."""

import itertools
import json
import os
import re
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from loadtest import __main__ as command
from loadtest import load, rows
from loadtest.capacity import Capacity
from loadtest.summary import by_kind, summarise

RATES = (20.0, 40.0)
SECONDS = 1.0


def run(monkeypatch: pytest.MonkeyPatch, fake_server: Any, output: Path, *flags: str) -> dict[str, Any]:
    """Run the command on two rates and read what it found."""
    rates = [f"{rate:g}" for rate in RATES]
    arguments = ["load", "--url", fake_server.url, "--output", str(output), "--seconds", str(SECONDS)]
    monkeypatch.setattr(sys, "argv", ["vilt-bench", *arguments, "--rate", *rates, *flags])
    command.main()
    found: dict[str, Any] = json.loads((output / "load.json").read_text())
    return found


def under_load(seen: Any) -> bool:
    """What is asked alone has no deadline."""
    return "X-Deadline-Ms" in seen.headers


@pytest.mark.slow
def test_figures_equal_those_computed_from_the_raw_rows(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, refused: Any, tmp_path: Path
) -> None:
    """In load.json to the last digit, in the page as it prints them; every third request under load is refused."""
    fake_server.behave = lambda seen: refused if under_load(seen) and seen.number % 3 == 0 else said(seen)

    found = run(monkeypatch, fake_server, tmp_path, "--deadline-ms", "500")

    page = (tmp_path / "report.html").read_text()
    assert [one["rate_per_s"] for one in found["loads"]] == list(RATES)
    assert [one["summary"]["offered_per_s"] for one in found["loads"]] == list(RATES)
    for one in found["loads"]:
        asked = rows.read(tmp_path / one["rows"])
        summary = summarise(asked, seconds=SECONDS)
        assert one["summary"] == json.loads(json.dumps(asdict(summary)))
        assert one["by_kind"].keys() == by_kind(asked, seconds=SECONDS).keys()
        assert summary.outcomes["503 deadline_unreachable"] > 0
        assert summary.latency_ms is not None
        line = next(line for line in re.findall(r"<tr.*?</tr>", page) if f"<td>{one['rate_per_s']:g}</td>" in line)
        assert f"<td>{summary.goodput_per_s:.1f}</td>" in line
        assert f"<td>{summary.latency_ms.p90:,.1f}</td>" in line
        assert summary.latency_ms.p99 is None


@pytest.mark.slow
def test_each_rate_has_arrivals_of_its_own(monkeypatch: pytest.MonkeyPatch, fake_server: Any, tmp_path: Path) -> None:
    """One pattern, stretched, would have the same clusters at every rate."""
    found = run(monkeypatch, fake_server, tmp_path, "--scenario", "vqa")

    low, high = ({row.scheduled_s for row in rows.read(tmp_path / one["rows"])} for one in found["loads"])
    assert not low & high


@pytest.mark.slow
def test_rate_that_is_offered_twice_keeps_the_rows_of_both(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, tmp_path: Path
) -> None:
    """A file each, which its figures are of."""
    monkeypatch.setattr(sys.modules[__name__], "RATES", (20.0, 20.0))

    found = run(monkeypatch, fake_server, tmp_path, "--scenario", "vqa")

    assert [one["rows"] for one in found["loads"]] == ["rows-1-20.jsonl", "rows-2-20.jsonl"]
    first, second = ({row.scheduled_s for row in rows.read(tmp_path / one["rows"])} for one in found["loads"])
    assert not first & second


@pytest.mark.slow
def test_answer_that_differs_under_load_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, tmp_path: Path
) -> None:
    """After the report has been written: it has the rows that show it."""

    red = {"answers": [{"answer": "red", "score": 0.9}]}
    fake_server.behave = lambda seen: said(seen, body=red) if under_load(seen) else said(seen)

    with pytest.raises(SystemExit, match="answers under load differ from those given alone"):
        run(monkeypatch, fake_server, tmp_path, "--scenario", "vqa")

    assert any(row.correct is False for row in rows.read(tmp_path / "rows-2-40.jsonl"))
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_wrong_answer_while_the_capacity_is_searched_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, tmp_path: Path
) -> None:
    """Though all are right at the rate that is offered then."""
    flawless = {"share": 0.99, "confirmed_share": 1.0, "confirmed_requests": 500, "flaws": []}

    async def capacity(*_: Any, **__: Any) -> Capacity:
        return Capacity(rate_per_s=20.0, runs=[replace(summarise([], seconds=1), checked=9, wrong=2)], **flawless)

    monkeypatch.setattr(load, "capacity", capacity)
    monkeypatch.setattr(load, "SHARES", (1.0,))
    arguments = ["load", "--url", fake_server.url, "--output", str(tmp_path), "--seconds", "0.2", "--scenario", "vqa"]
    monkeypatch.setattr(sys, "argv", ["vilt-bench", *arguments])

    with pytest.raises(SystemExit, match=r"^vilt-bench load: 2 answers under load differ"):
        command.main()


@pytest.mark.slow
def test_rates_before_ctrl_c_are_reported(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, tmp_path: Path
) -> None:
    """The one that was under way is left out, and the command says so."""
    asked = itertools.count()

    def interrupt_late(seen: Any) -> Any:
        if under_load(seen) and next(asked) == 40:  # of 20 at the first rate, 40 at the second
            os.kill(os.getpid(), signal.SIGINT)
        return said(seen)

    fake_server.behave = interrupt_late

    with pytest.raises(SystemExit, match="interrupted; the report has the rates that are complete"):
        run(monkeypatch, fake_server, tmp_path, "--arrivals", "constant")

    found = json.loads((tmp_path / "load.json").read_text())
    assert [one["rate_per_s"] for one in found["loads"]] == [RATES[0]]
    assert found["ended_early"] == "interrupted"
    assert (tmp_path / "report.html").exists()


def test_capacity_without_a_deadline_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every answer would be in time, and the highest rate what the generator can do."""
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "load", "--output", str(tmp_path), "--deadline-ms", "0"])

    with pytest.raises(SystemExit, match="vilt-bench load: --deadline-ms 0 needs --rate"):
        command.main()


def test_data_that_is_missing_ends_the_command_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, tmp_path: Path
) -> None:
    """And the name of what is missing."""
    with pytest.raises(SystemExit, match=r"vilt-bench load: .*nothing\.jsonl"):
        run(monkeypatch, fake_server, tmp_path, "--data", str(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    ("asked_ms", "found"),
    [(None, {"vqa": 20.0, "rank": 120.0}), (50.0, {"vqa": 50.0, "rank": 50.0}), (0.0, {})],
    ids=["four times alone", "as asked", "none"],
)
def test_deadline_is_four_times_what_a_kind_takes_alone_unless_asked_for(
    asked_ms: float | None, found: dict[str, float]
) -> None:
    """A rank of eight candidates has more time than a question; 0 leaves it to the server."""
    assert load.deadlines_ms(asked_ms, {"vqa": 5.0, "rank": 30.0}) == found
