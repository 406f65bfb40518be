"""How fronts share connections: the one that has the fewest accepts the next.

All of them wait at the same listening sockets. Otherwise whoever wakes first takes all connections that wait: of 64
that were opened at once, one of six fronts got 46, and three got none.
"""

import asyncio
import errno
import logging
import mmap
import os
import socket
from collections.abc import Callable, Collection

log = logging.getLogger(__name__)

COUNT_BYTES = 8  # of a number of connections
NONE_WANTED = 2**62  # instead of one, while a front accepts none
PATIENCE_S = 0.002  # after which a front takes one of those that others, with fewer connections, have left waiting
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # errors that will happen again
NO_ROOM_S = 1.0  # from such an error to the next attempt


class Tally:
    """The number of connections of one front, in memory in which all fronts and the supervisor have theirs."""

    def __init__(self, descriptor: int, fronts: int, number: int) -> None:
        """Map the memory, an anonymous file, for so many fronts; `number` is this one's, from 0."""
        size = fronts * COUNT_BYTES
        os.ftruncate(descriptor, size)
        self._counts = memoryview(mmap.mmap(descriptor, size)).cast("q")
        self._number = number

    def write(self, count: int) -> None:
        """Let the others know."""
        self._counts[self._number] = count

    def withdraw(self) -> None:
        """Let the others know that this front accepts none."""
        self.write(NONE_WANTED)

    def is_least(self) -> bool:
        """Return whether no front had fewer when it last looked, which all do when a connection comes."""
        return self._counts[self._number] <= min(self._counts)


class Acceptor:
    """Accepts connections at one listening socket, one at a time, while no other front has fewer."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        tally: Tally,
    ) -> None:
        """Begin to accept; `connections` are all that this front has, of any listener."""
        self._listener, self._protocol = listener, protocol
        self._connections, self._tally = connections, tally
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_closed = False
        listener.setblocking(False)
        self._tell()
        self._wait()

    def close(self) -> None:
        """Accept no more."""
        self._is_closed = True
        self._loop.remove_reader(self._listener)
        self._tally.withdraw()

    async def wait_closed(self) -> None:
        """Wait until what was accepted is open."""
        await asyncio.gather(*self._opening)

    def _tell(self) -> None:
        self._tally.write(len(self._connections) + len(self._opening))

    def _wait(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listener, self._take_turn)

    def _take_turn(self) -> None:
        """Accept the connection that waits, or leave it to a front with fewer for a moment."""
        self._tell()
        if self._tally.is_least():
            self._accept()
            return
        self._loop.remove_reader(self._listener)
        self._loop.call_later(PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._wait()
        self._accept()

    def _accept(self) -> None:
        if self._is_closed:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # mostly because another front was faster, or the client has gone
            if error.errno in NO_ROOM:
                log.exception("no connection can be accepted")
                self._tally.withdraw()
                self._loop.remove_reader(self._listener)
                self._loop.call_later(NO_ROOM_S, self._wait)
            return
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._tell()

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # it has already been closed
            connection.close()
