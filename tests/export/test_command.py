"""What vilt-export says, before it loads anything and once all is written."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from export import gate
from export.__main__ import main
from export.command import summary
from models.manifest import Manifest, read_manifest
from server.settings import SHAPES


def test_engines_in_int8_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They are fp16, which is not what was asked for."""
    monkeypatch.setattr(sys, "argv", ["vilt-export", "x", "--output", "y", "--tensorrt", "--precision", "int8"])

    with pytest.raises(SystemExit, match="2"):
        main()

    assert "--tensorrt runs fp16" in capsys.readouterr().err


def test_questions_without_a_precision_to_judge_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would be passed over, and the user believe that something had been judged."""
    monkeypatch.setattr(sys, "argv", ["vilt-export", "x", "--output", "y", "--eval-data", "z"])

    with pytest.raises(SystemExit, match="2"):
        main()

    assert "add --precision int8 or fp16" in capsys.readouterr().err


def test_output_over_the_checkpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An artifact has a tokenizer.json, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vilt-export", str(tmp_path), "--output", "."])

    with pytest.raises(SystemExit, match="2"):
        main()

    assert "the checkpoint's own folder" in capsys.readouterr().err


def test_what_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is there with the server alone, too."""
    monkeypatch.delitem(sys.modules, "export.command")
    monkeypatch.setitem(sys.modules, "tqdm", None)

    with pytest.raises(
        SystemExit, match=r"^vilt-export needs tqdm, which is not installed: pip install '\.\[cpu,export\]'"
    ):
        main()


def test_help_shows_what_a_precision_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of every kind, and how many there have to be."""
    monkeypatch.setattr(sys, "argv", ["vilt-export", "--help"])

    with pytest.raises(SystemExit, match="0"):
        main()

    said = capsys.readouterr().out
    assert gate.RECORDS in said
    assert "int8  on 99.0% of at least 300 answers" in said
    assert "fp16  on 99.5% of at least 600 answers, with every score within 0.005" in said
    assert "Where the correct answers are given, at most 0.3% of them, or one, may be lost." in said


def with_int8(outcome: dict[str, Any]) -> Manifest:
    """Offer fp32's own graphs as int8."""
    manifest = read_manifest(SHAPES)
    int8 = dataclasses.replace(manifest.precisions["fp32"], gate=outcome)
    return dataclasses.replace(manifest, precisions={"int8": int8})


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (gate.NOT_GATED, "not gated (no --eval-data was given), so only vilt-serve --precision int8 serves it"),
        (
            {"status": "failed", "agreement": 0.5, "accuracy": 0.0, "accuracy_fp32": 0.25},
            "failed its gate: 50.00% of answers as in fp32, accuracy 0.00% (25.00% in fp32)",
        ),
        (
            {"status": "failed", "why": "texts: why", "agreement": 0.5, "accuracy": None, "accuracy_fp32": None},
            "failed its gate (texts: why): 50.00% of answers as in fp32",
        ),
        (
            {"status": "passed", "agreement": 1.0, "accuracy": None, "accuracy_fp32": None},
            "passed its gate: 100.00% of answers as in fp32",
        ),
    ],
    ids=["not gated", "nothing right, in an earlier artifact", "failed for a reason", "nothing known to be right"],
)
def test_summary_says_what_a_precision_costs(outcome: dict[str, Any], said: str) -> None:
    """An accuracy of zero is one, too."""
    (line,) = summary(Path("out"), with_int8(outcome))

    assert line.endswith(said)
