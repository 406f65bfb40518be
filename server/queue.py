"""What waits for the engine, and which of it runs next: questions before ranks, ranks of several clients in turns.

Knows no engine and no thread; those who have gone, or cannot be answered in time, are dropped when a batch is formed.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice

from server.errors import DeadlineExceeded
from server.metrics import Metrics
from server.types import Clock, Entry, LoadedModel, Urgency

LOOK_AHEAD = 64  # entries considered for a batch, or as many as it may have: enough for equal grids, little to sort
RANK_TURN = 8  # interactive runs after which a rank that waits gets a slice, so that a flood of questions starves none


class Queue:
    """Holds entries, and forms batches of them."""

    def __init__(self, clock: Clock, metrics: Metrics, forget: Callable[[Entry], None]) -> None:
        """Tell `forget` of each leader that is dropped."""
        self._clock = clock
        self._metrics = metrics
        self._forget = forget
        self._interactive: deque[Entry] = deque()
        self._ranks: OrderedDict[str, deque[Entry]] = OrderedDict()  # by client; the one whose turn it is comes first
        self._since_rank = 0

    def __len__(self) -> int:
        return len(self._interactive) + sum(map(len, self._ranks.values()))

    def add(self, entry: Entry) -> None:
        """Put an entry behind all others of its kind."""
        if entry.urgency is Urgency.INTERACTIVE:
            self._interactive.append(entry)
        else:
            self._ranks.setdefault(entry.client, deque()).append(entry)
        self._metrics.queue_entries.set(len(self))

    def is_full(self) -> bool:
        """Tell whether a whole batch waits, which can grow no more."""
        if not self._interactive:
            return False
        model = self._interactive[0].model
        return len(_in_reach(self._interactive, model)) >= model.max_batch_size

    def form(self, between_s: float) -> list[Entry]:
        """Take the next batch; an empty list means that nothing is waiting.

        Questions go ahead of ranks, but for every RANK_TURN-th run. Ranks of several clients take turns.

        Units: between_s in seconds, from a run's end to the next one's start while entries wait.
        """
        if self._since_rank < RANK_TURN:
            batch = self._take_interactive(between_s) or self._take_slice()
        else:
            batch = self._take_slice() or self._take_interactive(between_s)
        self._metrics.queue_entries.set(len(self))
        return batch

    def put_back(self, batch: list[Entry]) -> None:
        """Leave it to the next forming to drop those who have gone; whoever follows one of them by now is served."""
        for leader in reversed(batch):
            ranks = self._ranks.setdefault(leader.client, deque()) if leader.urgency is Urgency.RANK else None
            (self._interactive if ranks is None else ranks).appendleft(leader)

    def empty(self) -> Iterator[Entry]:
        """Take all that waits."""
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
                self._ranks[client] = queue  # to the end: the others' turn
            if batch:
                self._since_rank = 0
                return batch
        return []

    def _take(self, queue: deque[Entry], size: Callable[[LoadedModel, int], int]) -> list[Entry]:
        """Take the oldest entry and those that fit it best: equal grids first, then near lengths."""
        while queue:
            first = queue.popleft()
            # A rank's queue is out of its place while this takes from it. Whoever is alone is dropped only where there
            # is no doubt, or a wrong estimate could never be corrected.
            alone = not queue and not len(self)
            if self._is_alive(first, 0.0 if alone else first.model.latency.run_s(1, first.tokens)):
                return self._grow(first, queue, size(first.model, first.tokens))
        return []

    def _grow(self, first: Entry, queue: deque[Entry], limit: int) -> list[Entry]:
        """Add to the first entry those that fit it best, up to the limit.

        Who is due before the batch would end is left, to be the first of the next run. So is who can wait for a whole
        batch, where one in this batch would be late with them: in a backlog nobody can, and batches stay whole, or what
        waits would grow faster than it is answered.
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
        """Drop, and count, whoever has gone or cannot be answered in time by a run that begins now."""
        now_s = self._clock()
        for entry in leader.all():
            if entry.future.done():  # its request has been told, be it that it has gone or that its time is up
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
    """List the model's entries among those that are considered for a batch of it."""
    return [entry for entry in islice(queue, max(LOOK_AHEAD, model.max_batch_size)) if entry.model is model]
