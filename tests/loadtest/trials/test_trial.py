"""Checks, and the command around a trial; one trial is carried out."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest.launch import Started
from loadtest.trials import drain, trial
from loadtest.trials.trial import Check, Figures, at_least, at_most, equal


@pytest.mark.parametrize(
    ("check", "holds", "text"),
    [
        (at_most("p99", 99.5, 100, "ms"), True, "ok      p99: 99.5 (at most 100 ms)"),
        (at_most("p99", 100.5, 100, "ms"), False, "FAILED  p99: 100.5 (at most 100 ms)"),
        (at_least("share", 0.95, 0.95), True, "ok      share: 0.95 (at least 0.95)"),
        (at_least("share", float("nan"), 0.95), False, "FAILED  share: nan (at least 0.95)"),
        (equal("lost", 1, 0), False, "FAILED  lost: 1 (0)"),
    ],
)
def test_check_holds_up_to_its_bound_and_says_so(check: Check, holds: bool, text: str) -> None:
    """A figure that could not be computed holds nothing."""
    assert check.holds is holds
    assert str(check) == text


def carry_out(run: trial.Run, *flags: str) -> None:
    """Carry out a trial as vilt-bench would."""
    parser = argparse.ArgumentParser()
    trial.add(parser.add_subparsers(), "some", "Try something.", run)
    options = parser.parse_args(["some", *flags])
    options.run(options)


@pytest.mark.slow
def test_check_that_fails_fails_the_command_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are written all the same, with the machine and the models."""

    async def run(own: Started) -> tuple[Figures, Sequence[Check]]:
        assert (await trial.metrics(own.url))["vilt_ready"] == 1
        assert await trial.settled(own.url, "vilt_queue_entries", within_s=1) == 0
        return {"figure": 7}, [equal("this", 1, 1), equal("that", 1, 2)]

    with pytest.raises(SystemExit) as ended:
        carry_out(run, "--output", str(tmp_path / "some.json"))

    assert ended.value.code == 1
    assert capsys.readouterr().out == "ok      this: 1 (1)\nFAILED  that: 1 (2)\n"
    found = json.loads((tmp_path / "some.json").read_text())
    assert found["figure"] == 7
    assert found["models"][0]["name"] == "shapes"
    assert [claim["holds"] for claim in found["claims"]] == [True, False]


@pytest.mark.slow
def test_no_request_is_lost_at_sigterm_under_full_load() -> None:
    """With 32 clients that keep their connections and go on asking; then kill -9 and another start."""
    parser = argparse.ArgumentParser()
    drain.add_to(parser.add_subparsers())
    options = parser.parse_args(["drain"])

    options.run(options)  # exits with 1 where a claim fails


@pytest.mark.slow
def test_result_says_what_was_true_when_the_trial_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sources may change while it runs."""
    commit = ["before"]
    monkeypatch.setattr(trial, "stamp", lambda: {"commit": commit[0]})

    async def run(_: Started) -> tuple[Figures, Sequence[Check]]:
        commit[0] = "after"
        return {}, []

    carry_out(run, "--output", str(tmp_path / "new" / "some.json"))

    assert json.loads((tmp_path / "new" / "some.json").read_text())["commit"] == "before"
