"""The queue, and the loop that empties it: whatever waits when the engine is idle runs at once, no timer.

Knows neither HTTP nor onnxruntime. Every entry's future is resolved: a result, or a named error.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np

from models.batch import collate
from server.caches import Cache
from server.errors import DeadlineExceeded, EngineFault, ServerError, Unavailable
from server.metrics import Metrics
from server.types import Clock, Entry, EntryResult, Logits, ServedModel, Urgency

log = logging.getLogger(__name__)

MOST_UNDER_WAY = 2  # batches, where an engine copies one while another runs
LOOK_AHEAD = 64  # entries considered for a batch: enough to find equal grids, little to sort
BETWEEN_S = 0.0002  # from a run's end to the next one's start while entries wait, until it has been measured
BETWEEN_SMOOTHING, BETWEEN_LIMIT_S = 0.05, 0.01  # weight of the newest; what is longer is a stall, and teaches nothing
RANK_TURN = 8  # interactive runs after which a rank that waits gets a slice, so that a flood of questions starves none


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
        self._interactive: deque[Entry] = deque()
        self._ranks: OrderedDict[str, deque[Entry]] = OrderedDict()  # by client; the one whose turn it is comes first
        self._since_rank = 0
        self._leaders: dict[Hashable, Entry] = {}
        self._logits: Cache[Logits] = Cache(kept_logits, lambda _: 1)
        self._between_s = BETWEEN_S
        self._ended_s: float | None = None  # of the last run, if there has been something to run ever since
        self._waiting = asyncio.Event()
        self._full = asyncio.Event()  # a whole batch waits that an engine can take while another runs
        self.under_way = 0  # batches
        self._thread = ThreadPoolExecutor(MOST_UNDER_WAY, "engine")
        self._closed = False

    def __len__(self) -> int:
        return len(self._interactive) + sum(map(len, self._ranks.values()))

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
        if entry.urgency is Urgency.INTERACTIVE:
            self._interactive.append(entry)
        else:
            self._ranks.setdefault(entry.client, deque()).append(entry)
        self._metrics.queue_entries.set(len(self))
        self._waiting.set()
        if self._is_full():
            self._full.set()
        return await entry.future

    async def run(self) -> None:
        """Empty the queue until cancelled; then fail what is left."""
        loop = asyncio.get_running_loop()
        ahead = asyncio.create_task(self._run_ahead(loop))
        try:
            while True:
                await self._waiting.wait()
                batch = self.form()
                if not batch:
                    self._waiting.clear()
                    self._ended_s = None
                    continue
                if self._is_full():
                    self._full.set()
                await self._resolve(batch, loop)
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)  # it fails the batch that it has
            self._closed = True
            self._thread.shutdown(wait=False)
            for queue in (self._interactive, *self._ranks.values()):
                for entry in queue:
                    self._fail(entry, _shutting_down())
                queue.clear()

    async def _run_ahead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Form the next batch while one runs, if it can grow no more: the engine copies it in the meantime.

        A smaller one waits, and grows with whoever comes until the engine is idle.
        """
        while True:
            await self._full.wait()
            if self.under_way and self._is_full() and (batch := self.form()):
                await self._resolve(batch, loop)
            else:
                self._full.clear()

    def _is_full(self) -> bool:
        """Tell whether a whole batch waits for an engine that can copy it while another runs."""
        first = self._interactive[0].model if self._interactive else None
        return first is not None and first.engine.overlapping > 1 and len(self._interactive) >= first.max_batch_size

    def form(self) -> list[Entry]:
        """Take the next batch; an empty list means that nothing is waiting.

        Questions go ahead of ranks, but for every RANK_TURN-th run. Ranks of several clients take turns.
        """
        if self._since_rank < RANK_TURN:
            batch = self._take_interactive() or self._take_slice()
        else:
            batch = self._take_slice() or self._take_interactive()
        self._metrics.queue_entries.set(len(self))
        return batch

    def _take_interactive(self) -> list[Entry]:
        def size(model: ServedModel, tokens: int) -> int:
            return model.latency.batch_size(1 + len(self._interactive), model.max_batch_size, tokens, self._between_s)

        batch = self._take(self._interactive, size)
        self._since_rank = self._since_rank + 1 if batch and self._ranks else 0
        return batch

    def _take_slice(self) -> list[Entry]:
        def size(model: ServedModel, tokens: int) -> int:
            return model.latency.slice_size(model.max_batch_size, tokens)

        while self._ranks:
            client, queue = self._ranks.popitem(last=False)
            batch = self._take(queue, size)
            if queue:
                self._ranks[client] = queue  # to the end: the others' turn
            if batch:
                self._since_rank = 0
                return batch
        return []

    def _take(self, queue: deque[Entry], size: Callable[[ServedModel, int], int]) -> list[Entry]:
        """Take the oldest entry and those that fit it best: equal grids first, then near lengths."""
        while queue:
            first = queue.popleft()
            # A rank's queue is out of its place while this takes from it. Whoever is alone is dropped only where there
            # is no doubt, or a wrong estimate could never be corrected.
            alone = not queue and not len(self)
            if not self._is_alive(first, 0.0 if alone else first.model.latency.run_s(1, first.tokens)):
                continue
            model, grid = first.model, first.features.image.grid
            limit = size(model, first.tokens)
            others = [entry for entry in islice(queue, LOOK_AHEAD) if entry.model is model]
            others.sort(key=lambda entry: (entry.features.image.grid != grid, abs(entry.tokens - first.tokens)))
            batch = [first]
            for entry in others:
                if len(batch) == limit:
                    break
                queue.remove(entry)
                if self._is_alive(entry, model.latency.run_s(len(batch) + 1, first.tokens)):
                    batch.append(entry)
            return batch
        return []

    def _is_alive(self, leader: Entry, run_s: float) -> bool:
        """Drop, and count, whoever has gone or cannot be answered in time by a run that begins now."""
        now_s = self._clock()
        for entry in leader.all():
            if entry.future.done():  # its request has been told, be it that it has gone or that its time is up
                self._metrics.dropped.labels("expired" if entry.deadline_s <= now_s else "cancelled").inc()
            elif now_s + run_s >= entry.deadline_s:
                self._metrics.dropped.labels("expired").inc()
                _resolve(entry, DeadlineExceeded())
        leader.followers = [entry for entry in leader.followers if not entry.future.done()]
        if leader.future.done() and not leader.followers:
            self._forget(leader)
            return False
        return True

    def _put_back(self, batch: list[Entry]) -> None:
        """Leave it to the next forming to drop those who have gone; whoever follows one of them by now is served."""
        for leader in reversed(batch):
            ranks = self._ranks.setdefault(leader.client, deque()) if leader.urgency is Urgency.RANK else None
            (self._interactive if ranks is None else ranks).appendleft(leader)
        self._waiting.set()

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
            self._put_back(batch)
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
                _resolve(entry, outcome)

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
            _resolve(entry, error)

    def _forget(self, leader: Entry) -> None:
        """Have done with an entry: it is in no queue, and nobody will follow it."""
        leader.let_go()
        if leader.key is not None:
            self._leaders.pop((leader.key, leader.urgency), None)


def _resolve(entry: Entry, outcome: EntryResult | ServerError) -> None:
    if entry.future.done():
        return
    if isinstance(outcome, EntryResult):
        entry.future.set_result(outcome if entry.queued_s <= outcome.started_s else _since(outcome, entry.queued_s))
    else:
        entry.future.set_exception(outcome)


def _since(result: EntryResult, joined_s: float) -> EntryResult:
    """Take what a run is to an entry that joined it: what was left of it, if anything was."""
    passed_s, parts_s = joined_s - result.started_s, {}
    for part, value in result.parts_s.items():  # one after the other
        parts_s[part] = max(0.0, value - passed_s)
        passed_s = max(0.0, passed_s - value)
    return replace(result, started_s=joined_s, ended_s=max(result.ended_s, joined_s), parts_s=parts_s)


def _use(leader: Entry, result: EntryResult) -> str:
    """Tell what became of the time that an entry took."""
    if any(not entry.future.done() for entry in leader.all()):
        return "answered"
    return "late" if any(entry.deadline_s <= result.ended_s for entry in leader.all()) else "abandoned"


def _fault() -> EngineFault:
    return EngineFault("engine_fault", "The model failed on this request; it has been logged.")


def _shutting_down() -> Unavailable:
    return Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0)
