"""A root file system run as a container engine would run it: its user, read-only, process 1 of its own, no privileges.

No engine is needed, so the same checks run on a laptop and inside a container; but root is, and Linux.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

READY_WITHIN_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Container:
    """A process 1, and how to reach it."""

    runner: "subprocess.Popen[bytes]"
    pid: int  # as this machine counts
    url: str
    root: Path
    config: Mapping[str, Any]

    def stop(self, within_s: float = 60.0) -> int:
        """Send SIGTERM to process 1, wait, and tell its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.runner.wait(within_s)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command beside process 1: the same files, user and environment."""
        port = self.url.rpartition(":")[2]
        environment = [*self.config["Env"], f"VILT_PORT={port}"]
        user = self.config["User"].split(":")
        inside = [  # its namespaces and its root
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--pid",
            "--root",
            f"--setuid={user[0]}",
            f"--setgid={user[1]}",
        ]
        whole = [*inside, "env", "--ignore-environment", *environment, *command]
        return subprocess.run(whole, check=False, capture_output=True, text=True, timeout=60)

    def status(self) -> dict[str, str]:
        """Read what the kernel says of process 1."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def started(root: Path, config: Mapping[str, Any], *, ready: bool = True, log: Path) -> Iterator[Container]:
    """Start the entry point, yield it when it is ready or at once, and leave nothing behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = config["User"]
    uid, _, gid = user.partition(":")
    volumes = [
        f"mount -t tmpfs -o uid={uid},gid={gid},mode=0700 volume {shlex.quote(f'{root}{path}')}"
        for path in config["Volumes"]
    ]
    entry = [*config["Entrypoint"], *(config.get("Cmd") or [])]
    steps = [
        "set -e",
        f"mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        *volumes,
        f"mount -o remount,bind,ro {root}",
        f"exec setpriv --no-new-privs chroot --userspec={user} {root} env --ignore-environment "
        + shlex.join([*config["Env"], f"VILT_PORT={port}", *entry]),
    ]
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(steps)]
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT) as runner:
        try:
            pid = _child(runner)
            container = Container(runner, pid, f"http://127.0.0.1:{port}", root, config)
            if ready:
                _wait(container, log)
            yield container
        finally:
            for child in _children(runner):  # --kill-child means nothing to who has changed its user
                os.kill(child, signal.SIGKILL)
            runner.kill()


def _child(runner: "subprocess.Popen[bytes]") -> int:
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s:
        if found := _children(runner):
            return found[0]
        time.sleep(POLL_S)
    raise AssertionError("unshare started nothing")


def _children(runner: "subprocess.Popen[bytes]") -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _wait(container: Container, log: Path) -> None:
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s and container.runner.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{container.url}/readyz").status_code == httpx.codes.OK:
                return
        time.sleep(POLL_S)
    raise AssertionError(f"the container did not become ready: {log.read_text()}")
