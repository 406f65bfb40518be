"""What the supervisor tells its children, over a socket each: single bytes, some with descriptors.

Children ignore signals, which terminals and service managers send to all processes at once.
"""

import asyncio
import signal
import socket
from collections.abc import Callable

CONNECT = b"c"  # with a connection to the other side; for a front, with the engine's memory, too
DRAIN = b"d"
QUIT = b"q"
GONE = b""  # the supervisor has ended
READY = b"r"  # a child's only word
SIGNALS = (signal.SIGTERM, signal.SIGINT)  # that end a server
DESCRIPTORS = 2  # at most, with a command


def pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends: the supervisor's and the child's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def read(end: socket.socket) -> tuple[bytes, list[int]]:
    """Take the next word, which is there, and the descriptors that came with it."""
    try:
        word, descriptors, _, _ = socket.recv_fds(end, 1, DESCRIPTORS)
    except ConnectionResetError:  # the other end was closed before all was read there
        return GONE, []
    return word, descriptors


def obey(control: socket.socket, command: Callable[[bytes, list[int]], None]) -> None:
    """Hand each command to a function, in the running loop; from now on ignore signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    loop = asyncio.get_running_loop()

    def heard() -> None:
        word, descriptors = read(control)
        if word == GONE:
            loop.remove_reader(control)
        command(word, descriptors)

    loop.add_reader(control, heard)
