"""uvicorn, as this server runs it and ends it."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from server import addresses
from server.backend import Backend
from server.connections import protocol
from server.settings import Settings

log = logging.getLogger("server")


class Server(uvicorn.Server):
    """uvicorn that, when told to end, is not ready but keeps serving for a pause, drains, and ends with status 0."""

    def __init__(self, app: ASGIApp, settings: Settings, backend: Backend) -> None:
        config = uvicorn.Config(
            app,
            http=protocol(settings.receive_timeout_s),
            ws="none",
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_timeout_s,
        )
        super().__init__(config)
        self._backend = backend
        self._drain_pause_s = settings.drain_pause_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; exclude all objects so far from garbage collection, which would take 30 ms each time."""
        try:
            for one in sockets or []:  # another server may already listen there, which uvicorn would ignore
                one.listen(self.config.backlog)
        except OSError as error:
            sys.exit(addresses.refusal(self.config.host, self.config.port, error))
        await self.accept_from(sockets or [])
        gc.freeze()
        self.tell(sockets or [])

    async def accept_from(self, sockets: list[socket.socket]) -> None:
        """Start the application and accept connections."""
        await super().startup(sockets)

    def tell(self, listeners: list[socket.socket]) -> None:
        """Log where it listens."""
        log.info("listening on %s (Press CTRL+C to quit)", addresses.urls(listeners))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first signal, end at once at the second; uvicorn would raise it again and exit with 143."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        yield

    def drain(self) -> None:
        """Begin to drain; the second time, end at once."""
        if self._backend.is_draining:
            self.force_exit = self.should_exit = True
            return
        log.info("draining: serving for %g s more, then ending", self._drain_pause_s)
        self._backend.close()
        asyncio.get_running_loop().call_later(self._drain_pause_s, setattr, self, "should_exit", True)
