"""A front's way to the engine process: what LocalBackend does by calling, this does by asking."""

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
from server.channel import Channel, Message, read_error, read_result, write_record
from server.errors import Unavailable
from server.slots import Memory
from server.slowest import RequestRecord
from server.types import Clock, EntryResult, Urgency

UNSENT = 10_000  # requests that ended while no engine process listened, and are counted when one does again
TELL_BYTES = 1_000_000  # by which what bodies hold has changed before it is told
ANSWER_WITHIN_S = 2.0  # to what costs the engine process nothing
SOONEST_S = 0.1  # to come back, when it takes longer than the last start
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
        """Tell of welcome, end, and room to write again; whoever asks or waits after the end is told the refusal."""
        self._descriptor = memory
        self._tell_welcome = welcomed
        self._tell_end = lost
        self._refusal = refusal
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._is_lost = False
        self._channel = Channel(self._received, self._lost, drained)

    @property
    def is_full(self) -> bool:
        """Whether the engine process leaves too much unread for more to be said."""
        return self._channel.is_full

    async def open(self, connection: socket.socket) -> None:
        """Begin; there is a welcome when the engine process is ready."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._channel, sock=connection)
        self.tell("hello", os.getpid())

    async def call(self, number: int, kind: str, content: object, payload: bytes = b"") -> Answer:
        """Ask under a number, and wait for the answer; who waits no longer lets go of what was asked for.

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
        """Ask for something that is kept, under a number, until it is let go of."""
        number = self.next_number()
        given, _ = await self.call(number, kind, content)
        try:
            yield number, given
        finally:
            self.tell("drop", number)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def next_number(self) -> int:
        return next(self._numbers)

    def tell(self, *message: object) -> None:
        """Say something that has no answer."""
        if not self._is_lost:
            self._channel.send(list(message))

    def _received(self, message: Message, payload: bytes) -> None:
        if message[0] == "welcome":
            self.memory = Memory(self._descriptor, message[1]["slots"], message[1]["slot_bytes"])
            self._tell_welcome(self, message[1])
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
        self._tell_end(self)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._refusal())


class RemotePermit:
    """A permit of the engine process, with slots to put patches in."""

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
    """The engine process, or the want of one; what is asked of it then is refused with a time to come back."""

    def __init__(self, suits: Callable[[list[dict[str, Any]]], bool], *, limits_clients: bool, clock: Clock) -> None:
        """Use an engine process whose models suit."""
        self._suits = suits
        self._limits_clients = limits_clients
        self._clock = clock
        self._engine: EngineConnection | None = None
        self._starts_in_s, self._lost_s = 0.0, 0.0
        self._unsent: deque[RequestRecord] = deque(maxlen=UNSENT)
        self._body_bytes, self._told_bytes = 0, 0
        self.is_draining = False

    async def connect(self, connection: socket.socket, memory: int) -> None:
        """Turn to another engine process, once it is ready."""
        engine = EngineConnection(
            memory, welcomed=self._welcomed, lost=self._lost, drained=self._catch_up, refusal=self._refusal
        )
        await engine.open(connection)

    def _welcomed(self, engine: EngineConnection, fields: dict[str, Any]) -> None:
        if not self._suits(fields["models"]):
            return
        self._engine, self._starts_in_s, self._told_bytes = engine, fields["starts_in_s"], 0
        self._catch_up()

    def _lost(self, engine: EngineConnection) -> None:
        if self._engine is engine:
            self._engine, self._lost_s = None, self._clock()

    def _refusal(self) -> Unavailable:
        """Say no, and when there should be an engine process again, if it takes as long to start as the last."""
        wait_s = self._lost_s + self._starts_in_s - self._clock()
        why = "The process that runs the model has ended, and another is being started: come back later."
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
        async with engine.hold("admit", fields) as (number, slots):
            yield RemotePermit(engine, number, slots)

    def record(self, request: RequestRecord) -> None:
        self._unsent.append(request)
        self._catch_up()

    def count_decoded_hit(self) -> None:
        """Say so; from any thread."""
        engine = self._engine  # which may be lost at any moment
        if engine:
            self._loop.call_soon_threadsafe(engine.tell, "hit")

    def count_body_bytes(self, count: int) -> None:
        """Keep the count, and tell it when it has changed by enough."""
        self._body_bytes += count
        self._catch_up()

    def _catch_up(self) -> None:
        """Tell what there is to tell, as far as there is somebody who listens."""
        engine = self._engine
        while engine and not engine.is_full and self._unsent:
            engine.tell("record", write_record(self._unsent.popleft()))
        change = abs(self._body_bytes - self._told_bytes)
        is_enough = change >= TELL_BYTES or (change and not self._body_bytes)
        if engine and not engine.is_full and is_enough:
            self._told_bytes = self._body_bytes
            engine.tell("bodies", self._body_bytes)

    async def status(self) -> str:
        """Say whether the server wants requests."""
        if self.is_draining:
            return "draining"
        try:
            return (await self.report("status")).decode()
        except Unavailable:
            return "unresponsive" if self._engine else "starting"

    async def report(self, name: str) -> bytes:
        """Have a report written, if that can be done in time."""
        engine = self._connected()
        _, payload = await _soon(engine.call(engine.next_number(), "report", name))
        return payload


async def _soon(asked: Awaitable[T]) -> T:
    """Wait for what costs the engine process nothing.

    Raises: Unavailable: it does not answer.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await asked
    except TimeoutError as error:
        raise _unresponsive() from error


def _unresponsive() -> Unavailable:
    why = "The process that runs the model has not answered in time: come back later."
    return Unavailable("engine_unresponsive", why, retry_after_s=ANSWER_WITHIN_S)


def _digest(key: Hashable) -> str:
    """Write a key so that any process knows it again."""
    return hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
