"""A front: its share of the settings for all fronts, and the engine processes that it accepts."""

import asyncio
import gc
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fakes import CountedDesk, FakeEngine, Hall, served
from fastapi import FastAPI

from server import control
from server.accepting import Tally
from server.admission import Admission
from server.backend import LocalBackend
from server.front import Front, FrontServer, share_of
from server.metrics import Metrics
from server.remote import RemoteBackend
from server.settings import Settings

PATIENCE_S = 30.0


@pytest.mark.parametrize(
    ("workers", "bodies_mb", "threads", "cache_mb"), [(1, 512, 6, 64), (4, 128, 2, 16), (6, 512 / 6, 1, 64 / 6)]
)
def test_share_of_a_front_is_a_part_of_what_all_may_have(
    workers: int, bodies_mb: float, threads: int, cache_mb: float
) -> None:
    """Memory is divided exactly; each front has at least one thread."""
    settings = Settings(workers=workers, max_bodies_mb=512, decode_threads=6, decoded_cache_mb=64)

    share = share_of(settings)

    assert share.max_bodies_mb == pytest.approx(bodies_mb)
    assert (share.decode_threads, share.decoded_cache_mb) == (threads, pytest.approx(cache_mb))


def hall(**labels: str) -> Hall:
    """Open an engine process's side, of the shipped artifact or of one with other labels."""
    model, metrics = served(FakeEngine()), Metrics()
    manifest = model.artifact.manifest
    files = {**manifest.files, "labels.json": replace(manifest.files["labels.json"], **labels)}
    models = [replace(model, provider="cpu", artifact=replace(model.artifact, manifest=replace(manifest, files=files)))]
    admission = Admission(16, metrics, time.perf_counter)
    return Hall(LocalBackend(Settings(), models, admission, metrics, time.perf_counter), models)


async def introduce(engine: Hall, orders: socket.socket) -> None:
    """Connect a front with an engine process, as the supervisor does."""
    fronts_end, engines_end = socket.socketpair()
    with fronts_end:
        await CountedDesk(engine).open(engines_end, starts_in_s=1.5)
        socket.send_fds(orders, [control.CONNECT], [fronts_end.fileno(), engine.memory])


@pytest.fixture
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a front does to its process."""
    monkeypatch.setattr(control, "SIGNALS", ())  # which it ignores
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_own_process")
def test_front_ends_when_another_engine_process_serves_another_artifact() -> None:
    """Its labels are those of the first, and wrong for the other: it asks the other for nothing."""

    async def scenario() -> None:
        first, second = hall(), hall(sha256="0" * 64)
        orders, theirs = control.pair()
        orders.settimeout(PATIENCE_S)
        tallies = os.memfd_create("tallies")
        with orders, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
            async with first.local.running(), second.local.running():
                front = Front(Settings(), [listener], Tally(tallies, 1, 0))
                serving = asyncio.create_task(front.serve(theirs))
                await introduce(first, orders)
                assert await asyncio.to_thread(orders.recv, 1) == control.READY
                assert not serving.done()

                second.local.close()
                await introduce(second, orders)

                await serving
                assert await front._backend.status() == "ready"  # as the first is
        for engine in (first, second):  # the process would have ended, and its connections with it
            for desk in engine.desks:
                desk._channel.close()
            await engine.emptied()
        os.close(tallies)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_connection_that_is_just_being_opened_is_told_of_the_end() -> None:
    """Otherwise its client could go on asking until the drain is cut off."""

    class Connection:
        was_told = False

        def shutdown(self) -> None:
            self.was_told = True
            connections.discard(self)

    class Opening:
        """An acceptor that has accepted a connection in the last moment."""

        def close(self) -> None:
            pass

        async def wait_closed(self) -> None:
            connections.add(late)

    orders, theirs = control.pair()
    tallies = os.memfd_create("tallies")
    with orders, theirs:
        server = FrontServer(
            FastAPI(),
            Settings(),
            RemoteBackend(bool, limits_clients=False, clock=time.perf_counter),
            theirs,
            Tally(tallies, 1, 0),
        )
        late, connections = Connection(), server.server_state.connections
        server.servers, server.force_exit = [Opening()], True
        asyncio.run(server.shutdown([]))
    os.close(tallies)

    assert late.was_told
