"""The queue: who goes first, who goes together, and that every future is resolved."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from fakes import FakeClock, FakeEngine, features, served

from server.batcher import Batcher
from server.errors import DeadlineExceeded, EngineFault, Unavailable
from server.metrics import Metrics
from server.types import Entry, Urgency

T = TypeVar("T")


class Bench:
    """A batcher with a fake engine and a clock set by hand."""

    def __init__(self, *, max_batch_size: int = 4, failures: int = 0) -> None:
        self.engine = FakeEngine(failures=failures)
        self.model = served(self.engine, max_batch_size=max_batch_size)
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.batcher = Batcher(self.clock, self.metrics)

    def entry(
        self, number: int, *, rank: bool = False, columns: int = 1, length: int = 3, deadline_s: float = 1e9
    ) -> Entry:
        urgency = Urgency.RANK if rank else Urgency.INTERACTIVE
        pair = features(number, columns=columns, length=length)
        return Entry(model=self.model, features=pair, urgency=urgency, deadline_s=deadline_s)

    async def run_all(self, entries: list[Entry]) -> list[object]:
        """Queue entries while the engine is held, so that they are all waiting when it is not."""
        self.engine.may_run.clear()
        waiting = [asyncio.create_task(self.batcher.submit(entry)) for entry in entries]
        await asyncio.sleep(0)
        loop = asyncio.create_task(self.batcher.run())
        self.engine.may_run.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return results

    def dropped(self, reason: str) -> float | None:
        return self.metrics.registry.get_sample_value("vilt_dropped_entries_total", {"reason": reason})


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(scenario(), timeout=30))


def test_batch_of_waiting_entries_is_formed_at_once_and_answers_each() -> None:
    """What waits runs together, up to the limit, oldest first; each gets its own logits."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(max_batch_size=4)
        return bench, await bench.run_all([bench.entry(number) for number in range(1, 7)])

    bench, results = run(scenario)

    assert bench.engine.batches == [[1, 2, 3, 4], [5, 6]]
    assert [result.logits["rank_logits"][0] for result in results] == [1, 2, 3, 4, 5, 6]


def test_batch_of_limit_one_runs_entries_alone() -> None:
    """A limit of one is kept."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=1)
        await bench.run_all([bench.entry(number) for number in range(1, 4)])
        return bench

    assert run(scenario).engine.batches == [[1], [2], [3]]


def test_batch_prefers_equal_grids_then_near_lengths() -> None:
    """The oldest entry chooses its mates, so that little is padding."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=3)
        shapes = [(1, 3), (2, 3), (1, 9), (1, 4), (2, 3)]  # (columns, text length)
        entries = [bench.entry(n, columns=c, length=length) for n, (c, length) in enumerate(shapes, start=1)]
        await bench.run_all(entries)
        return bench

    assert run(scenario).engine.batches == [[1, 4, 3], [2, 5]]


def test_interactive_entry_goes_ahead_of_a_rank_s_slices() -> None:
    """A question waits behind no slice that has not begun, and slices run one at a time."""

    async def scenario() -> Bench:
        bench = Bench()
        entries = [*[bench.entry(number, rank=True) for number in (1, 2, 3)], bench.entry(9)]
        await bench.run_all(entries)
        return bench

    assert run(scenario).engine.batches == [[9], [1], [2], [3]]


def test_failing_batch_fails_its_own_entries_only() -> None:
    """An engine fault is named, and the loop goes on."""

    async def scenario() -> list[object]:
        bench = Bench(max_batch_size=2, failures=1)
        return await bench.run_all([bench.entry(number) for number in (1, 2, 3)])

    first, second, third = run(scenario)

    assert isinstance(first, EngineFault)
    assert isinstance(second, EngineFault)
    assert third.logits["rank_logits"][0] == 3


def test_expired_entry_is_dropped_with_deadline_exceeded_and_counted() -> None:
    """No engine time is spent on an answer that nobody can use."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench()
        entries = [bench.entry(1, deadline_s=bench.clock.now_s - 1), bench.entry(2)]
        return bench, await bench.run_all(entries)

    bench, (first, second) = run(scenario)

    assert isinstance(first, DeadlineExceeded)
    assert second.logits["rank_logits"][0] == 2
    assert bench.engine.batches == [[2]]
    assert bench.dropped("expired") == 1


def test_cancelled_entry_is_dropped_and_counted() -> None:
    """A caller who left costs nothing more."""

    async def scenario() -> Bench:
        bench = Bench()
        entries = [bench.entry(1), bench.entry(2)]
        entries[0].future.cancel()
        await bench.run_all(entries)
        return bench

    bench = run(scenario)

    assert bench.engine.batches == [[2]]
    assert bench.dropped("cancelled") == 1


def test_ended_loop_resolves_what_waits_and_refuses_what_comes() -> None:
    """Nobody waits for a loop that is gone."""

    async def scenario() -> list[object]:
        bench = Bench()
        bench.engine.may_run.clear()
        loop = asyncio.create_task(bench.batcher.run())
        waiting = [asyncio.create_task(bench.batcher.submit(bench.entry(number))) for number in range(6)]
        await asyncio.sleep(0)
        loop.cancel()
        bench.engine.may_run.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(Unavailable):
            await bench.batcher.submit(bench.entry(7))
        return results

    assert [type(result) for result in run(scenario)] == [Unavailable] * 6
