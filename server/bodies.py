"""Request bodies: multipart, JSON and raw images, read as they arrive, within limits, never written to disk.

Tells the forms apart by their Content-Type; forms.py reads what is inside.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

from server.errors import BadRequest, Overloaded, TooLarge, UnsupportedMediaType
from server.types import Clock, Mean

CONTENT_TYPE_CHARS = 400  # a boundary has at most 70, and many semicolons take long to parse
SOONEST_S = 0.1  # the shortest time after which a refused client is told to retry


@dataclass(frozen=True, slots=True)
class RawBody:
    """A body as it arrived: its form and its bytes."""

    form: str  # "json", "image" or "multipart"
    data: bytes
    boundary: bytes = b""  # between the parts of a multipart body


class BodyRoom:
    """Limits the bytes of all bodies in memory, from their first byte until their request is answered."""

    def __init__(self, max_bytes: int, report: Callable[[int], None], clock: Clock) -> None:
        """Call `report` with each number of bytes taken, and with a negative one when they are released."""
        self._max_bytes = max_bytes
        self._report = report
        self._clock = clock
        self._taken = 0
        self._held_s = Mean()  # how long recent bodies have been held

    @contextlib.contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Reserve memory for one body: call the yielded function with the size of each chunk that arrives.

        A body that is alone is always accepted.

        Raises: Overloaded: (from that function) the limit is reached.
        """
        held, since_s, is_refused = 0, self._clock(), False

        def take(count: int) -> None:
            nonlocal held, is_refused
            if self._taken > held and self._taken + count > self._max_bytes:
                is_refused = True
                raise Overloaded(
                    "too_many_bodies",
                    f"The request bodies held are {self._taken:,} of at most {self._max_bytes:,} bytes: retry later.",
                    retry_after_s=max(self._held_s.value, SOONEST_S),
                )
            held += count
            self._count(count)

        try:
            yield take
        finally:
            self._count(-held)
            if held and not is_refused:  # a refused one says nothing about how long memory is held
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
    """Read a whole body within its limits, calling `take` with the size of each chunk as it arrives.

    Raises: UnsupportedMediaType: not a form that the route reads. TooLarge, BadRequest: as the message says.
        Overloaded: (from `take`) too many bodies are in memory.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(
            "unsupported_encoding",
            f"The Content-Encoding {encoding[:100]!r} is not supported; send the body uncompressed.",
        )
    content_type = headers.get("content-type", "")
    if len(content_type) > CONTENT_TYPE_CHARS:
        raise UnsupportedMediaType(
            "unsupported_media_type", f"The Content-Type has more than {CONTENT_TYPE_CHARS:,} characters."
        )
    kind = content_type.partition(";")[0].strip().lower()
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared.lstrip("0") or 0) > max_body_bytes:  # int refuses 4,301 digits
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
    wrong = f"The Content-Type {kind[:100]!r} is not supported here" if kind else "There is no Content-Type"
    raise UnsupportedMediaType("unsupported_media_type", f"{wrong}: send {forms}.")


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
