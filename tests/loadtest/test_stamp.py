"""What a result says of where and with what it was measured."""

import json
import subprocess
from pathlib import Path

import pytest

from loadtest import stamp


def test_variables_that_matter_are_told_and_keys_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the server and of what computes; of the rest nothing."""
    told = {"VILT_THREADS": "2", "OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_ARENA_MAX": "1"}
    secret = dict.fromkeys(("VILT_API_KEY", "VILT_API_KEYS", "HOME"), "secret")
    for name, value in (told | secret | {"ORT_DISABLE_TELEMETRY": "1"}).items():
        monkeypatch.setenv(name, value)

    environment = stamp.stamp()["environment"]

    assert told.items() <= environment.items()
    assert "ORT_DISABLE_TELEMETRY" not in environment  # our packages set it
    assert "secret" not in json.dumps(environment)


@pytest.mark.parametrize(("changes", "uncommitted"), [("", False), ("x", True)], ids=["as committed", "changed"])
def test_changes_that_were_not_committed_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: str, uncommitted: bool
) -> None:
    """The commit alone would name other sources."""
    file = tmp_path / "stamp.py"
    file.touch()
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    file.write_text(changes)
    monkeypatch.setattr(stamp, "__file__", str(file))

    described = stamp.stamp()

    assert described["commit"]
    assert described["uncommitted"] is uncommitted


def test_sources_outside_a_clone_have_no_commit_and_no_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody knows either."""
    monkeypatch.setattr(stamp, "__file__", str(tmp_path / "stamp.py"))

    described = stamp.stamp()

    assert described["commit"] is None
    assert described["uncommitted"] is None
