"""Fakes we own: an engine that answers at once, fails, or waits; a clock set by hand; fronts without processes."""

import asyncio
import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.batch import Features
from models.image import ImagePatches
from models.manifest import Artifact, load_artifact
from models.text import TextTokens
from server.backend import LocalBackend
from server.desk import Desk, slots_of
from server.latency import LatencyModel, Sample
from server.remote import RemoteBackend
from server.settings import SHAPES
from server.types import EngineOutput, LoadedModel


class FakeClock:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeEngine:
    """Returns each row's first token as all of its logits, and records its batches."""

    provider = "fake"
    version = "0"
    device = "a fake"

    def __init__(self, *, failures: int = 0, not_numbers: Sequence[int] = (), overlapping: int = 1) -> None:
        self.labels = len(artifact().labels)
        self.not_numbers = list(not_numbers)
        self.batches: list[list[int]] = []
        self.failures = failures
        self.overlapping = overlapping
        self.may_run = threading.Event()
        self.may_run.set()

    def padded(self, batch: int, tokens: float) -> tuple[int, float]:
        return batch, tokens

    def warm_up(self) -> None:
        pass

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        self.may_run.wait(timeout=30)
        first = np.array([[pair.text.input_ids[0]] for pair in batch], np.float32)
        self.batches.append(first[:, 0].astype(int).tolist())
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the engine broke")
        first[np.isin(first, self.not_numbers)] = np.nan
        logits = {"vqa_logits": np.repeat(first, self.labels, axis=1), "itm_logits": np.repeat(first, 2, axis=1)}
        parts_s = dict.fromkeys(("text_embedding", "visual_embedding", "interaction"), 0.001)
        return EngineOutput({**logits, "rank_logits": first}, parts_s)


class HeldEngine(FakeEngine):
    """Signals when a run has begun, and ends it when `may_run` is set."""

    def __init__(self, *, failures: int = 0, not_numbers: Sequence[int] = (), overlapping: int = 1) -> None:
        super().__init__(failures=failures, not_numbers=not_numbers, overlapping=overlapping)
        self.has_begun = threading.Event()

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        self.has_begun.set()
        return super().run(batch)


def latency(base_s: float = 0.01, per_token_s: float = 0.0, typical_tokens: float = 10) -> LatencyModel:
    """Return a model of runs that take a base and a time for each token; with only a base, large batches pay most."""
    shapes = [(batch, tokens) for batch in (1, 2, 4) for tokens in (5, 10, 40)]
    samples = [Sample(batch, tokens, base_s + per_token_s * batch * tokens) for batch, tokens in shapes]
    return LatencyModel(samples, typical_tokens)


def served(
    engine: FakeEngine, *, max_batch_size: int = 4, name: str = "shapes", runs: LatencyModel | None = None
) -> LoadedModel:
    """Serve the shipped artifact's tokenizer and labels with a fake engine."""
    runs = runs or latency()
    return LoadedModel(
        artifact=artifact(name),
        provider=engine.provider,
        slice_size=runs.slice_size(max_batch_size),
        engine=engine,
        latency=runs,
        max_batch_size=max_batch_size,
    )


@functools.cache  # it is frozen, and reading and hashing it is most of what many tests take
def artifact(name: str = "shapes", folder: Path = SHAPES) -> Artifact:
    """Load the shipped artifact, or another, under a name."""
    loaded = load_artifact(folder)
    return replace(loaded, manifest=replace(loaded.manifest, name=name))


def features(number: int, *, rows: int = 1, columns: int = 1, length: int = 3) -> Features:
    """Return a pair identified by its first token."""
    count = rows * columns
    image = ImagePatches(np.zeros((count, 3072), np.uint8), np.ones(count, np.int64), (rows, columns))
    return Features(image, TextTokens(np.array([number] * length, np.int64), truncated=False))


class Hall:
    """What an engine process shares between the desks of its fronts."""

    def __init__(self, local: LocalBackend, models: Sequence[LoadedModel], capacity: int = 1024) -> None:
        self.local, self.models = local, models
        self.memory = os.memfd_create("test")
        self.slots = slots_of(self.memory, models, capacity)
        self.desks: set[Desk] = set()

    @property
    def slots_in_use(self) -> int:
        return self.slots.count - len(self.slots)

    async def connect(self, front: RemoteBackend) -> socket.socket:
        """Give a front a desk, over a real connection; return the front's end."""
        theirs, ours = socket.socketpair()
        await CountedDesk(self).open(ours, starts_in_s=1.5)
        await front.connect(theirs, os.dup(self.memory))
        while await front.status() != "ready":  # noqa: ASYNC110 the welcome is on its way
            await asyncio.sleep(0)
        return theirs

    async def emptied(self) -> None:
        """Wait until the last front has gone."""
        while self.desks:  # noqa: ASYNC110 it is on its way
            await asyncio.sleep(0)
        os.close(self.memory)


class CountedDesk(Desk):
    """A desk that is in its hall's set while it is open."""

    def __init__(self, hall: Hall) -> None:
        super().__init__(hall.local, hall.models, hall.slots, set())
        self._hall = hall
        hall.desks.add(self)

    def _lost(self) -> None:
        super()._lost()
        self._hall.desks.discard(self)


class SplitBackend(RemoteBackend):
    """A front and its engine process in one loop."""

    def __init__(self, local: LocalBackend, models: Sequence[LoadedModel], *, limits_clients: bool = False) -> None:
        super().__init__(lambda _: True, limits_clients=limits_clients, clock=time.perf_counter)
        self.hall = Hall(local, models)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.hall.local.running():
            async with super().running():
                await self.hall.connect(self)
                yield
            await self.hall.emptied()
