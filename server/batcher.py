"""The loop that empties the queue: whatever waits when the engine is idle runs at once, no timer.

Knows neither HTTP nor onnxruntime. Every entry's future is resolved: a result, or a named error.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.batch import collate
from server.caches import Cache
from server.errors import EngineFault, ServerError, Unavailable
from server.metrics import Metrics
from server.queue import Queue
from server.types import Clock, Entry, EntryResult, Logits, ServedModel

log = logging.getLogger(__name__)

MOST_UNDER_WAY = 2  # batches, where an engine copies one while another runs
BETWEEN_S = 0.0002  # from a run's end to the next one's start while entries wait, until it has been measured
BETWEEN_SMOOTHING, BETWEEN_LIMIT_S = 0.05, 0.01  # weight of the newest; what is longer is a stall, and teaches nothing


class Batcher:
    """Forms micro-batches at dispatch and runs them one after the other on its own thread."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        *,
        kept_logits: int = 0,
        report: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Keep the logits of so many entries, and report of each run whether the engine was sound."""
        self._clock = clock
        self._metrics = metrics
        self._report = report
        self._leaders: dict[Hashable, Entry] = {}
        self.queue = Queue(clock, metrics, self._forget)
        self._logits: Cache[Logits] = Cache(kept_logits, lambda _: 1)
        self._between_s = BETWEEN_S
        self._ended_s: float | None = None  # of the last run, if there has been something to run ever since
        self._waiting = asyncio.Event()
        self._full = asyncio.Event()  # a whole batch waits that an engine can take while another runs
        self.under_way = 0  # batches
        self._thread = ThreadPoolExecutor(MOST_UNDER_WAY, "engine")
        self._closed = False

    async def submit(self, entry: Entry) -> EntryResult:
        """Queue an entry, or follow one that asks for the same, and wait for its result.

        Raises: DeadlineExceeded, EngineFault: as resolved by the loop. Unavailable: the loop has ended.
        """
        if self._closed:
            raise _shutting_down()
        entry.queued_s = self._clock()
        if entry.key is not None:
            kept = self._logits.find(entry.key)
            if kept is not None:
                self._metrics.cache_hits.labels("logits").inc()
                entry.let_go()
                return EntryResult(kept, entry.queued_s, self._clock(), {}, 0)
            leader = self._leaders.get((entry.key, entry.urgency))
            if leader is not None:
                self._metrics.cache_hits.labels("in_flight").inc()
                leader.followers.append(entry)
                entry.let_go()
                return await entry.future
            self._leaders[entry.key, entry.urgency] = entry
        self.queue.add(entry)
        self._waiting.set()
        if self.queue.is_full():
            self._full.set()
        return await entry.future

    async def run(self) -> None:
        """Empty the queue until cancelled; then fail what is left."""
        loop = asyncio.get_running_loop()
        ahead = asyncio.create_task(self._run_ahead(loop))
        try:
            while True:
                await self._waiting.wait()
                batch = self.queue.form(self._between_s)
                if not batch:
                    self._waiting.clear()
                    self._ended_s = None
                    continue
                if self.queue.is_full():
                    self._full.set()
                await self._resolve(batch, loop)
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)  # it fails the batch that it has
            self._closed = True
            self._thread.shutdown(wait=False)
            for entry in self.queue.empty():
                self._fail(entry, _shutting_down())

    async def _run_ahead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Form the next batch while one runs, if it can grow no more: the engine copies it in the meantime.

        A smaller one waits, and grows with whoever comes until the engine is idle.
        """
        while True:
            await self._full.wait()
            if self.under_way and self.queue.is_full() and (batch := self.queue.form(self._between_s)):
                await self._resolve(batch, loop)
            else:
                self._full.clear()

    async def _resolve(self, batch: list[Entry], loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch and resolve its futures; a failure is the batch's own, never the loop's."""
        model = batch[0].model
        self.under_way += 1
        try:
            outcomes = await loop.run_in_executor(self._thread, self._run, model, batch)
        except asyncio.CancelledError:
            for entry in batch:
                self._fail(entry, _shutting_down())
            raise
        except Exception:
            log.exception("a batch of %d failed in model %s", len(batch), model.name)
            outcomes = [_fault() for _ in batch]
        finally:
            self.under_way -= 1
        if outcomes is None:
            self.queue.put_back(batch)
            self._waiting.set()
            return
        self._report(any(isinstance(outcome, EntryResult) for outcome in outcomes))
        for leader, outcome in zip(batch, outcomes, strict=True):
            self._forget(leader)
            if isinstance(outcome, EntryResult):
                self._metrics.engine_seconds.labels(_use(leader, outcome)).inc(
                    (outcome.ended_s - outcome.started_s) / len(batch)
                )
                if leader.key is not None:
                    self._logits.keep(leader.key, outcome.logits)
            for entry in leader.all():
                entry.resolve(outcome)

    def _run(self, model: ServedModel, batch: list[Entry]) -> list[EntryResult | ServerError] | None:
        """Pad, run, and share out; on the engine's thread. A row that is not finite fails alone.

        Returns None, and runs nothing, if all have gone since the batch was formed.
        """
        if all(entry.future.done() for leader in batch for entry in leader.all()):
            return None
        started_s = self._clock()
        before_s = self._ended_s
        if before_s is not None and self.under_way == 1:
            between_s = min(started_s - before_s, BETWEEN_LIMIT_S)
            self._between_s += BETWEEN_SMOOTHING * (between_s - self._between_s)
        feeds = collate([entry.features for entry in batch])
        output = model.engine.run(feeds)
        ended_s = self._clock()
        ran_s = ended_s - max(started_s, self._ended_s or started_s)  # not while the one before it still ran
        self._ended_s = ended_s
        rows, tokens = feeds.mask.shape
        model.latency.observe(rows, tokens, ran_s)
        self._metrics.drift.labels(model.name).set(model.latency.drift)
        self._metrics.batch_entries.labels(model.name).observe(len(batch))
        self._metrics.padding_ratio.labels(model.name).observe(feeds.padding_ratio)
        together = frozenset(entry.request_id for leader in batch for entry in leader.all())
        outcomes: list[EntryResult | ServerError] = []
        for row in range(len(batch)):
            logits = {head: values[row] for head, values in output.logits.items()}
            if all(np.isfinite(values).all() for values in logits.values()):
                outcomes.append(EntryResult(logits, started_s, ended_s, output.parts_s, len(batch), together))
            else:
                log.error("a logit is not a finite number, in model %s", model.name)
                outcomes.append(_fault())
        return outcomes

    def _fail(self, leader: Entry, error: ServerError) -> None:
        self._forget(leader)
        for entry in leader.all():
            entry.resolve(error)

    def _forget(self, leader: Entry) -> None:
        """Have done with an entry: it is in no queue, and nobody will follow it."""
        leader.let_go()
        if leader.key is not None:
            self._leaders.pop((leader.key, leader.urgency), None)


def _use(leader: Entry, result: EntryResult) -> str:
    """Tell what became of the time that an entry took."""
    if any(not entry.future.done() for entry in leader.all()):
        return "answered"
    return "late" if any(entry.deadline_s <= result.ended_s for entry in leader.all()) else "abandoned"


def _fault() -> EngineFault:
    return EngineFault("engine_fault", "The model failed on this request; it has been logged.")


def _shutting_down() -> Unavailable:
    return Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0)
