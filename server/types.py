"""What crosses files inside the server: timings, the model as it is served, the entry in the queue."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from models.batch import Features
from models.manifest import Artifact
from server.errors import ServerError

if TYPE_CHECKING:
    from server.latency import LatencyModel

Clock = Callable[[], float]  # monotonic seconds
Logits = dict[str, NDArray[np.float32]]

STAGES = ("receive", "admit", "decode", "preprocess", "tokenize", "queue", "inference", "answer")
SMOOTHING = 0.1  # weight of the newest in a running mean


@dataclass(slots=True)
class Mean:
    """A running mean, in which recent values count most."""

    value: float = 0.0

    def add(self, newest: float) -> None:
        """Add one more value."""
        self.value += SMOOTHING * (newest - self.value)


class Timings:
    """Consecutive marks on one monotonic clock, so that stages sum to the total."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.started_s = self._last_s = clock()
        self.stages_s: dict[str, float] = {}
        self.parts_s: dict[str, float] = {}

    def mark(self, stage: str, at_s: float | None = None) -> None:
        """End a stage now, or at an instant measured on another thread."""
        now_s = self._clock() if at_s is None else at_s
        self.stages_s[stage] = now_s - self._last_s
        self._last_s = now_s

    def close(self) -> None:
        """End the stage that a request failed in: the first without a mark."""
        for stage in STAGES:
            if stage not in self.stages_s:
                self.mark(stage)
                return

    def elapsed_s(self) -> float:
        """Return the time since the request's head arrived."""
        return self._clock() - self.started_s

    def as_ms(self) -> dict[str, float]:
        """Return stages, nested parts and the total, in milliseconds."""
        total_s = sum(self.stages_s.values())
        named_s = {**self.stages_s, **self.parts_s, "total": total_s}
        return {name: round(1000 * value, 3) for name, value in named_s.items()}


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """A batch's logits and the time of each part of the model."""

    logits: Logits  # each (B, labels)
    parts_s: dict[str, float]


class Engine(Protocol):
    """Runs batches, on the caller's threads."""

    provider: str
    version: str
    device: str  # that it runs on, by its vendor's name
    overlapping: int  # batches under way at once: all but one are being copied

    def padded(self, batch: int, tokens: float) -> tuple[int, float]:
        """Return the rows, and the tokens of a row, that a batch is padded to."""
        ...

    def warm_up(self) -> None:
        """Do what the first request would otherwise pay for."""
        ...

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        """Compute every head's logits, a row for each pair."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedModel:
    """An artifact that is served, in whichever process its engine is."""

    artifact: Artifact
    provider: str
    slice_size: int  # candidates of a rank that are expected to run together

    @property
    def name(self) -> str:
        return self.artifact.manifest.name

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.artifact.manifest.tasks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel(ServedModel):
    """A model with its engine, how long its runs take, and how many entries may run together."""

    engine: Engine
    latency: "LatencyModel"
    max_batch_size: int


class Urgency(IntEnum):
    """Which entries go first: a person waits for an answer, a rank for all of its slices."""

    INTERACTIVE = 0
    RANK = 1


@dataclass(frozen=True, slots=True)
class EntryResult:
    """One entry's share of a batch."""

    logits: Logits  # each (labels,)
    started_s: float
    ended_s: float
    parts_s: dict[str, float]
    batch_size: int

    def since(self, joined_s: float) -> "EntryResult":
        """Return the result for an entry that joined the run later: it saw only the rest of it."""
        passed_s, parts_s = joined_s - self.started_s, {}
        for part, value in self.parts_s.items():  # one after the other
            parts_s[part] = max(0.0, value - passed_s)
            passed_s = max(0.0, passed_s - value)
        return replace(self, started_s=joined_s, ended_s=max(self.ended_s, joined_s), parts_s=parts_s)


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A prepared request in the queue; its future is resolved whatever happens.

    Entries of one key ask for the same: the first leads, and the others follow it even while it runs.
    """

    model: LoadedModel
    features: Features
    urgency: Urgency
    deadline_s: float
    client: str = ""
    key: Hashable = field(default_factory=object)  # by default, equal to no other
    queued_s: float = 0.0
    followers: list["Entry"] = field(default_factory=list)
    let_go: Callable[[], None] = lambda: None  # called once, when the features are no longer needed
    future: asyncio.Future[EntryResult] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def tokens(self) -> int:
        """The row's tokens: text, the image's cls token, patches."""
        return len(self.features.text.input_ids) + 1 + len(self.features.image.patches)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody is still waiting for it."""
        return not self.future.done() or any(not entry.future.done() for entry in self.followers)

    @property
    def due_s(self) -> float:
        """The earliest deadline of those still waiting for it."""
        return min(entry.deadline_s for entry in self.all() if not entry.future.done())

    def all(self) -> Iterator["Entry"]:
        """Yield the leader and its followers."""
        yield self
        yield from self.followers

    def resolve(self, outcome: EntryResult | ServerError) -> None:
        """Resolve the future with a result or an error, unless it is already done."""
        if self.future.done():
            return
        if isinstance(outcome, EntryResult):
            self.future.set_result(outcome if self.queued_s <= outcome.started_s else outcome.since(self.queued_s))
        else:
            self.future.set_exception(outcome)
