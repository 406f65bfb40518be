"""The queue and its loop: which entries go first, which run together, and that every future is resolved."""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
from fakes import FakeClock, HeldEngine, features, latency, served

from models.batch import Features
from server.batcher import BETWEEN_S, Batcher
from server.errors import DeadlineExceeded, EngineFault, Unavailable
from server.latency import DRIFT_SMOOTHING
from server.metrics import Metrics
from server.queue import LOOK_AHEAD, RANK_TURN
from server.types import EngineOutput, Entry, EntryResult, Urgency

T = TypeVar("T")


class Bench:
    """A batcher with a fake engine and a clock set by hand."""

    def __init__(
        self,
        *,
        max_batch_size: int = 4,
        failures: int = 0,
        not_numbers: Sequence[int] = (),
        per_token_s: float = 0.0,
        kept_logits: int = 0,
        overlapping: int = 1,
    ) -> None:
        self.engine = HeldEngine(failures=failures, not_numbers=not_numbers, overlapping=overlapping)
        self.model = served(self.engine, max_batch_size=max_batch_size, runs=latency(per_token_s=per_token_s))
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.reports: list[bool] = []
        self.batcher = Batcher(
            self.clock, self.metrics, overlapping=overlapping, kept_logits=kept_logits, report=self.reports.append
        )

    def entry(
        self,
        number: int,
        *,
        rank: bool = False,
        columns: int = 1,
        length: int = 3,
        deadline_s: float = 1e9,
        client: str = "",
        key: Hashable | None = None,
    ) -> Entry:
        urgency = Urgency.RANK if rank else Urgency.INTERACTIVE
        pair = features(number, columns=columns, length=length)
        return Entry(
            model=self.model,
            features=pair,
            urgency=urgency,
            deadline_s=deadline_s,
            client=client,
            key=object() if key is None else key,
        )

    async def run_all(self, entries: list[Entry]) -> list[object]:
        """Queue entries while the engine is held, so that all of them are waiting when it is released."""
        self.engine.may_run.clear()
        waiting = [self.batcher.submit(entry) for entry in entries]
        await asyncio.sleep(0)
        loop = asyncio.create_task(self.batcher.run())
        self.engine.may_run.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return results

    async def until_under_way(self, batches: int) -> None:
        while self.batcher.under_way != batches:  # noqa: ASYNC110 a thread gives no event to wait for
            await asyncio.sleep(0)

    def hits(self, cache: str) -> float | None:
        return self.metrics.registry.get_sample_value("vilt_cache_hits_total", {"cache": cache})

    def dropped(self, reason: str) -> float | None:
        return self.metrics.registry.get_sample_value("vilt_dropped_entries_total", {"reason": reason})


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(scenario(), timeout=30))


def test_batch_of_waiting_entries_is_formed_at_once_and_answers_each() -> None:
    """Waiting entries run together, oldest first, in as few runs as the limit allows; each gets its own logits."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(max_batch_size=4)
        return bench, await bench.run_all([bench.entry(number) for number in range(1, 7)])

    bench, results = run(scenario)

    assert bench.engine.batches == [[1, 2, 3], [4, 5, 6]]
    assert [result.logits["rank_logits"][0] for result in results] == [1, 2, 3, 4, 5, 6]


def test_batch_of_limit_one_runs_entries_alone() -> None:
    """A limit of one is kept."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=1)
        await bench.run_all([bench.entry(number) for number in range(1, 4)])
        return bench

    assert run(scenario).engine.batches == [[1], [2], [3]]


def test_batch_is_as_large_as_the_limit_however_large_that_is() -> None:
    """Admission, calibration and the shapes of a GPU rely on the setting."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=2 * LOOK_AHEAD)
        await bench.run_all([bench.entry(number) for number in range(2 * LOOK_AHEAD)])
        return bench

    assert [len(batch) for batch in run(scenario).engine.batches] == [2 * LOOK_AHEAD]


def test_batch_prefers_equal_grids_then_near_lengths() -> None:
    """The oldest entry decides which others fit, so that there is little padding."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=3)
        shapes = [(1, 3), (2, 3), (1, 9), (1, 4), (2, 3)]  # (columns, text length)
        entries = [bench.entry(n, columns=c, length=length) for n, (c, length) in enumerate(shapes, start=1)]
        await bench.run_all(entries)
        return bench

    assert run(scenario).engine.batches == [[1, 4, 3], [2, 5]]


