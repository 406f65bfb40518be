"""The engine process of `vilt-serve --workers`: loads the models, and has a desk for each front."""

import asyncio
import gc
import os
import socket
import sys
import time

import uvloop
from pydantic_settings import CliApp

from models.errors import ArtifactError
from server import control, logs
from server.admission import Admission
from server.backend import LocalBackend
from server.desk import Desk, slots_of
from server.loading import load
from server.metrics import Metrics
from server.settings import Settings
from server.types import LoadedModel

# How long an engine thread that has copied its batch waits for the busy event loop; Python's own is 0.005.
SWITCH_S = 0.0005


async def serve(
    settings: Settings, models: list[LoadedModel], orders: socket.socket, memory: int, began_s: float
) -> None:
    """Serve fronts until the supervisor says that there will be no more."""
    processes = {os.getppid(), os.getpid()}
    metrics = Metrics(processes)
    admission = Admission(settings.max_queue_entries, metrics, time.perf_counter)
    backend = LocalBackend(settings, models, admission, metrics, time.perf_counter)
    slots = slots_of(memory, models, settings.max_queue_entries)
    starts_in_s = time.perf_counter() - began_s
    ended = asyncio.Event()
    opening: set[asyncio.Task[None]] = set()

    def command(word: bytes, descriptors: list[int]) -> None:
        if word == control.CONNECT:
            desk = Desk(backend, models, slots, processes)
            task = asyncio.create_task(desk.open(socket.socket(fileno=descriptors[0]), starts_in_s))
            opening.add(task)
            task.add_done_callback(opening.discard)
        elif word == control.DRAIN:
            backend.close()
        else:
            ended.set()

    async with backend.running():
        control.obey(orders, command)
        gc.freeze()  # as Server.startup
        orders.send(control.READY)
        await ended.wait()


def main() -> None:
    orders, memory, began_s, *flags = sys.argv[1:]
    settings = CliApp.run(Settings, cli_args=flags)
    logs.configure(settings.log_format, settings.log_level)
    sys.setswitchinterval(SWITCH_S)
    try:
        models = load(settings)
    except ArtifactError as error:
        sys.exit(f"vilt-serve: {error}")
    uvloop.run(serve(settings, models, socket.socket(fileno=int(orders)), int(memory), float(began_s)))


if __name__ == "__main__":
    main()
