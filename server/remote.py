"""The engine process as a front sees it: RemoteBackend asks it for what LocalBackend does itself."""

import asyncio
import contextlib
import hashlib
import itertools
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from models.batch import Features
from server.channel import Channel, Message, read_error, read_result
from server.errors import Unavailable
from server.slots import Memory
from server.slowest import RequestRecord
from server.types import Clock, EntryResult, Urgency

UNSENT = 10_000  # records kept while there is no engine process to count them
REPORTED_BYTES = 1_000_000  # a change in the size of all bodies that is worth a message
ANSWER_WITHIN_S = 2.0  # when the answer costs the engine process nothing
SOONEST_S = 0.1  # to come back, when the start takes longer than the last one
Answer = tuple[Any, bytes]
T = TypeVar("T")


class EngineConnection:
    """The connection to one engine process, and the memory shared with it."""

    def __init__(
        self,
        memory: int,
        *,
        welcomed: Callable[["EngineConnection", dict[str, Any]], None],
        lost: Callable[["EngineConnection"], None],
        drained: Callable[[], None],
        refusal: Callable[[], Unavailable],
    ) -> None:
        """Call `welcomed` when the engine process is ready, `lost` at the end, `drained` when there is room again.

        Calls that are not answered raise what `refusal` returns.
        """
        self._descriptor = memory
        self._welcomed = welcomed
        self._ended = lost
        self._refusal = refusal
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._is_lost = False
        self._channel = Channel(self._received, self._lost, drained)

    @property
    def is_full(self) -> bool:
        """Whether the engine process has left too much unread to be sent more."""
        return self._channel.is_full

    async def open(self, connection: socket.socket) -> None:
        """Begin; the engine process sends a welcome when it is ready."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._channel, sock=connection)
        self.tell("hello", os.getpid())

    async def call(self, number: int, kind: str, content: object, payload: bytes = b"") -> Answer:
        """Send a request under a number and wait for its answer; when cancelled, drop what was asked for.

        Raises: ServerError: the answer. Unavailable: there will be none.
        """
        if self._is_lost:
            raise self._refusal()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self._channel.send([kind, number, content], payload)
        try:
            return await answer
        except asyncio.CancelledError:
            self.tell("drop", number)
            raise
        finally:
            del self._calls[number]

    @contextlib.asynccontextmanager
    async def hold(self, kind: str, content: object) -> AsyncIterator[tuple[int, Any]]:
        """Ask for something that the engine process holds until the end of the block."""
        number = self.next_number()
        given, _ = await self.call(number, kind, content)
        try:
            yield number, given
        finally:
            self.tell("drop", number)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def next_number(self) -> int:
        return next(self._numbers)

    def tell(self, *message: object) -> None:
        """Send a message that has no answer."""
        if not self._is_lost:
            self._channel.send(list(message))

    def _received(self, message: Message, payload: bytes) -> None:
        if message[0] == "welcome":
            self.memory = Memory(self._descriptor, message[1]["slots"], message[1]["slot_bytes"])
            self._welcomed(self, message[1])
            return
        number, is_error, content = message
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return
        if is_error:
            answer.set_exception(read_error(content))
        else:
            answer.set_result((content, payload))

    def _lost(self) -> None:
        os.close(self._descriptor)
        self._is_lost = True
        self._ended(self)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._refusal())


class RemotePermit:
    """A permit of the engine process, with slots for patches."""

    def __init__(self, engine: EngineConnection, number: int, slots: list[int]) -> None:
        self._engine = engine
        self._number = number
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for slot in slots:
            self._free.put_nowait(slot)

    async def run(self, features: Features, key: Hashable) -> EntryResult:
        """Have an entry run; a failure ends the request, and with it the use of its slot."""
        slot = await self._free.get()
        image, input_ids = features.image, features.text.input_ids
        np.copyto(self._engine.memory.view(slot, *image.patches.shape), image.patches)
        fields = {
            "permit": self._number,
            "slot": slot,
            "grid": image.grid,
            "key": _digest(key),
        }
        ids = input_ids.tobytes() + image.position_ids.tobytes()
        result = read_result(*await self._engine.call(self._engine.next_number(), "run", fields, ids))
        self._free.put_nowait(slot)
        return result


class RemoteBackend:
    """The engine process; while there is none, requests are refused with a time to come back."""

    def __init__(
        self, serves_the_same: Callable[[list[dict[str, Any]]], bool], *, limits_clients: bool, clock: Clock
    ) -> None:
        """Use only an engine process whose models, as described, `serves_the_same` accepts."""
        self._serves_the_same = serves_the_same
        self._limits_clients = limits_clients
        self._clock = clock
        self._engine: EngineConnection | None = None
        self._starts_in_s, self._lost_s = 0.0, 0.0
        self._unsent: deque[RequestRecord] = deque(maxlen=UNSENT)
        self._body_bytes, self._told_bytes = 0, 0
        self.is_draining = False

    async def connect(self, connection: socket.socket, memory: int) -> None:
        """Use another engine process as soon as it is ready."""
        engine = EngineConnection(
            memory, welcomed=self._welcomed, lost=self._lost, drained=self._catch_up, refusal=self._refusal
        )
        await engine.open(connection)

    def _welcomed(self, engine: EngineConnection, fields: dict[str, Any]) -> None:
        if not self._serves_the_same(fields["models"]):
            return
        self._engine, self._starts_in_s, self._told_bytes = engine, fields["starts_in_s"], 0
        self._catch_up()

    def _lost(self, engine: EngineConnection) -> None:
        if self._engine is engine:
            self._engine, self._lost_s = None, self._clock()

    def _refusal(self) -> Unavailable:
        """Return an error with the time until another engine process should be there: the last one's start time."""
        wait_s = self._lost_s + self._starts_in_s - self._clock()
        why = "The process that runs the model has ended, and another is starting: retry later."
        return Unavailable("engine_restarting", why, retry_after_s=max(SOONEST_S, wait_s))

    def _connected(self) -> EngineConnection:
        if self._engine is None:
            raise self._refusal()
        if self._engine.is_full:
            raise _unresponsive()
        return self._engine

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        yield
        if self._engine:
            self._engine.close()

    def close(self) -> None:
        self.is_draining = True

    @contextlib.asynccontextmanager
    async def place(self, client: str, task: str) -> AsyncIterator[None]:
        if not self._limits_clients:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            place = self._connected().hold("place", {"client": client, "task": task})
            await _soon(stack.enter_async_context(place))
            yield

    @contextlib.asynccontextmanager
    async def admit(
        self, model: str, urgency: Urgency, entries: int, *, deadline_s: float, client: str, key: Hashable
    ) -> AsyncIterator[RemotePermit]:
        engine = self._connected()
        fields = {
            "model": model,
            "urgency": urgency,
            "entries": entries,
            "deadline_s": deadline_s,
            "client": client,
            "key": _digest(key),
        }
        async with contextlib.AsyncExitStack() as stack:
            number, slots = await _soon(stack.enter_async_context(engine.hold("admit", fields)))
            yield RemotePermit(engine, number, slots)

    def record(self, request: RequestRecord) -> None:
        self._unsent.append(request)
        self._catch_up()

    def count_decoded_hit(self) -> None:
        """Report it, from any thread."""
        engine = self._engine  # may be lost at any moment
        if engine:
            self._loop.call_soon_threadsafe(engine.tell, "hit")

    def count_body_bytes(self, count: int) -> None:
        """Keep the count, and send it when it has changed by enough."""
        self._body_bytes += count
        self._catch_up()

    def _catch_up(self) -> None:
        """Send what has not been sent yet, if there is an engine process with room for it."""
        engine = self._engine
        while engine and not engine.is_full and self._unsent:
            engine.tell("record", self._unsent.popleft())
        change = abs(self._body_bytes - self._told_bytes)
        is_enough = change >= REPORTED_BYTES or (change and not self._body_bytes)
        if engine and not engine.is_full and is_enough:
            self._told_bytes = self._body_bytes
            engine.tell("bodies", self._body_bytes)

    async def status(self) -> str:
        """Return "ready", or why the server wants no requests."""
        if self.is_draining:
            return "draining"
        try:
            return (await self.report("status")).decode()
        except Unavailable:
            return "unresponsive" if self._engine else "starting"

    async def report(self, name: str) -> bytes:
        """Ask for a report."""
        engine = self._connected()
        _, payload = await _soon(engine.call(engine.next_number(), "report", name))
        return payload


async def _soon(asked: Awaitable[T]) -> T:
    """Wait, but not for long, for an answer that costs the engine process nothing.

    Raises: Unavailable: it does not answer.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await asked
    except TimeoutError as error:
        raise _unresponsive() from error


def _unresponsive() -> Unavailable:
    why = "The process that runs the model has not answered in time: retry later."
    return Unavailable("engine_unresponsive", why, retry_after_s=ANSWER_WITHIN_S)


def _digest(key: Hashable) -> str:
    """Return a key that is the same from any process."""
    return hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