def test_interactive_entry_goes_ahead_of_a_rank_s_slices() -> None:
    """A question waits for no slice that has not begun; where batches do not pay, a slice is one candidate."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=0.01)
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
    """A client that has gone costs nothing more."""

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
    """Nobody waits for a loop that has ended, and it holds nobody's features."""

    async def scenario() -> list[object]:
        bench, let_go = Bench(), threading.Event()
        bench.engine.may_run.clear()
        loop = asyncio.create_task(bench.batcher.run())
        waiting = [bench.batcher.submit(bench.entry(number)) for number in range(6)]
        await asyncio.sleep(0)
        loop.cancel()
        bench.engine.may_run.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(Unavailable):
            await bench.batcher.submit(replace(bench.entry(7), let_go=let_go.set))
        assert let_go.is_set()
        return results

    assert [type(result) for result in run(scenario)] == [Unavailable] * 6


def test_batch_is_as_large_as_makes_the_average_answer_soonest() -> None:
    """Where the base cost of a run is small, rows that wait for each other gain nothing."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=4, per_token_s=1.0)
        await bench.run_all([bench.entry(number) for number in range(1, 4)])
        return bench

    assert run(scenario).engine.batches == [[1], [2], [3]]


def test_ranks_of_several_clients_take_turns() -> None:
    """A client with many candidates does not keep one with few waiting."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=1.0)
        entries = [bench.entry(number, rank=True, client="many") for number in (1, 2, 3)]
        entries += [bench.entry(number, rank=True, client="few") for number in (7, 8)]
        await bench.run_all(entries)
        return bench

    assert run(scenario).engine.batches == [[1], [7], [2], [8], [3]]


def test_flood_of_questions_lets_a_rank_through_now_and_then() -> None:
    """Neither starves: after RANK_TURN runs of questions, a slice has its turn."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=1.0)
        entries = [bench.entry(100, rank=True), *[bench.entry(number) for number in range(1, 12)]]
        await bench.run_all(entries)
        return bench

    assert run(scenario).engine.batches.index([100]) == RANK_TURN


def test_same_image_and_text_in_flight_run_once_and_all_are_answered() -> None:
    """Identical work is done once, whoever asked first."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench()
        return bench, await bench.run_all([bench.entry(5, key="same") for _ in range(3)])

    bench, results = run(scenario)

    assert bench.engine.batches == [[5]]
    assert [result.logits["rank_logits"][0] for result in results] == [5, 5, 5]
    assert bench.hits("in_flight") == 2


def test_result_tells_how_many_ran_together() -> None:
    """A request may be slow because of others in its batch. A follower has no row of its own."""

    async def scenario() -> list[object]:
        bench = Bench(max_batch_size=2)
        return await bench.run_all([bench.entry(1, key="same"), bench.entry(2), bench.entry(1, key="same")])

    assert [result.batch_size for result in run(scenario)] == [2, 2, 2]


def test_batch_of_those_who_left_after_it_was_formed_does_not_run() -> None:
    """The engine's thread checks again; a follower that joined since is answered, and nothing counts as a fault."""
    bench = Bench()

    async def scenario() -> object:
        waiting = [bench.batcher.submit(bench.entry(number, key=number)) for number in (1, 2)]
        await asyncio.sleep(0)
        batch = bench.batcher.queue.form(BETWEEN_S)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        follower = bench.batcher.submit(bench.entry(1, key=1))
        run = bench.batcher._run
        assert run(bench.model, [entry for entry in batch if not entry.followers]) is None
        await asyncio.sleep(0)
        bench.batcher.queue.put_back(batch)
        loop = asyncio.create_task(bench.batcher.run())
        result = await asyncio.wait_for(follower, 5)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return result

    run(scenario)

    assert bench.engine.batches == [[1]]
    assert bench.dropped("cancelled") == 2
    assert bench.reports == [True]


