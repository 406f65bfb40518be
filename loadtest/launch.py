"""A server to measure: one that is running already, or one that is started and stopped."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest import credentials

READY_WITHIN_S = 120.0
POLL_S = 0.1
EXIT_WITHIN_S = 60.0
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Started:
    """A server that we started, and its process."""

    url: str
    process: "subprocess.Popen[bytes]"
    ready_after_s: float
    flags: tuple[str, ...]  # it was started with these


def bypass_proxy() -> None:
    """Reach servers on this machine directly: a proxy from the environment would look for them on its own machine."""
    others = urllib.request.getproxies_environment().get("no", "")
    if others.strip() != "*":  # "*" means every host, but only alone
        os.environ["no_proxy"] = ",".join(name for name in dict.fromkeys([*others.split(","), *THIS_MACHINE]) if name)


@contextlib.contextmanager
def server(url: str | None, model: Path | None = None) -> Iterator[str]:
    """Yield the URL of a ready server: the one at `url`, or one that is started with an artifact.

    Raises: SystemExit: it does not become ready; the message says why.
    """
    if url is None:
        with started(model=model) as own:
            yield own.url
        return
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    _wait(url, None)
    yield url


@contextlib.contextmanager
def started(
    flags: Sequence[str] = (),
    *,
    model: Path | None = None,
    module: str = "server",
    port: int | None = None,
    ready_within_s: float = READY_WITHIN_S,
) -> Iterator[Started]:
    """Start a server (`vilt-serve` by default) on a free port, yield it when it is ready, and stop it afterwards.

    Raises: SystemExit: it does not become ready; the message says why.
    """
    port = port or free_port()
    flags = (*(("--model", str(model)) if model else ()), *flags)
    command = [sys.executable, "-m", module, "--port", str(port), "--log-level", "warning", *flags]
    began_s = time.monotonic()
    with subprocess.Popen(command, env=credentials.without()) as process:  # noqa: S603 our own command
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, ready_within_s)
            yield Started(url, process, time.monotonic() - began_s, flags)
        finally:
            process.terminate()
            ended(process)


def ended(process: "subprocess.Popen[bytes]") -> int | str:
    """Wait for a process that was told to end and return its exit code; if it does not end, kill it and say so."""
    try:
        return process.wait(EXIT_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"process {process.pid} was told to end and killed after {EXIT_WITHIN_S:g} s", file=sys.stderr)
        return f"killed after {EXIT_WITHIN_S:g} s"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait(url: str, process: "subprocess.Popen[bytes] | None", ready_within_s: float = READY_WITHIN_S) -> None:
    until_s = time.monotonic() + ready_within_s
    while time.monotonic() < until_s:
        if process is not None and process.poll() is not None:
            sys.exit("the server ended before it was ready; see its last line above")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                return
        if process is None:
            sys.exit(f"no server is ready at {url}: start one with vilt-serve, or omit --url")
        time.sleep(POLL_S)
    sys.exit(f"the server at {url} was not ready within {ready_within_s:g} s")
