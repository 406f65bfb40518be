"""The engine process's end of a connection to a front: does what the front's requests ask for."""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from models.batch import Features
from models.image import ImagePatches
from models.text import TextTokens
from server.backend import LocalBackend, LocalPermit
from server.channel import Channel, Message, read_record, write_error, write_result
from server.errors import Overloaded, ServerError, internal_error
from server.pipeline import PREPARED_AHEAD
from server.slots import Slots
from server.types import EntryResult, LoadedModel, Urgency

log = logging.getLogger(__name__)
ANSWERED = {"run", "admit", "place", "report"}  # messages whose answer a front waits for


class Desk:
    """Serves one front, and releases everything held for it when it has gone."""

    def __init__(self, backend: LocalBackend, models: Sequence[LoadedModel], slots: Slots, processes: set[int]) -> None:
        """Share `slots` with the desks of other fronts; add the front to `processes`, which /metrics sums over."""
        self._backend = backend
        self._models = {model.name: model for model in models}
        self._slots = slots
        self._processes = processes
        self._pid = 0
        self._body_bytes = 0
        self._held: dict[int, contextlib.ExitStack] = {}  # places and permits, by the front's numbers
        self._permits: dict[int, LocalPermit] = {}
        self._runs: dict[int, asyncio.Future[EntryResult]] = {}
        self._channel = Channel(self._received, self._lost)

    async def open(self, connection: socket.socket, starts_in_s: float) -> None:
        """Begin with a welcome: what a front has to know, and how long another engine process would take to start."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._channel, sock=connection)
        welcome = {
            "slots": self._slots.count,
            "slot_bytes": self._slots.slot_bytes,
            "starts_in_s": starts_in_s,
            "models": [describe(model) for model in self._models.values()],
        }
        self._channel.send(["welcome", welcome])

    def _received(self, message: Message, payload: bytes) -> None:
        try:
            self._do(message, payload)
        except Exception:
            log.exception("a message of a front failed: %s", message[0])
            if message[0] in ANSWERED:
                self._channel.send([message[1], True, write_error(internal_error())])

    def _do(self, message: Message, payload: bytes) -> None:
        match message:
            case ["run", number, fields]:
                self._start(number, payload, **fields)
            case ["admit", number, fields]:
                self._admit(number, **fields)
            case ["place", number, fields]:
                with self._holding(number) as stack:
                    stack.enter_context(self._backend.places.take(**fields))
                    self._channel.send([number, False, None])
            case ["drop", number]:
                self._drop(number)
            case ["record", fields]:
                self._backend.record(read_record(fields))
            case ["hit"]:
                self._backend.count_decoded_hit()
            case ["bodies", count]:
                self._count_bodies(count)
            case ["report", number, name]:
                self._channel.send([number, False, None], self._backend.reports.write(name))
            case ["hello", pid]:
                self._pid = pid
                self._processes.add(pid)

    def _admit(
        self, number: int, *, model: str, urgency: int, entries: int, deadline_s: float, client: str, key: str
    ) -> None:
        loaded = self._models[model]
        with self._holding(number) as stack:
            wanted = min(entries, slots_for(loaded))
            if len(self._slots) < wanted:
                why = "The server has no memory for another image at the moment: retry later."
                raise Overloaded("overloaded", why, retry_after_s=loaded.latency.run_s(1))
            permit = self._backend.permit(
                model, Urgency(urgency), entries, deadline_s=deadline_s, client=client, key=key
            )
            self._permits[number] = stack.enter_context(permit)
            stack.callback(self._permits.pop, number)
            slots = self._slots.take(wanted)
            for slot in slots:
                stack.callback(self._slots.let_go, slot)
            self._channel.send([number, False, slots])

    def _start(self, number: int, ids: bytes, *, permit: int, slot: int, grid: list[int], key: str) -> None:
        """Queue an entry whose patches are in a slot."""
        permitted = self._permits[permit]
        rows, columns = grid
        count = rows * columns
        numbers = np.frombuffer(ids, np.int64)
        patches = self._slots.memory.view(slot, count, permitted.model.artifact.manifest.spec.patch_values)
        image = ImagePatches(patches, numbers[-count:], (rows, columns))
        features = Features(image, TextTokens(numbers[:-count], truncated=False))
        self._slots.hold(slot)  # on behalf of the queue
        result = permitted.start(features, key, functools.partial(self._slots.let_go, slot))
        self._runs[number] = result
        result.add_done_callback(functools.partial(self._answer, number, permitted))

    def _answer(self, number: int, permit: LocalPermit, ran: asyncio.Future[EntryResult]) -> None:
        del self._runs[number]
        if ran.cancelled():
            return
        try:
            result = ran.result()
        except ServerError as error:
            self._channel.send([number, True, write_error(error)])
            return
        permit.ticket.finish()
        fields, logits = write_result(result)
        self._channel.send([number, False, fields], logits)

    @contextlib.contextmanager
    def _holding(self, number: int) -> Iterator[contextlib.ExitStack]:
        """Keep what is entered on the stack until it is dropped, or send the front the error."""
        try:
            with contextlib.ExitStack() as stack:
                yield stack
                self._held[number] = stack.pop_all()
        except ServerError as error:
            self._channel.send([number, True, write_error(error)])

    def _drop(self, number: int) -> None:
        """Cancel and release whatever a number stands for, if anything still."""
        if number in self._runs:
            self._runs[number].cancel()
        if number in self._held:
            self._held.pop(number).close()

    def _count_bodies(self, count: int) -> None:
        self._backend.count_body_bytes(count - self._body_bytes)
        self._body_bytes = count

    def _lost(self) -> None:
        self._processes.discard(self._pid)
        self._count_bodies(0)
        for number in [*self._runs, *self._held]:
            self._drop(number)


def slots_for(model: LoadedModel) -> int:
    """Return how many slots a request uses at once: a running slice, and what is prepared ahead of it."""
    return model.slice_size + PREPARED_AHEAD


def slots_of(memory: int, models: Sequence[LoadedModel], capacity: int) -> Slots:
    """Divide memory into slots for the largest image, as many as admission may hand out."""
    specs = [model.artifact.manifest.spec for model in models]
    largest = max(rows * columns * spec.patch_values for spec in specs for rows, columns in spec.grids)
    return Slots(memory, count=capacity + max(map(slots_for, models)), least_bytes=largest)


def describe(model: LoadedModel) -> dict[str, Any]:
    """Return what a front has to know about a model besides its artifact."""
    return {
        "identity": model.artifact.identity,
        "precision": model.artifact.precision,
        "provider": model.provider,
        "slice_size": model.slice_size,
    }