def test_one_who_joins_a_batch_that_did_not_run_is_not_left_asleep() -> None:
    """The loop may be waiting by the time the batch is put back."""
    bench = Bench()

    async def scenario() -> EntryResult:
        gone = bench.batcher.submit(bench.entry(1, key=1))
        loop = asyncio.create_task(bench.batcher.run())
        bench.engine.may_run.clear()
        await bench.until_under_way(1)
        other = bench.batcher.submit(bench.entry(2, key=2))
        await asyncio.sleep(0)
        ahead = bench.batcher.queue.form(BETWEEN_S)
        bench.engine.may_run.set()
        await gone
        await asyncio.sleep(0.01)  # nothing waits: the loop sleeps
        bench.batcher._run = lambda *_: None  # all had gone when the engine's thread looked
        follower = bench.batcher.submit(bench.entry(2, key=2))
        await asyncio.sleep(0)
        resolving = bench.batcher._resolve(ahead, asyncio.get_running_loop())
        other.cancel()
        await resolving
        del bench.batcher._run
        result = await asyncio.wait_for(follower, 5)
        loop.cancel()
        await asyncio.gather(loop, other, return_exceptions=True)
        return result

    assert run(scenario).logits["rank_logits"][0] == 2


def test_leader_that_is_cancelled_does_not_cancel_its_followers() -> None:
    """The first to ask may leave; the others are still waiting."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench()
        entries = [bench.entry(5, key="same"), bench.entry(5, key="same")]
        asyncio.get_running_loop().call_soon(entries[0].future.cancel)
        return bench, await bench.run_all(entries)

    bench, (first, second) = run(scenario)

    assert isinstance(first, asyncio.CancelledError)
    assert second.logits["rank_logits"][0] == 5
    assert bench.engine.batches == [[5]]


def test_follower_that_expires_does_not_expire_its_leader() -> None:
    """Each has its own deadline."""

    async def scenario() -> list[object]:
        bench = Bench()
        past_s = bench.clock.now_s - 1
        return await bench.run_all([bench.entry(5, key="same"), bench.entry(5, key="same", deadline_s=past_s)])

    first, second = run(scenario)

    assert first.logits["rank_logits"][0] == 5
    assert isinstance(second, DeadlineExceeded)


def test_same_again_after_its_answer_runs_again_unless_logits_are_kept() -> None:
    """Answers are remembered only where the operator says so."""

    async def ask_twice(kept_logits: int) -> Bench:
        bench = Bench(kept_logits=kept_logits)
        loop = asyncio.create_task(bench.batcher.run())
        for _ in range(2):
            result = await bench.batcher.submit(bench.entry(5, key="same"))
            assert result.logits["rank_logits"][0] == 5
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return bench

    assert run(lambda: ask_twice(0)).engine.batches == [[5], [5]]
    kept = run(lambda: ask_twice(10))
    assert kept.engine.batches == [[5]]
    assert kept.hits("logits") == 1


def test_logits_that_are_kept_keep_no_others() -> None:
    """A row is a view of its whole batch, which would stay in memory as long as any row of it."""

    async def scenario() -> EntryResult:
        bench = Bench(kept_logits=1)
        loop = asyncio.create_task(bench.batcher.run())
        await asyncio.gather(*(bench.batcher.submit(bench.entry(number, key=number)) for number in range(3)))
        kept = await bench.batcher.submit(bench.entry(2, key=2))
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return kept

    kept = run(scenario)

    assert kept.batch_size == 0
    assert all(row.base is None for row in kept.logits.values())


def test_row_that_is_not_a_number_fails_alone() -> None:
    """NaN never reaches an answer, and the other rows are answered."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(not_numbers=[2])
        return bench, await bench.run_all([bench.entry(number) for number in (1, 2, 3)])

    bench, (first, second, third) = run(scenario)

    assert isinstance(second, EngineFault)
    assert (first.logits["rank_logits"][0], third.logits["rank_logits"][0]) == (1, 3)
    assert bench.reports == [True]


