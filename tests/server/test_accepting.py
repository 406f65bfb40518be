"""How fronts share connections; here, several fronts in one process, at one listening socket."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from server import accepting
from server.accepting import Acceptor, Tally

PATIENCE_S = 30.0


class Front(asyncio.Protocol):
    """A front's connections."""

    def __init__(self, listener: socket.socket, tally: Tally) -> None:
        self.open: list[asyncio.BaseTransport] = []
        self.tally, self._listener = tally, listener
        self.acceptor = Acceptor(listener, lambda: Connection(self.open), self.open, tally)

    async def end(self) -> None:
        self.acceptor.close()
        await self.acceptor.wait_closed()
        for transport in self.open:
            transport.close()
        await until(lambda: not self.open)
        self._listener.close()


class Connection(asyncio.Protocol):
    """Is listed while it is open."""

    def __init__(self, listed: list[asyncio.BaseTransport]) -> None:
        self._listed = listed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._listed.append(transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._listed.remove(self._transport)


@pytest.fixture
def tallies() -> Iterator[int]:
    descriptor = os.memfd_create("tallies")
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


async def until(has_happened: Callable[[], bool]) -> None:
    while not has_happened():  # noqa: ASYNC110 most of it sets no event
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def ending(*fronts: Front) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for front in fronts:
            await front.end()


@contextlib.contextmanager
def connected(listener: socket.socket, count: int) -> Iterator[None]:
    """Connect clients, all before any front can know."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        yield


def test_connections_that_come_at_once_are_shared_equally(tallies: int, listener: socket.socket) -> None:
    """Most of those that come later go to a front that has lost its own, once the others know."""

    async def scenario() -> None:
        fronts = [Front(listener.dup(), Tally(tallies, 3, number)) for number in range(3)]
        async with ending(*fronts):
            with connected(listener, 12):
                await until(lambda: sum(len(front.open) for front in fronts) == 12)
                assert [len(front.open) for front in fronts] == [4, 4, 4]

                for transport in fronts[1].open:
                    transport.close()
                await until(lambda: not fronts[1].open)
                with connected(listener, 3):
                    await until(lambda: sum(len(front.open) for front in fronts) == 11)
                    assert len(fronts[1].open) >= 2

    run(scenario)


@pytest.mark.parametrize("has_withdrawn", [False, True])
def test_front_that_takes_none_is_not_waited_for(tallies: int, listener: socket.socket, has_withdrawn: bool) -> None:
    """It has the fewest, but hangs, or has ended: the others take its part, the sooner if they know."""

    async def scenario() -> None:
        hanging = Tally(tallies, 2, 1)
        hanging.write(0)
        if has_withdrawn:
            hanging.withdraw()
        front = Front(listener.dup(), Tally(tallies, 2, 0))
        async with ending(front):
            with connected(listener, 3):
                await until(lambda: len(front.open) == 3)
                assert front.tally.is_least() is has_withdrawn

    run(scenario)


def test_closed_one_takes_none_and_is_not_counted(
    tallies: int, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after the pause in which it left a connection to the others."""
    monkeypatch.setattr(accepting, "PATIENCE_S", 0.2)

    async def scenario() -> None:
        other = Tally(tallies, 2, 1)
        other.write(0)
        front = Front(listener.dup(), Tally(tallies, 2, 0))
        async with ending(front):
            with connected(listener, 1):
                await until(lambda: len(front.open) == 1)
                with connected(listener, 1):
                    await until(lambda: not is_waiting(front))  # it leaves the second to the other, for a moment
                    front.acceptor.close()
                    await asyncio.sleep(2 * accepting.PATIENCE_S)
                    assert len(front.open) == 1
                other.write(1000)
                assert other.is_least()

    run(scenario)


def is_waiting(front: Front) -> bool:
    """Tell whether a front wakes when a connection comes."""
    return front._listener.fileno() in asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]


def test_failure_to_accept_is_logged_and_not_the_end(
    tallies: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While too many files are open, every attempt fails: there are few of them, and others do not wait for it."""
    monkeypatch.setattr(accepting, "NO_ROOM_S", 0.05)

    async def scenario() -> None:
        with Crowded() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            front = Front(listener, Tally(tallies, 1, 0))
            async with ending(front):
                other = Tally(tallies, 1, 0)
                with connected(listener, 1):
                    await until(lambda: listener.attempts == 1)
                    assert other._counts[0] == accepting.NONE_WANTED
                    await until(lambda: len(front.open) == 1)
            assert listener.attempts == 3

    run(scenario)
    assert caplog.text.count("no connection can be accepted") == 2


class Crowded(socket.socket):
    """A listening socket of a process that has too many files open, at first."""

    attempts = 0

    def accept(self) -> Any:
        self.attempts += 1
        if self.attempts <= 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()
