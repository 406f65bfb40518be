"""The queue in front of the engine: questions go before ranks, and ranks of several clients take turns.

Knows no engine and no thread. When a batch is formed, entries whose client has gone, or which cannot be answered in
time, are dropped.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice

from server.errors import DeadlineExceeded
from server.metrics import Metrics
from server.types import Clock, Entry, LoadedModel, Urgency

LOOK_AHEAD = 64  # entries considered for a batch, if it may not be larger: enough to find equal grids, few to sort
RANK_TURN = 8  # interactive runs after which a waiting rank gets a slice, so that a flood of questions starves none


class Queue:
    """Holds entries and forms batches of them."""

    def __init__(self, clock: Clock, metrics: Metrics, forget: Callable[[Entry], None]) -> None:
        """Call `forget` with each leader that is dropped."""
        self._clock = clock
        self._metrics = metrics
        metrics.queue_entries.set_function(self.__len__)
        self._forget = forget
        self._interactive: deque[Entry] = deque()
        self._ranks: OrderedDict[str, deque[Entry]] = OrderedDict()  # by client; the next one's turn comes first
        self._since_rank = 0

    def __len__(self) -> int:
        return len(self._interactive) + sum(map(len, self._ranks.values()))

    def add(self, entry: Entry) -> None:
        """Append an entry to the others of its urgency."""
        if entry.urgency is Urgency.INTERACTIVE:
            self._interactive.append(entry)
        else:
            self._ranks.setdefault(entry.client, deque()).append(entry)

    def is_full(self) -> bool:
        """Return whether a full batch is waiting, which cannot grow any more."""
        if not self._interactive:
            return False
        model = self._interactive[0].model
        return len(_in_reach(self._interactive, model)) >= model.max_batch_size

    def form(self, between_s: float) -> list[Entry]:
        """Take the next batch; it is empty if nothing is waiting.

        Questions go before ranks, except that after RANK_TURN runs of questions a rank gets its turn.

        Units: between_s in seconds, from the end of a run to the start of the next while entries wait.
        """
        if self._since_rank < RANK_TURN:
            return self._take_interactive(between_s) or self._take_slice()
        return self._take_slice() or self._take_interactive(between_s)

    def put_back(self, batch: list[Entry]) -> None:
        """Put a batch that was not run, because all its clients had gone, back at the front.

        The next `form` drops its entries, except for those that another request has joined in the meantime.
        """
        for leader in reversed(batch):
            ranks = self._ranks.setdefault(leader.client, deque()) if leader.urgency is Urgency.RANK else None
            (self._interactive if ranks is None else ranks).appendleft(leader)

    def empty(self) -> Iterator[Entry]:
        """Remove and return all entries."""
        for queue in (self._interactive, *self._ranks.values()):
            yield from queue
            queue.clear()

    def _take_interactive(self, between_s: float) -> list[Entry]:
        def size(model: LoadedModel, tokens: int) -> int:
            return model.latency.batch_size(1 + len(self._interactive), model.max_batch_size, tokens, between_s)

        batch = self._take(self._interactive, size)
        self._since_rank = self._since_rank + 1 if batch and self._ranks else 0
        return batch

    def _take_slice(self) -> list[Entry]:
        def size(model: LoadedModel, tokens: int) -> int:
            return model.latency.slice_size(model.max_batch_size, tokens)

        while self._ranks:
            client, queue = self._ranks.popitem(last=False)
            batch = self._take(queue, size)
            if queue:
                self._ranks[client] = queue  # at the end: the others go first
            if batch:
                self._since_rank = 0
                return batch
        return []

    def _take(self, queue: deque[Entry], size: Callable[[LoadedModel, int], int]) -> list[Entry]:
        """Take the oldest entry and those that fit it best: equal grids first, then similar lengths."""
        while queue:
            first = queue.popleft()
            # len(self) does not count the rank that is being taken from. An entry that is alone is dropped only if its
            # deadline has passed: if a wrong estimate kept all runs away, it could never be corrected.
            alone = not queue and not len(self)
            if self._is_alive(first, 0.0 if alone else first.model.latency.run_s(1, first.tokens)):
                return self._grow(first, queue, size(first.model, first.tokens))
        return []

    def _grow(self, first: Entry, queue: deque[Entry], limit: int) -> list[Entry]:
        """Add to the first entry those that fit it best, up to the limit.

        Skip an entry that this batch would answer too late: it will be the first of a later run. Stop when one more
        entry would make somebody in the batch late, if that entry can still wait for the next full batch. In a backlog
        none can, so batches stay full; otherwise the queue would grow faster than it is served.
        """
        model, grid, now_s = first.model, first.features.image.grid, self._clock()
        run_s = model.latency.run_s
        others = _in_reach(queue, model)
        others.sort(key=lambda entry: (entry.features.image.grid != grid, abs(entry.tokens - first.tokens)))
        batch, tokens, due_s = [first], first.tokens, first.due_s
        for entry in others:
            if len(batch) == limit:
                break
            if not self._is_alive(entry, run_s(1, entry.tokens)):
                queue.remove(entry)
                continue
            longest = max(tokens, entry.tokens)
            ends_s = now_s + run_s(len(batch) + 1, longest)
            if ends_s >= entry.due_s:
                continue
            if ends_s >= due_s and now_s + run_s(len(batch), tokens) + run_s(limit, longest) < entry.due_s:
                break
            queue.remove(entry)
            batch.append(entry)
            tokens, due_s = longest, min(due_s, entry.due_s)
        return batch

    def _is_alive(self, leader: Entry, run_s: float) -> bool:
        """Drop and count requests that have gone or would be answered too late; return whether any is left."""
        now_s = self._clock()
        for entry in leader.all():
            if entry.future.done():  # its client has gone, or its deadline has passed
                self._metrics.dropped.labels("expired" if entry.deadline_s <= now_s else "cancelled").inc()
            elif now_s + run_s >= entry.deadline_s:
                self._metrics.dropped.labels("expired").inc()
                entry.resolve(DeadlineExceeded())
        leader.followers = [entry for entry in leader.followers if not entry.future.done()]
        if leader.future.done() and not leader.followers:
            self._forget(leader)
            return False
        return True


def _in_reach(queue: deque[Entry], model: LoadedModel) -> list[Entry]:
    """Return the model's entries among those considered for its next batch."""
    return [entry for entry in islice(queue, max(LOOK_AHEAD, model.max_batch_size)) if entry.model is model]