def test_run_whose_only_row_is_not_a_number_is_sound() -> None:
    """A picture may make a model give NaN: whoever sends it again and again would make the server not ready."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(not_numbers=[1])
        return bench, await bench.run_all([bench.entry(1)])

    bench, (result,) = run(scenario)

    assert isinstance(result, EngineFault)
    assert bench.reports == [True]


def test_runs_are_reported_as_sound_or_not() -> None:
    """Readiness depends on it."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=1, failures=2)
        await bench.run_all([bench.entry(number) for number in (1, 2, 3)])
        return bench

    assert run(scenario).reports == [False, False, True]


def test_entry_that_a_run_could_not_answer_in_time_is_dropped_before_it() -> None:
    """A run takes 10 ms here and 5 ms are left: with others waiting, it would be a waste."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(max_batch_size=1)
        soon_s = bench.clock.now_s + 0.005
        return bench, await bench.run_all([bench.entry(1, deadline_s=soon_s), bench.entry(2)])

    bench, (first, _) = run(scenario)

    assert isinstance(first, DeadlineExceeded)
    assert bench.engine.batches == [[2]]


TIGHT_S = 100.0155  # where a run of one takes 12 ms, of two 14, of three 16, of four 18


@pytest.mark.parametrize(("tight", "batches"), [(1, [[1, 2], [3, 4]]), (2, [[1, 2], [3, 4]]), (3, [[1, 2, 4], [3]])])
def test_batch_grows_until_one_of_those_in_it_would_be_late(tight: int, batches: list[list[int]]) -> None:
    """Whichever entry it is, and however much time the others have; an entry left for the next run is not dropped."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(per_token_s=0.0004)
        entries = [bench.entry(n, deadline_s=TIGHT_S if n == tight else 1e9) for n in range(1, 5)]
        return bench, await bench.run_all(entries)

    bench, results = run(scenario)

    assert bench.engine.batches == batches
    assert all(isinstance(result, EntryResult) for result in results)


def test_batch_stays_whole_where_nobody_can_wait() -> None:
    """In a backlog the first has the least time: if batches were small for its sake, the next would be late in turn."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=0.0004)  # a run of four takes 18 ms, and one behind it 18 more
        await bench.run_all([bench.entry(n, deadline_s=TIGHT_S if n == 1 else 100.03) for n in range(1, 9)])
        return bench

    assert run(scenario).engine.batches[0] == [1, 2, 3, 4]


def test_batch_grows_until_a_follower_would_be_late() -> None:
    """A follower may have less time than its leader, whose deadline does not count once it has gone."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=0.0004)
        leader = bench.entry(1, key="same", deadline_s=100.001)
        asyncio.get_running_loop().call_soon(leader.future.cancel)
        follower = bench.entry(1, key="same", deadline_s=TIGHT_S)
        await bench.run_all([leader, follower, *[bench.entry(number) for number in (2, 3, 4)]])
        return bench

    assert run(scenario).engine.batches == [[1, 2], [3, 4]]


def test_batch_takes_no_row_so_long_that_the_others_would_be_late() -> None:
    """Every row is padded to the longest: two of 5 tokens take 14 ms, two of 13 take 20."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=0.0004)
        await bench.run_all([bench.entry(1, deadline_s=TIGHT_S), bench.entry(2, columns=9)])
        return bench

    assert run(scenario).engine.batches == [[1], [2]]


def test_rank_s_entries_that_a_run_could_not_answer_in_time_are_dropped_but_for_the_last() -> None:
    """Only an entry that is alone is given the benefit of the doubt."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench(per_token_s=0.01)  # a run takes 40 ms
        return bench, await bench.run_all([bench.entry(n, rank=True, deadline_s=100.02) for n in (1, 2, 3)])

    bench, results = run(scenario)

    assert bench.engine.batches == [[3]]
    assert [isinstance(result, DeadlineExceeded) for result in results] == [True, True, False]
    assert bench.dropped("expired") == 2


