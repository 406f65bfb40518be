"""The loop that empties the queue: an idle engine runs at once whatever is waiting, without a timer.

Knows neither HTTP nor onnxruntime. Every entry's future is resolved: a result, or a named error.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from models.batch import extent
from server.caches import Cache
from server.errors import EngineFault, ServerError, Unavailable
from server.metrics import Metrics
from server.queue import Queue
from server.types import Clock, Entry, EntryResult, LoadedModel, Logits

log = logging.getLogger(__name__)

BETWEEN_S = 0.0002  # from the end of a run to the start of the next while entries wait, until it has been measured
BETWEEN_SMOOTHING, BETWEEN_LIMIT_S = 0.05, 0.01  # weight of the newest; anything longer is a stall and ignored


class Batcher:
    """Forms batches at dispatch and runs them one after another on its own threads."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        *,
        overlapping: int = 1,
        kept_logits: int = 0,
        report: Callable[[bool], None] = lambda _: None,
        following: Callable[[list[Entry], float], AbstractContextManager[None]] = lambda *_: nullcontext(),
    ) -> None:
        """Keep up to `overlapping` batches under way (one runs, the others are being copied).

        `report` is told after each run whether it succeeded, whatever came of it. `following` is a context manager
        around each run, given its batch and estimated time.
        """
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._following = following
        self._leaders: dict[Hashable, Entry] = {}
        self.queue = Queue(clock, metrics, self._forget)
        self._keeps_logits = kept_logits > 0
        self._logits: Cache[Logits] = Cache(kept_logits, lambda _: 1)
        self._between_s = BETWEEN_S
        self._ended_s: float | None = None  # of the last run, unless the engine has been idle since
        self._waiting = asyncio.Event()  # set when an entry has come or a run has ended
        self.under_way = 0  # batches
        self._overlapping = overlapping
        self._threads = ThreadPoolExecutor(overlapping, "engine")
        self._closed = False

    def submit(self, entry: Entry) -> asyncio.Future[EntryResult]:
        """Queue an entry, or join one that asks for the same, and return its future.

        It ends with a result, or with DeadlineExceeded, EngineFault, or Unavailable if the loop has ended.
        """
        if self._closed:
            entry.let_go()
            entry.resolve(_shutting_down())
            return entry.future
        entry.queued_s = self._clock()
        kept = self._logits.find(entry.key)
        if kept is not None:
            self._metrics.cache_hits.labels("logits").inc()
            entry.let_go()
            entry.resolve(EntryResult(kept, entry.queued_s, self._clock(), {}, 0))
            return entry.future
        leader = self._leaders.get((entry.key, entry.urgency))
        if leader is not None:
            self._metrics.cache_hits.labels("in_flight").inc()
            leader.followers.append(entry)
            entry.let_go()
            return entry.future
        self._leaders[entry.key, entry.urgency] = entry
        self.queue.add(entry)
        self._waiting.set()
        return entry.future

    async def run(self) -> None:
        """Empty the queue until cancelled, then fail what is left."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:  # when cancelled, each fails its batch
                for _ in range(self._overlapping):
                    group.create_task(self._run_batches(loop))
        finally:
            self._closed = True
            self._threads.shutdown(wait=False)
            for entry in self.queue.empty():
                self._fail(entry, _shutting_down())

    async def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch after another.

        When the engine is idle, take whatever is waiting. While it is busy, take only a full batch, whose copy overlaps
        the current run; a smaller one keeps growing.
        """
        while True:
            await self._waiting.wait()
            may_form = not self.under_way or self.queue.is_full()
            batch = self.queue.form(self._between_s) if may_form else []
            if batch:
                await self._resolve(batch, loop)
                continue
            self._waiting.clear()
            if not self.under_way:
                self._ended_s = None

    async def _resolve(self, batch: list[Entry], loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch and resolve its futures; a failure fails the batch, never the loop."""
        model = batch[0].model
        self.under_way += 1
        is_sound = True
        try:
            with self._following(batch, model.latency.run_s(len(batch), max(entry.tokens for entry in batch))):
                ran = await loop.run_in_executor(self._threads, self._run, model, batch)
        except asyncio.CancelledError:
            for entry in batch:
                self._fail(entry, _shutting_down())
            raise
        except Exception:
            log.exception("a batch of %d failed in model %s", len(batch), model.name)
            ran, is_sound = ([_fault() for _ in batch], 0.0), False
        finally:
            self.under_way -= 1
            self._waiting.set()
        if ran is None:
            self.queue.put_back(batch)
            return
        outcomes, ran_s = ran
        uses: Counter[str] = Counter()
        self._report(is_sound)  # whatever the logits: those may be due to one client's input
        for leader, outcome in zip(batch, outcomes, strict=True):
            self._forget(leader)
            if isinstance(outcome, EntryResult):
                uses[_use(leader, outcome)] += 1
                if self._keeps_logits:  # a copy: a row of an array keeps all of it
                    self._logits.keep(leader.key, {head: row.copy() for head, row in outcome.logits.items()})
            for entry in leader.all():
                entry.resolve(outcome)
        for use, count in uses.items():
            self._metrics.engine_seconds.labels(use).inc(ran_s * count / len(batch))

    def _run(self, model: LoadedModel, batch: list[Entry]) -> tuple[list[EntryResult | ServerError], float] | None:
        """Run a batch and split the logits, on an engine thread. A row that is not finite fails alone.

        Run nothing and return None if all clients have gone since the batch was formed.

        Units: seconds of engine time, without what overlaps another batch.
        """
        if not any(leader.is_wanted for leader in batch):
            return None
        started_s = self._clock()
        before_s = self._ended_s
        if before_s is not None and self.under_way == 1 and started_s - before_s <= BETWEEN_LIMIT_S:
            self._between_s += BETWEEN_SMOOTHING * (started_s - before_s - self._between_s)
        pairs = [entry.features for entry in batch]
        try:
            output = model.engine.run(pairs)
        finally:  # also if it fails
            ended_s, other_s = self._clock(), self._ended_s or started_s
            self._ended_s = max(ended_s, other_s)
        ran_s = max(0.0, ended_s - max(started_s, other_s))  # without the time in which the previous run still ran
        _, length, patches = extent(pairs)
        tokens = length + 1 + patches
        model.latency.observe(len(batch), tokens, ran_s)
        self._metrics.drift.labels(model.name).set(model.latency.drift)
        self._metrics.batch_entries.labels(model.name).observe(len(batch))
        self._metrics.padding_ratio.labels(model.name).observe(_padding_ratio(batch, tokens))
        is_finite = np.all([np.isfinite(values).all(axis=1) for values in output.logits.values()], axis=0)
        outcomes: list[EntryResult | ServerError] = []
        for row in range(len(batch)):
            if is_finite[row]:
                logits = {head: values[row] for head, values in output.logits.items()}
                outcomes.append(EntryResult(logits, started_s, ended_s, output.parts_s, len(batch)))
            else:
                log.error("a logit is not a finite number, in model %s", model.name)
                outcomes.append(_fault())
        return outcomes, ran_s

    def _fail(self, leader: Entry, error: ServerError) -> None:
        self._forget(leader)
        for entry in leader.all():
            entry.resolve(error)

    def _forget(self, leader: Entry) -> None:
        """Let go of an entry that has left the queue: it cannot be joined any more."""
        leader.let_go()
        self._leaders.pop((leader.key, leader.urgency), None)


def _padding_ratio(batch: list[Entry], tokens: int) -> float:
    """Return the share of padding among the tokens that ran, including the engine's own padding."""
    rows, padded_tokens = batch[0].model.engine.padded(len(batch), tokens)
    return 1.0 - sum(entry.tokens for entry in batch) / (rows * padded_tokens)


def _use(leader: Entry, result: EntryResult) -> str:
    """Return what the engine time of an entry was used for."""
    if leader.is_wanted:
        return "answered"
    return "late" if any(entry.deadline_s <= result.ended_s for entry in leader.all()) else "abandoned"


def _fault() -> EngineFault:
    return EngineFault("engine_fault", "The model failed on this request; it has been logged.")


def _shutting_down() -> Unavailable:
    return Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0)
