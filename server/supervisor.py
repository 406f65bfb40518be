"""`vilt-serve --workers`: binds the port, starts an engine process and fronts, restarts them, ends them."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_settings import CliApp

from server import addresses, control, logs
from server.accepting import Tally
from server.settings import Settings

log = logging.getLogger("server")
LASTED_S = 10.0  # a process that ends sooner after its start is restarted after a pause
PAUSES_S = (0.1, 4.0)  # the first, doubling up to the last
END_WITHIN_S = 5.0  # for the engine process, after its fronts have ended
ENGINE, FRONT = "engine_process", "front"


@dataclass(slots=True, eq=False)
class Child:
    """A process, the socket for its orders, and an engine process's memory or a front's tally of connections."""

    role: str
    process: asyncio.subprocess.Process
    orders: socket.socket
    memory: int | None
    tally: Tally | None
    is_ready: bool = False

    def tell(self, word: bytes, *descriptors: int) -> None:
        """Send an order; it is lost if the process is ending."""
        try:
            socket.send_fds(self.orders, [word], descriptors)
        except OSError:
            log.debug("a %s that is ending did not receive %r", self.role, word)

    def close(self) -> None:
        """Close the socket, at which the process ends if it has not already."""
        self.orders.close()
        if self.tally is not None:
            self.tally.withdraw()
        if self.memory is not None:
            os.close(self.memory)


class Supervisor:
    """The parent of all processes of a server."""

    def __init__(self, settings: Settings, flags: Sequence[str], listeners: list[socket.socket]) -> None:
        self._settings = settings
        self._flags = flags
        self._listeners = listeners
        self._children: set[Child] = set()
        self._tallies = os.memfd_create("vilt-connections")
        self._is_up = False
        self._ending = asyncio.Event()

    async def run(self) -> int:
        """Keep the processes running until a signal, or until the first start fails; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in control.SIGNALS:
            loop.add_signal_handler(number, self._end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, control.SIGNALS)  # signals that came during the start arrive now
        async with asyncio.TaskGroup() as group:  # if one cannot be kept running, all end
            engine = group.create_task(self._keep(ENGINE))
            fronts = [group.create_task(self._keep(FRONT, number)) for number in range(self._settings.workers)]
            statuses = await asyncio.gather(*fronts)
            for child in self._of(ENGINE):
                child.tell(control.QUIT)
                loop.call_later(END_WITHIN_S if self._is_up else 0.0, _kill, child.process)
        return max(*statuses, engine.result())

    def _of(self, role: str) -> list[Child]:
        return [child for child in self._children if child.role == role]

    def _ready(self) -> list[Child]:
        return [child for child in self._children if child.is_ready]

    def _end(self) -> None:
        """Have the fronts drain; the second time, have them end at once."""
        word = control.QUIT if self._ending.is_set() or not self._is_up else control.DRAIN
        self._ending.set()
        for listener in self._listeners:
            listener.close()
        for child in self._children:
            if child.role == FRONT or word == control.DRAIN:
                child.tell(word)

    async def _keep(self, role: str, number: int = 0) -> int:
        """Run a process, and another whenever it has ended; return the last one's exit status."""
        pause_s = 0.0
        while True:
            began_s = time.perf_counter()
            child = await self._start(role, number, began_s)
            ended = await child.process.wait()
            asyncio.get_running_loop().remove_reader(child.orders)
            self._children.discard(child)
            child.close()
            if self._ending.is_set():
                return int(ended != 0 and self._is_up)
            if not self._is_up:
                self._end()
                return 1
            lasted = time.perf_counter() - began_s >= LASTED_S
            pause_s = 0.0 if lasted else min(max(PAUSES_S[0], 2 * pause_s), PAUSES_S[1])
            log.error("%s %d ended with %d: another in %g s", role, child.process.pid, ended, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)
            if self._ending.is_set():  # perhaps during the pause
                return 1

    async def _start(self, role: str, number: int, began_s: float) -> Child:
        """Start a process, and connect it with those of the other role."""
        ours, theirs = control.pair()
        memory, tally = None, None
        if role == ENGINE:
            memory = os.memfd_create("vilt-patches")
            shared, more = [memory], [str(memory), str(began_s)]
        else:
            tally = Tally(self._tallies, self._settings.workers, number)
            tally.withdraw()  # until it accepts connections
            listening = [one.fileno() for one in self._listeners]
            shared = [*listening, self._tallies]
            more = [",".join(map(str, listening)), str(self._tallies), str(number)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"server.{role}", str(theirs.fileno()), *more, *self._flags,
            pass_fds=[theirs.fileno(), *shared], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        child = Child(role, process, ours, memory, tally)
        asyncio.get_running_loop().add_reader(ours, self._heard, child)
        for other in self._of(FRONT if role == ENGINE else ENGINE):
            _introduce(*((other, child) if role == ENGINE else (child, other)))
        self._children.add(child)
        if self._ending.is_set():  # while it was being started
            child.tell(control.QUIT)
        return child

    def _heard(self, child: Child) -> None:
        """Read a child's message: it is ready."""
        word, _ = control.read(child.orders)
        if word == control.GONE:
            asyncio.get_running_loop().remove_reader(child.orders)
            return
        child.is_ready = True
        if self._is_up:
            log.info("%s %d is ready", child.role, child.process.pid)
        elif not self._ending.is_set() and len(self._ready()) == 1 + self._settings.workers:
            self._is_up = True
            where = addresses.urls(self._listeners)
            log.info("%d fronts listen on %s (Press CTRL+C to quit)", self._settings.workers, where)


def _introduce(front: Child, engine: Child) -> None:
    """Connect a front with an engine process."""
    fronts_end, engines_end = socket.socketpair()
    with fronts_end, engines_end:
        assert engine.memory is not None, "an engine process has memory"  # noqa: S101 by how it is made
        front.tell(control.CONNECT, fronts_end.fileno(), engine.memory)
        engine.tell(control.CONNECT, engines_end.fileno())


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


def main() -> None:
    flags = sys.argv[1:]
    settings = CliApp.run(Settings, cli_args=flags)
    logs.configure(settings.log_format, settings.log_level)
    if not hasattr(os, "memfd_create"):
        sys.exit("vilt-serve: --workers needs shared memory that only Linux has: leave it at 1")
    listeners = addresses.take(settings.host, settings.port)
    sys.exit(asyncio.run(Supervisor(settings, flags, listeners).run()))


if __name__ == "__main__":
    main()