def test_entry_whose_time_was_up_before_it_was_looked_at_is_counted_as_expired() -> None:
    """Its request was cancelled by its deadline, not by a client that left."""

    async def scenario() -> Bench:
        bench = Bench()
        waiting = bench.batcher.submit(bench.entry(1, deadline_s=100.5))
        await asyncio.sleep(0)
        waiting.cancel()
        bench.clock.now_s = 101.0
        await bench.run_all([bench.entry(2)])
        return bench

    bench = run(scenario)

    assert bench.engine.batches == [[2]]
    assert (bench.dropped("expired"), bench.dropped("cancelled")) == (1, None)


def join(joined_s: float, ended_s: float) -> EntryResult:
    """Queue an entry that asks for what has been running since 100.0, and end that run."""

    async def scenario() -> EntryResult:
        bench = Bench()
        bench.engine.may_run.clear()
        loop = asyncio.create_task(bench.batcher.run())
        leader = bench.batcher.submit(bench.entry(1, key="same"))
        await bench.until_under_way(1)
        bench.clock.now_s = joined_s
        follower = bench.batcher.submit(bench.entry(1, key="same"))
        await asyncio.sleep(0)
        bench.clock.now_s = ended_s
        bench.engine.may_run.set()
        _, joined = await asyncio.gather(leader, follower)
        loop.cancel()
        return joined

    return run(scenario)


def test_one_that_joins_once_the_run_is_over_has_no_time_below_zero() -> None:
    """The engine's thread notes the end, and the loop learns of it a little later."""
    joined = join(joined_s=101.0, ended_s=100.5)

    assert joined.started_s == joined.ended_s == 101.0
    assert set(joined.parts_s.values()) == {0.0}


def test_one_that_joins_during_a_run_is_given_what_is_left_of_its_parts() -> None:
    """They are three of a millisecond each, and never longer than its inference."""
    joined = join(joined_s=100.0015, ended_s=100.003)

    assert list(joined.parts_s.values()) == pytest.approx([0.0, 0.0005, 0.001])
    assert joined.ended_s - joined.started_s == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("overlapping", "waiting", "of_another", "left"), [(1, 8, 0, 8), (2, 8, 0, 4), (2, 3, 0, 3), (2, 3, 3, 6)]
)
def test_whole_batch_is_given_to_an_engine_that_copies_ahead_while_another_runs(
    overlapping: int, waiting: int, of_another: int, left: int
) -> None:
    """A smaller one waits in the queue, where it can still grow; so does the one after, and all of a CPU's.

    Those who wait for another model are no part of it.
    """

    async def scenario() -> tuple[Bench, int]:
        bench = Bench(max_batch_size=4, overlapping=overlapping)
        other = served(HeldEngine(), name="other")
        bench.engine.may_run.clear()
        loop = asyncio.create_task(bench.batcher.run())
        asked = [bench.batcher.submit(bench.entry(1))]
        await bench.until_under_way(1)
        entries = [bench.entry(number) for number in range(2, 2 + waiting)]
        entries += [replace(bench.entry(0), model=other) for _ in range(of_another)]
        asked += [bench.batcher.submit(entry) for entry in entries]
        for _ in range(20):  # turns of the event loop, which is all that forming takes
            await asyncio.sleep(0)
        in_queue = len(bench.batcher.queue)
        bench.engine.may_run.set()
        await asyncio.gather(*asked)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return bench, in_queue

    bench, in_queue = run(scenario)

    assert in_queue == left
    assert sorted(itertools.chain(*bench.engine.batches)) == list(range(1, 2 + waiting))
    assert max(map(len, bench.engine.batches)) <= 4


class Turns(threading.Semaphore):
    """An event that lets only a given number of runs end."""

    def __init__(self) -> None:
        super().__init__(0)

    def wait(self, timeout: float) -> bool:
        return self.acquire(timeout=timeout)


