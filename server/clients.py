"""The client of a request: its key, its name, how many requests it has in progress, whether it is still connected.

A key is compared and forgotten: no log, name or response contains it.
"""

import asyncio
import contextlib
import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from server.errors import Overloaded, Unauthorized
from server.types import Clock, Mean


def client_of(request: HTTPConnection) -> str:
    """Return the name of a request's client: the key that admitted it, else its peer's address.

    If no key is required, one that is sent is ignored: anybody could make up as many as they like.
    """
    named: str | None = getattr(request.state, "client", None)
    return named or (request.client.host if request.client else "")


class ApiKeys(HTTPBearer):
    """Admits requests that carry one of the keys, and names their client; a security scheme in OpenAPI."""

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__(scheme_name="API key", description="One of the server's keys.", auto_error=False)
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, request: HTTPConnection) -> None:  # async, or FastAPI would take a thread for it
        """Put the client's name into the request's state: the number of its key, which reveals nothing of the key.

        Raises: Unauthorized: there is no key, or a wrong one.
        """
        given = await super().__call__(request)
        if given is None:
            raise Unauthorized("This server requires a key: send the header Authorization: Bearer <key>.")
        digest = _digest(given.credentials.encode("latin-1"))  # as it came: headers are read as latin-1
        numbers = [number for number, known in enumerate(self._digests, 1) if hmac.compare_digest(known, digest)]
        if not numbers:
            raise Unauthorized("The key is none of this server's keys.")
        request.state.client = f"key {numbers[0]}"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # all have one length, so that comparing them does not reveal the key's


class Places:
    """Limits how many requests a client has at once; remembers a client only while it has one."""

    def __init__(self, most: int, run_s: float, clock: Clock) -> None:
        """Allow each client `most` requests, 0 for any number; until one has ended, it is assumed to take `run_s`."""
        self._most = most
        self._clock = clock
        self._taken: dict[str, dict[object, tuple[float, str]]] = {}  # since when and for which task, oldest first
        # By task: how long its recent requests have held their places.
        self._held_s: defaultdict[str, Mean] = defaultdict(lambda: Mean(run_s))

    @contextlib.contextmanager
    def take(self, client: str, task: str) -> Iterator[None]:
        """Hold one of a client's places while its request is answered.

        Raises: Overloaded: it has none left.
        """
        if not self._most:
            yield
            return
        taken = self._taken.setdefault(client, {})
        if len(taken) >= self._most:
            requests = "1 request" if len(taken) == 1 else f"{len(taken):,} requests"
            raise Overloaded(
                "client_over_limit",
                f"You have {requests} in progress, the limit for one client: retry when one is answered.",
                retry_after_s=self._until_free_s(taken),
            )
        place, since_s = object(), self._clock()
        taken[place] = since_s, task
        try:
            yield
        finally:
            del taken[place]
            if not taken:
                del self._taken[client]
            self._held_s[task].add(self._clock() - since_s)

    def _until_free_s(self, taken: dict[object, tuple[float, str]]) -> float:
        """Estimate when the oldest of a client's requests ends; if that is overdue, the time between two ends."""
        since_s, task = next(iter(taken.values()))
        mean_s = self._held_s[task].value
        return max(since_s + mean_s - self._clock(), mean_s / len(taken))


class Connection:
    """Cancels the task inside when its client disconnects, as asyncio.timeout does when time has passed.

    Raises: ClientDisconnect: instead of that cancellation.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._watching: asyncio.Task[None] | None = None
        self._has_gone = False

    @property
    def is_watched(self) -> bool:
        """Whether the body has been read."""
        return self._watching is not None

    def watch(self) -> None:
        """Start watching, once the body has been read: until then, the code that reads it learns of a disconnect."""
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_gone = True
        self._task.cancel()

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"  # noqa: S101 cannot happen
        self._task, self._cancelling = task, task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()  # a wait for an event: it ends at once, and takes no message with it
        # Otherwise something else has cancelled it, too.
        ours = self._has_gone and self._task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise ClientDisconnect from error
