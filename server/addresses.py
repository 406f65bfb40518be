"""The addresses that a server listens on: taken first, so that a model is not loaded for nothing."""

import asyncio
import os
import socket
import sys


def take(host: str, port: int) -> list[socket.socket]:
    """Take all addresses of a host, as uvicorn does, without listening: connections are refused until somebody does.

    Raises: SystemExit: one is taken, or none of ours; the message says which and why.
    """
    try:
        return asyncio.run(_bound(host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can be called so
        sys.exit(refusal(host, port, error))


async def _bound(host: str, port: int) -> list[socket.socket]:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    listeners = [one.dup() for one in server.sockets]
    server.close()
    return listeners


def refusal(host: str, port: int, error: Exception) -> str:
    """Say that a server cannot listen, and why."""
    match error:
        case socket.gaierror(strerror=str(why)):  # whose numbers are its own
            pass
        case OSError(errno=int(number)):
            why = os.strerror(number)  # without asyncio's words about the same address
        case _:
            why = str(error.__cause__ or error)  # a codec's words about itself, before those about the host
    return f"vilt-serve: cannot listen on {host}:{port}: {why.lower()}"


def urls(listeners: list[socket.socket]) -> str:
    """Write down where a server can be reached."""
    return ", ".join(_url(*one.getsockname()[:2]) for one in listeners)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
