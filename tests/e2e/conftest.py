"""A real server on a real socket, with the shipped artifact."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest

COMMAND = [sys.executable, "-m", "server", "--port", "0"]  # a --port that follows goes before
MODES = {"one process": [], "two fronts": ["--workers", "2"]}  # flags by how the server is laid out
STARTS_WITHIN_S = 120.0  # on a machine that has much else to do
LISTENING = re.compile(r"http://127\.0\.0\.1:\d+")


@dataclass
class Running:
    """A server process that listens, and where."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client
    log: list[str] = field(default_factory=list)  # since it listens
    reader: threading.Thread | None = None  # of its log


def start(*flags: str, executable: str = sys.executable, module: str = "server") -> Running:
    """Start vilt-serve, or a module that is one, on a free port and read the port off its log."""
    command = [executable, "-m", module, *COMMAND[3:], *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = []
    hangs = threading.Timer(STARTS_WITHIN_S, process.kill)
    hangs.start()
    for line in process.stderr:
        seen.append(line)
        if found := LISTENING.search(line):
            hangs.cancel()
            return Running(process, found[0], httpx.Client(base_url=found[0], timeout=60))
    hangs.cancel()
    raise AssertionError(f"the server ended: {''.join(seen)}")


def connect(running: Running) -> socket.socket:
    """Open a connection, to send what no HTTP client would."""
    address = urlsplit(running.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def stop(running: Running) -> None:
    running.client.close()
    running.process.kill()
    running.process.wait()
    if running.reader:
        running.reader.join(timeout=30)  # until every process that writes to the log has ended
        assert not running.reader.is_alive()
    assert running.process.stderr is not None
    running.process.stderr.close()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What servers of these tests measure is kept from one to the next, and from the user's own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VILT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", params=MODES)
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    running = start("--log-level", "info", "--log-format", "json", *MODES[request.param])
    drain(running)
    yield running
    stop(running)


def drain(running: Running) -> None:
    """Keep reading the log, or the pipe fills up and the server waits."""
    stderr = running.process.stderr
    assert stderr is not None
    running.reader = threading.Thread(target=lambda: running.log.extend(stderr), daemon=True)
    running.reader.start()