def test_batch_that_was_copied_ahead_is_followed_by_one_that_has_grown_meanwhile() -> None:
    """After the first run the second keeps the engine busy, and the waiting batch can grow until its end."""

    async def scenario() -> list[int]:
        bench = Bench(max_batch_size=4, overlapping=2)
        bench.engine.may_run = turns = Turns()
        asked: list[asyncio.Future[EntryResult]] = []

        def ask(count: int) -> None:
            asked.extend(bench.batcher.submit(bench.entry(1)) for _ in range(count))

        loop = asyncio.create_task(bench.batcher.run())
        for under_way, count in enumerate((1, 4), start=1):
            ask(count)
            await bench.until_under_way(under_way)
        ask(1)
        turns.release()
        await bench.until_under_way(1)
        ask(3)
        turns.release(10)
        await asyncio.gather(*asked)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return sorted(map(len, bench.engine.batches))

    assert run(scenario) == [1, 4, 4]


def test_time_of_runs_that_overlap_is_counted_once() -> None:
    """Two batches given to the engine at once end after 0.1 and 0.2 s: it was busy for 0.2 s."""

    async def scenario() -> float:
        bench = Bench(max_batch_size=4, overlapping=2)
        bench.engine.may_run = turns = Turns()
        loop = asyncio.create_task(bench.batcher.run())
        asked = [bench.batcher.submit(bench.entry(n)) for n in range(8)]
        await bench.until_under_way(2)
        for under_way in (1, 0):
            bench.clock.now_s += 0.1
            turns.release()
            await bench.until_under_way(under_way)
        await asyncio.gather(*asked)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        return bench.metrics.registry.get_sample_value("vilt_engine_seconds_total", {"use": "answered"}) or 0.0

    assert run(scenario) == pytest.approx(0.2)


def test_padding_of_the_engine_s_own_is_counted() -> None:
    """A row of 5 tokens that runs in a shape of 2 rows of 10 is a quarter of it."""

    async def scenario() -> float | None:
        bench = Bench()
        bench.engine.padded = lambda *_: (2, 10)
        await bench.run_all([bench.entry(1)])
        return bench.metrics.registry.get_sample_value("vilt_batch_padding_ratio_sum", {"model": "shapes"})

    assert run(scenario) == pytest.approx(0.75)


def test_time_between_runs_is_learnt_neither_from_a_stall_nor_from_a_run_that_failed() -> None:
    """A stall says nothing about the next time, and the time of a failed run is not between two runs."""

    async def scenario() -> float:
        bench = Bench()

        async def run_after(between_s: float, *, fails: bool = False) -> None:
            asked = bench.batcher.submit(bench.entry(1))
            await asyncio.sleep(0)
            bench.clock.now_s += between_s
            bench.engine.failures = int(fails)
            bench.engine.has_begun.clear()
            bench.engine.may_run.clear()
            running = asyncio.create_task(bench.batcher._resolve(bench.batcher.queue.form(BETWEEN_S), loop))
            await asyncio.to_thread(bench.engine.has_begun.wait, 5)
            bench.clock.now_s += 0.005
            bench.engine.may_run.set()
            await asyncio.gather(running, asked, return_exceptions=True)

        loop = asyncio.get_running_loop()
        await run_after(0.0)
        await run_after(1.0)
        await run_after(BETWEEN_S, fails=True)
        await run_after(BETWEEN_S)
        return bench.batcher._between_s

    assert run(scenario) == pytest.approx(BETWEEN_S)


def test_drain_with_two_batches_under_way_fails_all_that_are_left() -> None:
    """Nobody waits for ever."""

    async def scenario() -> list[object]:
        bench = Bench(max_batch_size=4, overlapping=2)
        bench.engine.may_run.clear()
        loop = asyncio.create_task(bench.batcher.run())
        asked = [bench.batcher.submit(bench.entry(n)) for n in range(12)]
        await bench.until_under_way(2)
        loop.cancel()
        results = await asyncio.gather(*asked, return_exceptions=True)
        bench.engine.may_run.set()
        return results

    assert all(isinstance(result, Unavailable) for result in run(scenario))


