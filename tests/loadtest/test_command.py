"""The command vilt-bench as a person meets it: its help."""

import re
from pathlib import Path

import pytest

from loadtest import trials
from loadtest.__main__ import main

TRIALS = {path.stem for path in Path(trials.__file__).parent.glob("*.py")} - {"__init__", "process", "trial"}


def help_of(*names: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["vilt-bench", *names, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_help_lists_every_benchmark_and_each_has_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of each, and what it is about and takes: argparse reads a % as a format."""
    names = re.findall(r"^    (\w+)\b", help_of(monkeypatch=monkeypatch, capsys=capsys), re.MULTILINE)

    assert len(names) > 20
    for name in names:
        text = help_of(name, monkeypatch=monkeypatch, capsys=capsys)
        assert text.startswith(f"usage: vilt-bench {name} ")
        assert "--output FILE" in text or "--output DIR" in text, name
        assert "Takes about" in text or name not in TRIALS, name
