"""The supervisor's orders to its children, over one socket each: single bytes, some with file descriptors.

Children ignore signals, because terminals and service managers send them to all processes at once.
"""

import asyncio
import signal
import socket
from collections.abc import Callable

CONNECT = b"c"  # with a connection to the other side and, for a front, the engine's memory
DRAIN = b"d"
QUIT = b"q"
GONE = b""  # the supervisor has ended
READY = b"r"  # a child's only message
SIGNALS = (signal.SIGTERM, signal.SIGINT)  # that end a server
DESCRIPTORS = 2  # at most, with a command


def pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends: the supervisor's and the child's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def read(end: socket.socket) -> tuple[bytes, list[int]]:
    """Read the next word and its descriptors, which have arrived."""
    try:
        word, descriptors, _, _ = socket.recv_fds(end, 1, DESCRIPTORS)
    except ConnectionResetError:  # the other end was closed before all was read there
        return GONE, []
    return word, descriptors


def obey(control: socket.socket, command: Callable[[bytes, list[int]], None]) -> None:
    """Call `command` for each order, in the running loop; ignore signals from now on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    loop = asyncio.get_running_loop()

    def heard() -> None:
        word, descriptors = read(control)
        if word == GONE:
            loop.remove_reader(control)
        command(word, descriptors)

    loop.add_reader(control, heard)