def test_drift_is_learnt_from_every_run_and_exposed() -> None:
    """Runs that take twice what the model says make it expect more, five runs a little."""

    async def scenario() -> Bench:
        bench = Bench(max_batch_size=1)
        run_as_ever = bench.engine.run

        def run_slowly(batch: Sequence[Features]) -> EngineOutput:
            bench.clock.now_s += 0.02
            return run_as_ever(batch)

        bench.engine.run = run_slowly
        await bench.run_all([bench.entry(number) for number in range(1, 6)])
        return bench

    bench = run(scenario)

    drift = bench.model.latency.drift
    assert drift == pytest.approx(1 + (1 - (1 - DRIFT_SMOOTHING) ** 5))
    assert bench.metrics.registry.get_sample_value("vilt_latency_drift", {"model": "shapes"}) == drift


def test_rank_has_one_turn_after_as_many_questions_as_before() -> None:
    """Its first slice gives it no right to the next: in between there are RANK_TURN runs of questions."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=1.0)
        entries = [bench.entry(100 + number, rank=True) for number in range(3)]
        await bench.run_all([*entries, *[bench.entry(number) for number in range(1, 4 * RANK_TURN)]])
        return bench

    batches = run(scenario).engine.batches
    turns = [place for place, (first, *_) in enumerate(batches) if first >= 100]
    assert turns == [RANK_TURN, 2 * RANK_TURN + 1, 3 * RANK_TURN + 2]


def test_rank_that_comes_after_many_questions_has_not_waited_for_them() -> None:
    """Only questions that run while it waits count for its turn."""

    async def scenario() -> list[bool]:
        bench = Bench(per_token_s=1.0)
        queue = bench.batcher.queue
        for number in range(RANK_TURN + 2):
            queue.add(bench.entry(number))
            queue.form(BETWEEN_S)
        queue.add(bench.entry(100, rank=True))
        queue.add(bench.entry(1))
        return [bool(queue.form(BETWEEN_S)[0].urgency) for _ in range(2)]

    assert run(scenario) == [False, True]


def test_question_does_not_wait_with_the_rank_that_asks_for_the_same() -> None:
    """It runs first, though the rank will run the same again."""

    async def scenario() -> Bench:
        bench = Bench(per_token_s=1.0)
        entries = [bench.entry(1, rank=True), bench.entry(2, rank=True, key="same"), bench.entry(2, key="same")]
        await bench.run_all(entries)
        return bench

    assert run(scenario).engine.batches == [[2], [1], [2]]


@pytest.mark.parametrize("use", ["answered", "abandoned", "late"])
def test_time_of_a_run_is_counted_by_whether_its_answer_was_received(use: str) -> None:
    """A client received it, had disconnected, or had reached its deadline."""

    async def scenario() -> dict[str, float | None]:
        bench = Bench()
        bench.engine.may_run.clear()
        loop = asyncio.create_task(bench.batcher.run())
        asked = bench.batcher.submit(bench.entry(1, deadline_s=bench.clock.now_s + 1))
        await asyncio.to_thread(bench.engine.has_begun.wait, 10)
        bench.clock.now_s += 2 if use == "late" else 0.5
        if use != "answered":
            asked.cancel()  # a request at its deadline does the same
        bench.engine.may_run.set()
        await bench.until_under_way(0)
        await asyncio.gather(asked, return_exceptions=True)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        read = bench.metrics.registry.get_sample_value
        return {one: read("vilt_engine_seconds_total", {"use": one}) for one in ("answered", "abandoned", "late")}

    counted = run(scenario)

    assert counted.pop(use) == pytest.approx(2 if use == "late" else 0.5)
    assert set(counted.values()) == {None}


def test_entry_that_would_be_answered_at_its_deadline_is_dropped() -> None:
    """An answer at that instant is too late."""

    async def scenario() -> tuple[Bench, list[object]]:
        bench = Bench()
        late, other = bench.entry(1), bench.entry(2)
        late.deadline_s = bench.clock.now_s + bench.model.latency.run_s(1, late.tokens)
        return bench, await bench.run_all([late, other])

    bench, (first, _) = run(scenario)

    assert isinstance(first, DeadlineExceeded)
    assert bench.engine.batches == [[2]]
