"""The engine's side in one process: what becomes of the process without its loop."""

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

import pytest
from fakes import FakeClock, FakeEngine, HeldEngine, features, served

from server import admission, watchdog
from server import backend as module
from server.admission import Admission
from server.backend import LocalBackend
from server.errors import EngineFault, Unavailable
from server.metrics import Metrics
from server.settings import Settings
from server.slowest import RequestRecord
from server.types import Entry, EntryResult, Urgency


def local_backend(engine: FakeEngine | None = None, settings: Settings | None = None) -> LocalBackend:
    metrics, clock = Metrics(), FakeClock()
    settings = settings or Settings()
    return LocalBackend(settings, [served(engine or FakeEngine())], Admission(16, metrics, clock), metrics, clock)


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


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldEngine]:
    """Make an engine whose runs do not end before they may, and are taken for stuck at the first turn of the loop."""
    for constant, value in {"TURN_S": 0.001, "STUCK_S": 0.0, "STUCK_FACTOR": 0.0}.items():
        monkeypatch.setattr(watchdog, constant, value)
    monkeypatch.setattr(module, "LAST_WORDS_S", 0.05)
    held = HeldEngine()
    held.may_run.clear()
    yield held
    held.may_run.set()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the statuses with which the process would have ended at once."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


def ask(backend: LocalBackend, engine: FakeEngine, number: int) -> "asyncio.Task[EntryResult]":
    entry = Entry(
        model=served(engine), features=features(number), urgency=Urgency.INTERACTIVE, deadline_s=1e9, key=number
    )
    return asyncio.create_task(backend.batcher.submit(entry))


async def until(backend: LocalBackend, status: str) -> None:
    while await backend.status() != status:  # noqa: ASYNC110 a loop that turns is what is waited for
        await asyncio.sleep(0)


def test_server_is_stuck_while_a_run_does_not_end_and_ready_when_it_has(engine: HeldEngine) -> None:
    """Whoever balances leaves it out in the meantime, and those who wait are answered after all."""

    async def scenario() -> float:
        backend = local_backend(engine)
        async with backend.running():
            asked = ask(backend, engine, 7)
            await until(backend, "stuck")
            assert b"\nvilt_ready 0.0" in await backend.report("metrics")
            engine.may_run.set()
            result = await asked
            await until(backend, "ready")
            return float(result.logits["rank_logits"][0])

    assert asyncio.run(scenario()) == 7


def test_process_ends_when_a_run_never_does_once_all_who_wait_are_told(
    engine: HeldEngine, exits: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only who has ended is started again."""
    monkeypatch.setattr(watchdog, "HOPELESS_S", 0.01)

    async def scenario() -> list[BaseException | EntryResult]:
        backend = local_backend(engine)
        async with backend.running():
            asked = [ask(backend, engine, number) for number in range(9)]
            while not exits:  # noqa: ASYNC110 the process is what would end
                await asyncio.sleep(0)
            assert all(one.done() for one in asked)
            return await asyncio.gather(*asked, return_exceptions=True)

    told = asyncio.run(scenario())

    assert [type(one) for one in told] == [Unavailable] * 9
    assert exits == [1]
    assert caplog.messages == ["a run of the model does not end: ending, to be started again"]


@pytest.mark.parametrize("provider", ["cuda", "cpu"])
def test_process_with_a_broken_gpu_ends(
    engine: HeldEngine,
    exits: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    provider: Literal["cpu", "cuda"],
) -> None:
    """CUDA goes on failing until then. On a CPU a run fails for its input, and another may succeed."""
    monkeypatch.setattr(watchdog, "STUCK_S", 1e9)
    monkeypatch.setattr(admission, "BROKEN_S", 0.0)
    engine.failures = admission.BROKEN_FAULTS
    engine.may_run.set()

    async def scenario() -> None:
        backend = local_backend(engine, Settings(provider=provider))
        async with backend.running():
            for number in range(admission.BROKEN_FAULTS):
                with pytest.raises(EngineFault):
                    await ask(backend, engine, number)
            await asyncio.sleep(0.2)  # some turns, and the last words

    asyncio.run(scenario())

    ends = provider == "cuda"
    assert exits == ([1] if ends else [])
    assert ("all runs of the model fail: ending, to be started again" in caplog.messages) is ends


@pytest.mark.parametrize("is_stuck", [False, True], ids=["not stuck yet", "stuck"])
def test_process_that_is_told_to_end_does_not_wait_for_a_run_that_does_not(
    engine: HeldEngine,
    exits: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_stuck: bool,
) -> None:
    """Python would wait for its thread until somebody kills the process."""
    if not is_stuck:
        monkeypatch.setattr(watchdog, "TURN_S", 0.05)

    async def scenario() -> None:
        backend = local_backend(engine)
        async with backend.running():
            asked = ask(backend, engine, 1)
            while not engine.has_begun.is_set():  # noqa: ASYNC110 a thread is waited for
                await asyncio.sleep(0)
            await until(backend, "stuck" if is_stuck else "ready")
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(scenario())

    assert exits == [1]
    assert caplog.messages == ["a run of the model does not end: ending in spite of it"]


def test_time_that_answers_took_to_prepare_is_expected_of_the_next() -> None:
    """A tenth of what the last one took; a refusal, which had no picture decoded, teaches nothing."""
    backend = local_backend()
    about = {"request_id": "a", "task": "vqa", "model": "shapes", "when": datetime.now(UTC), "total_ms": 1000}
    stages = {"decode": 200, "preprocess": 200, "tokenize": 100, "queue": 400}
    admit = {"urgency": Urgency.INTERACTIVE, "entries": 1, "client": ""}

    backend.record(RequestRecord(**about, status=200, code="ok", timing_ms=stages))
    backend.record(RequestRecord(**about, status=422, code="invalid_image", timing_ms={"decode": 60_000}))

    with (
        backend.permit("shapes", **admit, deadline_s=1e9, key="a"),
        pytest.raises(Unavailable) as refused,
        backend.permit("shapes", **admit, deadline_s=100.05, key="b"),
    ):
        pass
    assert refused.value.details == {"queued_ms": 10, "estimate_ms": 65, "deadline_ms": 50}
