"""What processes hold: children count, and theirs."""

import os
import subprocess
import sys

import pytest

from loadtest.trials.process import held, resident_mb

HOLD_50_MB = "x = bytearray(b'x') * 50_000_000; print(flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD_50_MB!r}])"


def test_memory_descriptors_and_threads_of_children_count() -> None:
    """A supervisor holds little itself."""
    before = held(os.getpid())

    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # the grandchild has it by now
        alone, together = held(process.pid), held(os.getpid())
        process.stdin.write(b"\n")

    assert 50 < alone.resident_mb < together.resident_mb
    assert alone.threads >= 2
    assert together.threads >= before.threads + 2
    assert together.descriptors > before.descriptors
    assert resident_mb(os.getpid(), "VmHWM") >= before.resident_mb


def test_process_that_has_ended_is_told() -> None:
    """In a sentence, which the command prints."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is still there

    with pytest.raises(ValueError, match="has ended"):
        held(process.pid)
    process.wait()
    with pytest.raises(ValueError, match="has ended"):
        held(process.pid)
