"""A server that is started for a measurement ends with it."""

from pathlib import Path

import pytest

from loadtest import launch

STUBBORN = """
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Ready).serve_forever()
"""


def test_server_that_does_not_end_is_killed_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark may not wait for it for ever."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "EXIT_WITHIN_S", 0.2)

    with launch.started(module="stubborn") as own:
        pass

    assert own.process.returncode == -9
    assert launch.ended(own.process) == -9
    assert "was told to end and killed after 0.2 s" in capsys.readouterr().err


def test_exit_code_of_a_server_that_was_killed_is_not_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a claim that it is fails, and the trial goes on."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "EXIT_WITHIN_S", 0.2)

    with launch.started(module="stubborn") as own:
        own.process.terminate()

        assert launch.ended(own.process) == "killed after 0.2 s"
