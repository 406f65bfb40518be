"""The engine's side in one process: when the process ends because its engine cannot go on."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, TypeVar

import pytest
from fakes import FakeClock, FakeEngine, HeldEngine, features, served

from server import admission, watchdog
from server import backend as module
from server.admission import Admission
from server.backend import LocalBackend
from server.errors import EngineFault, Unavailable
from server.metrics import Metrics
from server.settings import Settings
from server.types import Entry, EntryResult, Urgency

T = TypeVar("T")
PATIENCE_S = 30.0


def local_backend(engine: FakeEngine | None = None, settings: Settings | None = None) -> LocalBackend:
    metrics, clock = Metrics(), FakeClock()
    settings = settings or Settings()
    return LocalBackend(settings, [served(engine or FakeEngine())], Admission(16, metrics, clock), metrics, clock)


def test_process_ends_when_the_loop_that_empties_the_queue_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It could answer nobody and would seem to drain for ever; only a process that has ended is restarted."""

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
    """A loop that was told to end has not failed."""

    async def scenario() -> str:
        backend = local_backend()
        async with backend.running():
            return await backend.status()

    assert asyncio.run(scenario()) == "ready"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldEngine]:
    """Return an engine whose runs wait for `may_run`, and are regarded as stuck at the first turn of the loop."""
    for constant, value in {"TURN_S": 0.001, "STUCK_S": 0.0, "STUCK_FACTOR": 0.0}.items():
        monkeypatch.setattr(watchdog, constant, value)
    monkeypatch.setattr(module, "LAST_WORDS_S", 0.05)
    held = HeldEngine()
    held.may_run.clear()
    yield held
    held.may_run.set()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the statuses with which the process would have ended."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


def ask(backend: LocalBackend, engine: FakeEngine, number: int) -> "asyncio.Future[EntryResult]":
    entry = Entry(
        model=served(engine), features=features(number), urgency=Urgency.INTERACTIVE, deadline_s=1e9, key=number
    )
    return backend.batcher.submit(entry)


def play(scenario: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


async def until(backend: LocalBackend, status: str) -> None:
    while await backend.status() != status:  # noqa: ASYNC110 a loop that turns is what is waited for
        await asyncio.sleep(0)


def test_server_is_stuck_while_a_run_does_not_end_and_ready_when_it_has(engine: HeldEngine) -> None:
    """A balancer leaves it out in the meantime, and waiting clients are answered after all."""

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

    assert play(scenario) == 7


def test_process_ends_when_a_run_never_does_once_all_who_wait_are_told(
    engine: HeldEngine, exits: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a process that has ended is restarted."""
    monkeypatch.setattr(watchdog, "HOPELESS_S", 0.01)

    async def scenario() -> list[BaseException | EntryResult]:
        backend = local_backend(engine)
        async with backend.running():
            asked = [ask(backend, engine, number) for number in range(9)]
            while not exits:  # noqa: ASYNC110 the process is what would end
                await asyncio.sleep(0)
            assert all(one.done() for one in asked)
            return await asyncio.gather(*asked, return_exceptions=True)

    told = play(scenario)

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
    """CUDA keeps failing until then. On a CPU a run fails because of its input, and the next may succeed."""
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
            if provider == "cpu":
                await asyncio.sleep(0.2)  # some turns, and the last words
            while provider == "cuda" and not exits:  # noqa: ASYNC110 the process is what would end
                await asyncio.sleep(0)

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
    """Python would wait for its thread until the process is killed."""
    if not is_stuck:
        monkeypatch.setattr(watchdog, "STUCK_S", 1e9)

    async def scenario() -> None:
        backend = local_backend(engine)
        async with backend.running():
            asked = ask(backend, engine, 1)
            while not engine.has_begun.is_set():  # noqa: ASYNC110 a thread is waited for
                await asyncio.sleep(0)
            await until(backend, "stuck" if is_stuck else "ready")
            for run in backend.admission.watchdog._runs:  # stuck in three turns, of which none has passed at the end
                run.stuck_after_s = min(run.stuck_after_s, run.turned_s + 2 * watchdog.TURN_S)
        await asyncio.gather(asked, return_exceptions=True)

    play(scenario)

    assert exits == [1]
    assert caplog.messages == ["a run of the model does not end: ending without waiting for it"]
