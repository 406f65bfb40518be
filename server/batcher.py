"""One queue, and the loop that empties it: whatever waits when the engine is idle runs at once, no timer.

Knows neither HTTP nor onnxruntime. Every entry's future is resolved: a result, or a named error.
"""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from models.batch import collate
from server.errors import DeadlineExceeded, EngineFault, ServerError, Unavailable
from server.metrics import Metrics
from server.types import Clock, Entry, EntryResult, ServedModel, Urgency

log = logging.getLogger(__name__)

LOOK_AHEAD = 64  # entries considered for a batch: enough to find equal grids, little to sort


class Batcher:
    """Forms micro-batches at dispatch and runs them one after the other on its own thread."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._queues: dict[Urgency, deque[Entry]] = {urgency: deque() for urgency in Urgency}
        self._waiting = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    async def submit(self, entry: Entry) -> EntryResult:
        """Queue an entry and wait for its result.

        Raises: DeadlineExceeded, EngineFault: as resolved by the loop. Unavailable: the loop has ended.
        """
        if self._closed:
            raise Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0)
        self._queues[entry.urgency].append(entry)
        self._metrics.queue_entries.set(len(self))
        self._waiting.set()
        return await entry.future

    async def run(self) -> None:
        """Empty the queue until cancelled; then fail what is left."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._waiting.wait()
                batch = self.form()
                if not batch:
                    self._waiting.clear()
                    continue
                await self._resolve(batch, loop)
        finally:
            self._closed = True
            self._thread.shutdown(wait=False)
            for queue in self._queues.values():
                while queue:
                    _fail(
                        queue.popleft(), Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0)
                    )

    def form(self) -> list[Entry]:
        """Take the next batch: the oldest of the most urgent entries, and those that fit it best.

        Equal grids first, then near lengths, so that little is padding. An empty list means an empty queue.
        """
        for urgency, queue in self._queues.items():
            first = self._next_alive(queue)
            if first is None:
                continue
            model, grid = first.model, first.features.image.grid
            length = len(first.features.text.input_ids)
            limit = model.max_batch_size if urgency is Urgency.INTERACTIVE else model.max_rank_slice
            others = [entry for entry in islice(queue, LOOK_AHEAD) if entry.model is model]
            others.sort(
                key=lambda entry: (
                    entry.features.image.grid != grid,
                    abs(len(entry.features.text.input_ids) - length),
                )
            )
            batch = [first]
            for entry in others:
                if len(batch) == limit:
                    break
                queue.remove(entry)
                if self._is_alive(entry):
                    batch.append(entry)
            self._metrics.queue_entries.set(len(self))
            return batch
        self._metrics.queue_entries.set(0)
        return []

    def _next_alive(self, queue: deque[Entry]) -> Entry | None:
        while queue:
            entry = queue.popleft()
            if self._is_alive(entry):
                return entry
        return None

    def _is_alive(self, entry: Entry) -> bool:
        """Drop, and count, an entry whose caller has gone or whose deadline has passed."""
        if entry.future.done():
            self._metrics.dropped.labels("cancelled").inc()
            return False
        if self._clock() >= entry.deadline_s:
            self._metrics.dropped.labels("expired").inc()
            _fail(entry, DeadlineExceeded())
            return False
        return True

    async def _resolve(self, batch: list[Entry], loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch and resolve its futures; a failure is the batch's own, never the loop's."""
        model = batch[0].model
        try:
            results = await loop.run_in_executor(self._thread, self._run, model, batch)
        except asyncio.CancelledError:
            for entry in batch:
                _fail(entry, Unavailable("shutting_down", "The server is shutting down.", retry_after_s=1.0))
            raise
        except Exception:
            log.exception("a batch of %d failed in model %s", len(batch), model.name)
            for entry in batch:
                _fail(entry, EngineFault("engine_fault", "The model failed on this request; it has been logged."))
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)

    def _run(self, model: ServedModel, batch: list[Entry]) -> list[EntryResult]:
        """Pad, run, and share out; on the engine's thread."""
        started_s = self._clock()
        feeds = collate([entry.features for entry in batch])
        output = model.engine.run(feeds)
        ended_s = self._clock()
        self._metrics.batch_entries.labels(model.name).observe(len(batch))
        self._metrics.padding_ratio.labels(model.name).observe(feeds.padding_ratio)
        return [
            EntryResult(
                logits={head: logits[row] for head, logits in output.logits.items()},
                started_s=started_s,
                ended_s=ended_s,
                parts_s=output.parts_s,
                batch_size=len(batch),
            )
            for row in range(len(batch))
        ]


def _fail(entry: Entry, error: ServerError) -> None:
    if not entry.future.done():
        entry.future.set_exception(error)
