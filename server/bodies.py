"""Request bodies: multipart, JSON and raw images, read as they arrive, bounded, never on disk.

Knows forms by their Content-Type, and sizes; what is inside is forms.py's.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

from server.errors import BadRequest, Overloaded, TooLarge, UnsupportedMediaType
from server.types import Clock, Mean

CONTENT_TYPE_CHARS = 400  # a boundary has at most 70; a crowd of semicolons takes long
SOONEST_S = 0.1  # to come back in, while none has been held yet


@dataclass(frozen=True, slots=True)
class RawBody:
    """A body as it arrived: its form and its bytes."""

    form: str  # "json", "image" or "multipart"
    data: bytes
    boundary: bytes = b""  # between the parts of a multipart body


class BodyRoom:
    """Bounds the bytes of all bodies in flight, from their first byte until their request is answered."""

    def __init__(self, max_bytes: int, report: Callable[[int], None], clock: Clock) -> None:
        """Report whatever is taken, and given back as a negative number."""
        self._max_bytes = max_bytes
        self._report = report
        self._clock = clock
        self._taken = 0
        self._held_s = Mean()  # how long bodies of late have been

    @contextlib.contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Hold room for a body, which takes it as its bytes arrive; one alone always has room.

        Raises: Overloaded: by taking it, there is no room for more.
        """
        held, since_s, is_refused = 0, self._clock(), False

        def take(count: int) -> None:
            nonlocal held, is_refused
            if self._taken > held and self._taken + count > self._max_bytes:
                is_refused = True
                raise Overloaded(
                    "too_many_bodies",
                    f"Bodies of {self._taken:,} bytes are in flight and at most {self._max_bytes:,} are taken on:"
                    " come back later.",
                    retry_after_s=max(self._held_s.value, SOONEST_S),
                )
            held += count
            self._count(count)

        try:
            yield take
        finally:
            self._count(-held)
            if held and not is_refused:  # who is refused at once tells nothing of when there is room
                self._held_s.add(self._clock() - since_s)

    def _count(self, count: int) -> None:
        self._taken += count
        self._report(count)


async def read(
    stream: AsyncIterator[bytes],
    headers: Mapping[str, str],
    *,
    max_body_bytes: int,
    accepts_image: bool,
    take: Callable[[int], None] = lambda _: None,
) -> RawBody:
    """Read a whole body within its limits, taking room for its bytes as they arrive.

    Raises: UnsupportedMediaType: not a form that the route reads. TooLarge, BadRequest: as the message says.
        Overloaded: there is no room.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(
            "unsupported_encoding", f"The Content-Encoding {encoding[:100]!r} is not read; send the body as it is."
        )
    content_type = headers.get("content-type", "")
    if len(content_type) > CONTENT_TYPE_CHARS:
        raise UnsupportedMediaType(
            "unsupported_media_type", f"The Content-Type has more than {CONTENT_TYPE_CHARS:,} characters."
        )
    kind = content_type.partition(";")[0].strip().lower()
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise _body_too_large(max_body_bytes)
    form = _form_of(kind, accepts_image=accepts_image)
    boundary = _boundary_of(content_type) if form == "multipart" else b""
    if form == "multipart" and not boundary:
        raise BadRequest("malformed_body", "The multipart body's Content-Type names no boundary.")
    return RawBody(form, b"".join([chunk async for chunk in _bounded(stream, max_body_bytes, take)]), boundary)


def _boundary_of(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    try:
        return (message.get_boundary() or "").encode("latin-1", "replace")
    except UnicodeError:  # boundary*=idna''x: the client names the codec, and some refuse
        return b""


def _form_of(kind: str, *, accepts_image: bool) -> str:
    if kind == "multipart/form-data":
        return "multipart"
    if kind == "application/json":
        return "json"
    if accepts_image and kind.startswith("image/"):
        return "image"
    forms = "multipart/form-data, application/json" + (" or image/*" if accepts_image else "")
    raise UnsupportedMediaType("unsupported_media_type", f"The Content-Type {kind[:100]!r} is not read; send {forms}.")


async def _bounded(
    stream: AsyncIterator[bytes], max_body_bytes: int, take: Callable[[int], None]
) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > max_body_bytes:
            raise _body_too_large(max_body_bytes)
        take(len(chunk))
        yield chunk


def _body_too_large(max_body_bytes: int) -> TooLarge:
    return TooLarge("body_too_large", f"The body is larger than {max_body_bytes:,} bytes.")
