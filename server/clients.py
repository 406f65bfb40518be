"""The client of a request: its key, its name, whether it is still connected.

A key is compared and forgotten: no log, name or response contains it.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from server.errors import Unauthorized


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
