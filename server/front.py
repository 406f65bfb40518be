"""A front of `vilt-serve --workers`: handles HTTP and prepares images and texts for the engine process."""

import asyncio
import contextlib
import functools
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvloop
from pydantic_settings import CliApp
from starlette.types import ASGIApp

from models import image
from models.errors import ArtifactError
from models.manifest import load_artifact
from server import control, logs
from server.accepting import Acceptor, Tally
from server.app import create_app
from server.cpus import usable_cpus
from server.listening import Server
from server.remote import RemoteBackend
from server.settings import Settings
from server.types import ServedModel


class FrontServer(Server):
    """Shares connections with other fronts, reports when it listens, drains when told to, and ignores signals."""

    def __init__(
        self, app: ASGIApp, settings: Settings, backend: RemoteBackend, orders: socket.socket, tally: Tally
    ) -> None:
        super().__init__(app, settings, backend)
        self._orders = orders
        self._tally = tally

    async def accept_from(self, sockets: list[socket.socket]) -> None:
        await super().accept_from([])
        protocol: Callable[[], asyncio.Protocol] = functools.partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]  # as uvicorn does
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        connections = self.server_state.connections
        self.servers = [Acceptor(one, protocol, connections, self._tally) for one in sockets]  # type: ignore[misc]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and only then tell connections to end: also those that have just been accepted."""
        for acceptor in self.servers:
            acceptor.close()
            await acceptor.wait_closed()
        await super().shutdown(sockets)

    def tell(self, listeners: list[socket.socket]) -> None:
        self._orders.send(control.READY)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Front:
    """One front, from the supervisor's first order to the last."""

    def __init__(self, settings: Settings, listeners: list[socket.socket], tally: Tally) -> None:
        self._settings = settings
        self._listeners = listeners
        self._tally = tally
        self._first_welcome: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._backend = RemoteBackend(
            self._serves_the_same, limits_clients=settings.max_client_requests > 0, clock=time.perf_counter
        )
        self._server: Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def serve(self, orders: socket.socket) -> None:
        """Serve from when there is an engine process until told to end."""
        control.obey(orders, self._command)
        described = await self._first_welcome
        models = [known_here(folder, fields) for folder, fields in zip(self._settings.model, described, strict=True)]
        app = create_app(self._settings, models, self._backend)
        self._server = FrontServer(app, self._settings, self._backend, orders, self._tally)
        await self._server.serve(sockets=self._listeners)

    def _serves_the_same(self, described: list[dict[str, Any]]) -> bool:
        """Return whether an engine process serves the same artifacts as the first one did.

        If not, end this front, whose labels may be outdated; the supervisor starts another.
        """
        if not self._first_welcome.done():
            self._first_welcome.set_result(described)
        first = self._first_welcome.result()
        is_same = [fields["identity"] for fields in first] == [fields["identity"] for fields in described]
        if not is_same and self._server:
            self._server.force_exit = self._server.should_exit = True
        return is_same

    def _command(self, word: bytes, descriptors: list[int]) -> None:
        if word == control.CONNECT:
            connection, memory = descriptors
            task = asyncio.create_task(self._backend.connect(socket.socket(fileno=connection), memory))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        elif self._server is None:
            sys.exit()  # no client has been served yet
        else:
            self._server.drain()
            if word != control.DRAIN:
                self._server.drain()


def known_here(folder: Any, fields: dict[str, Any]) -> ServedModel:
    """Load what a front needs of an artifact: how to prepare images and texts, and the names of answers.

    Raises: ArtifactError: it cannot be loaded, or is not the one in the engine process.
    """
    artifact = load_artifact(folder, fields["precision"], on_gpu=fields["provider"] != "cpu", opens_graphs=False)
    if artifact.identity != fields["identity"]:
        raise ArtifactError(f"The artifact {folder} has been replaced since the model was loaded: restart the server.")
    image.warm_up(artifact.manifest.spec)
    artifact.text_encoder.encode("warm up?")
    return ServedModel(artifact=artifact, provider=fields["provider"], slice_size=fields["slice_size"])


def share_of(settings: Settings) -> Settings:
    """Divide the settings that are limits for all fronts together."""
    threads = settings.decode_threads or usable_cpus()
    return settings.model_copy(
        update={
            "decode_threads": math.ceil(threads / settings.workers),
            "decoded_cache_mb": settings.decoded_cache_mb / settings.workers,
            "max_bodies_mb": settings.max_bodies_mb / settings.workers,
        }
    )


async def serve(settings: Settings, orders: socket.socket, listeners: list[socket.socket], tally: Tally) -> None:
    await Front(share_of(settings), listeners, tally).serve(orders)


def main() -> None:
    orders, listening, tallies, number, *flags = sys.argv[1:]
    settings = CliApp.run(Settings, cli_args=flags)
    logs.configure(settings.log_format, settings.log_level)
    try:
        listeners = [socket.socket(fileno=int(descriptor)) for descriptor in listening.split(",")]
        tally = Tally(int(tallies), settings.workers, int(number))
        uvloop.run(serve(settings, socket.socket(fileno=int(orders)), listeners, tally))
    except ArtifactError as error:
        sys.exit(f"vilt-serve: {error}")


if __name__ == "__main__":
    main()
