"""What processes hold: children count, and theirs."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from loadtest.trials import process
from loadtest.trials.process import held, resident_mb

HOLD_50_MB = "x = bytearray(b'x') * 50_000_000; print(flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD_50_MB!r}])"


def test_memory_descriptors_and_threads_of_children_count() -> None:
    """A supervisor holds little itself."""
    before = held(os.getpid())

    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()  # the grandchild has it by now
        alone, together = held(parent.pid), held(os.getpid())
        parent.stdin.write(b"\n")

    assert 50 < alone.resident_mb < together.resident_mb
    assert alone.threads >= 2
    assert together.threads >= before.threads + 2
    assert together.descriptors > before.descriptors
    assert resident_mb(os.getpid(), "VmHWM") >= before.resident_mb


def test_what_is_held_is_read_in_one_look_at_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of many it takes milliseconds, and two looks may differ."""
    looks = Mock(wraps=process._family)
    monkeypatch.setattr(process, "_family", looks)

    held(os.getpid())

    looks.assert_called_once()


def test_process_that_has_ended_is_told() -> None:
    """In a sentence, which the command prints."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is still there

    with pytest.raises(ValueError, match="has ended"):
        held(child.pid)
    child.wait()
    with pytest.raises(ValueError, match="has ended"):
        held(child.pid)
