"""Locust as a process of the trial: it ends with it, whatever happens."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from loadtest.trials.users import carry_out


def test_locust_that_does_not_end_is_killed_and_the_reason_is_told(tmp_path: Path) -> None:
    """It would go on asking, and disturb the next trial."""
    pid = tmp_path / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"

    with pytest.raises(ValueError, match="Locust did not end within 2 s"):
        asyncio.run(carry_out([sys.executable, "-c", script], 2))

    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_locust_that_fails_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """What it wrote about it stands above."""
    with pytest.raises(ValueError, match="Locust failed"):
        asyncio.run(carry_out([sys.executable, "-c", "raise SystemExit('why')"], 60))

    assert capfd.readouterr().err == "why\n"
