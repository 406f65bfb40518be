"""The engine's side in one process: what becomes of the process without its loop."""

import asyncio

import pytest
from fakes import FakeClock, FakeEngine, served

from server.admission import Admission
from server.backend import LocalBackend
from server.metrics import Metrics
from server.settings import Settings


def local_backend() -> LocalBackend:
    metrics, clock = Metrics(), FakeClock()
    return LocalBackend(Settings(), [served(FakeEngine())], Admission(16, metrics, clock), metrics, clock)


def test_process_ends_when_the_loop_that_empties_the_queue_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It could answer nobody, would look as if it drained for ever, and only who has ended is started again."""

    async def scenario() -> None:
        backend = local_backend()

        async def run() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(backend.batcher, "run", run)
        async with backend.running():
            await asyncio.sleep(10)

    with pytest.raises(SystemExit) as ended:
        asyncio.run(scenario())

    assert ended.value.code == 1
    assert "ZeroDivisionError" in caplog.text


def test_process_goes_on_when_its_backend_has_ended_in_order() -> None:
    """An end of the loop that was asked for is no failure."""

    async def scenario() -> str:
        backend = local_backend()
        async with backend.running():
            return await backend.status()

    assert asyncio.run(scenario()) == "ready"
