"""What a request's walk needs from the engine's side: a place, a permit, a run, and to be counted afterwards.

That is either in this process, or in the engine process that fronts share: remote.py.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, Self

from models.batch import Features
from server.admission import Admission, Ticket
from server.batcher import Batcher
from server.metrics import Metrics
from server.places import Places
from server.reports import Reports
from server.settings import Settings
from server.slowest import RequestRecord, Slowest
from server.types import Clock, Entry, EntryResult, LoadedModel, Urgency
from server.version import own_version

log = logging.getLogger(__name__)

LAST_WORDS_S = 1.0  # for responses to waiting clients before the process ends


class Permit(Protocol):
    """The right to have so many entries run."""

    async def run(self, features: Features, key: Hashable) -> EntryResult:
        """Queue an entry and wait for its result, which uses up its part of the permit.

        An entry in flight with the same key is joined.

        Raises: ServerError: why there is none.
        """
        ...


class Backend(Protocol):
    """Where requests are admitted, run and counted."""

    @property
    def is_draining(self) -> bool:
        """Whether the server has been told to end."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve requests while inside."""
        ...

    def close(self) -> None:
        """Stop being ready, for good."""
        ...

    def place(self, client: str, task: str) -> AbstractAsyncContextManager[None]:
        """Hold one of a client's places until its request is answered.

        Raises: Overloaded: it has none left.
        """
        ...

    def admit(
        self, model: str, urgency: Urgency, entries: int, *, deadline_s: float, client: str, key: Hashable
    ) -> AbstractAsyncContextManager[Permit]:
        """Hold room for a request's entries until it is answered; its key identifies it when it comes back.

        Raises: ServerError: as Admission.admit.
        """
        ...

    def record(self, request: RequestRecord) -> None:
        """Count a request whose response has been sent."""
        ...

    def count_decoded_hit(self) -> None:
        """Count an image that did not have to be decoded again."""
        ...

    def count_body_bytes(self, count: int) -> None:
        """Count bytes of bodies that have arrived or, if negative, been released."""
        ...

    async def status(self) -> str:
        """Return "ready", or why the server wants no requests."""
        ...

    async def report(self, name: str) -> bytes:
        """Write a report: reports.py.

        Raises: Unavailable: the engine process is not there.
        """
        ...


@dataclass(slots=True, kw_only=True)
class LocalPermit:
    """A permit of this process, until the end of the block, with what all entries of the request have in common."""

    batcher: Batcher
    ticket: Ticket
    model: LoadedModel
    urgency: Urgency
    deadline_s: float
    client: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ticket.release()

    async def run(self, features: Features, key: Hashable) -> EntryResult:
        """Queue an entry and wait for its result, which uses up its part of the permit."""
        result = await self.start(features, key)
        self.ticket.finish()
        return result

    def start(
        self, features: Features, key: Hashable, let_go: Callable[[], None] = lambda: None
    ) -> asyncio.Future[EntryResult]:
        """Queue an entry; `let_go` is called when its features are no longer needed."""
        entry = Entry(
            model=self.model,
            features=features,
            urgency=self.urgency,
            deadline_s=self.deadline_s,
            client=self.client,
            key=key,
            let_go=let_go,
        )
        return self.batcher.submit(entry)


class LocalBackend:
    """Admission, queue, engine and metrics in this process."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[LoadedModel],
        admission: Admission,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._models = {model.name: model for model in models}
        self.admission = admission
        self.batcher = Batcher(
            clock,
            metrics,
            overlapping=models[0].engine.overlapping,  # all models have the same provider
            kept_logits=settings.logits_cache_entries,
            report=admission.observe_run,
            following=admission.following,
        )
        self.places = Places(settings.max_client_requests, min(model.latency.run_s(1) for model in models), clock)
        self._metrics = metrics
        self._is_on_gpu = settings.provider != "cpu"
        for model in models:
            labels = (model.name, model.artifact.precision, model.engine.provider, model.artifact.short_identity)
            metrics.model_info.labels(*labels, own_version()).set(1)
        self._slowest = Slowest()
        self.reports = Reports(models, admission, self._slowest, metrics)

    @property
    def is_draining(self) -> bool:
        return self.admission.is_draining

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Be ready and empty the queue while inside."""
        batching = asyncio.create_task(self.batcher.run())
        batching.add_done_callback(_end_if_it_failed)
        watching = asyncio.create_task(self._end_if_hopeless(batching))
        self.admission.open()
        yield
        await self.admission.watchdog.until_idle_or_stuck()
        is_stuck = self.admission.watchdog.is_stuck
        batching.cancel()
        watching.cancel()
        await asyncio.gather(batching, watching, return_exceptions=True)
        if is_stuck:
            log.critical("a run of the model does not end: ending without waiting for it")
            os._exit(1)  # Python would wait for its thread

    async def _end_if_hopeless(self, batching: asyncio.Task[None]) -> None:
        """End the process when a run never ends or a GPU is broken, after waiting clients have been told.

        After an error such as an illegal address, CUDA refuses every call until the process ends.
        """
        await self.admission.watchdog.until_hopeless(lambda: self._is_on_gpu and self.admission.is_broken)
        what = "a run of the model does not end" if self.admission.watchdog.is_stuck else "all runs of the model fail"
        log.critical("%s: ending, to be started again", what)
        self.admission.close()
        batching.cancel()
        try:
            await asyncio.sleep(LAST_WORDS_S)
        finally:  # even if told to end in the meantime
            os._exit(1)

    def close(self) -> None:
        self.admission.close()

    @contextlib.asynccontextmanager
    async def place(self, client: str, task: str) -> AsyncIterator[None]:
        with self.places.take(client, task):
            yield

    @contextlib.asynccontextmanager
    async def admit(
        self, model: str, urgency: Urgency, entries: int, *, deadline_s: float, client: str, key: Hashable
    ) -> AsyncIterator[LocalPermit]:
        with self.permit(model, urgency, entries, deadline_s=deadline_s, client=client, key=key) as permit:
            yield permit

    def permit(
        self, model: str, urgency: Urgency, entries: int, *, deadline_s: float, client: str, key: Hashable
    ) -> LocalPermit:
        """Do the same at once."""
        loaded = self._models[model]
        return LocalPermit(
            batcher=self.batcher,
            ticket=self.admission.admit(loaded, urgency, entries, deadline_s, key),
            model=loaded,
            urgency=urgency,
            deadline_s=deadline_s,
            client=client,
        )

    def record(self, request: RequestRecord) -> None:
        """Count a request, learn from an answer how long preparing took, and perhaps keep it as a slow one."""
        self._metrics.record(request)
        if request.code == "ok":
            self.admission.observe_preparation(
                sum(request.timing_ms[stage] for stage in ("decode", "preprocess", "tokenize")) / 1000
            )
        self._slowest.add(request)

    def count_decoded_hit(self) -> None:
        self._metrics.cache_hits.labels("decoded").inc()

    def count_body_bytes(self, count: int) -> None:
        self._metrics.body_bytes.inc(count)

    async def status(self) -> str:
        return self.admission.status

    async def report(self, name: str) -> bytes:
        return self.reports.write(name)


def _end_if_it_failed(batching: asyncio.Task[None]) -> None:
    """End the process if the batching loop has failed: restarted it can serve, as it is it cannot."""
    if not batching.cancelled():
        log.critical("the batching loop has failed: ending", exc_info=batching.exception())
        sys.exit(1)
