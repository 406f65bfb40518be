"""Request bodies to fields: multipart, JSON and raw images, read as they arrive, bounded, never on disk.

Knows sizes and syntax; what the fields mean is schemas.py's, and an image is still encoded when it leaves here.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import BadRequest, Overloaded, TooLarge, UnsupportedMediaType
from server.schemas import Body, RankBody
from server.types import Clock

BodyT = TypeVar("BodyT", bound=Body)
FIELD_BYTES = 64_000  # of a multipart part that is not a file; texts have their own limit
JSON_VALUES = 300_000  # in 20 MB there is room for 6 million empty lists, which take 500 MB and hold up every thread
SMOOTHING = 0.1  # weight of the newest body in the running mean

Fields = dict[str, list[str | bytes]]


@dataclass(frozen=True, slots=True)
class RawBody:
    """A body as it arrived: its form and its bytes, or the fields already taken from it."""

    form: str  # "json", "image" or "multipart"
    data: bytes
    fields: Fields


class BodyRoom:
    """Bounds the bytes of all bodies in flight, from their first byte until their request is answered."""

    def __init__(self, max_bytes: int, report: Callable[[int], None], clock: Clock) -> None:
        """Report whatever is taken, and given back as a negative number."""
        self._max_bytes = max_bytes
        self._report = report
        self._clock = clock
        self._taken = 0
        self._mean_s = 0.0  # how long bodies of late have been held

    @contextlib.contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Hold room for a body, which takes it as its bytes arrive; one alone always has room.

        Raises: Overloaded: by taking it, there is no room for more.
        """
        held, since_s = 0, self._clock()

        def take(count: int) -> None:
            nonlocal held
            if self._taken > held and self._taken + count > self._max_bytes:
                raise Overloaded(
                    "too_many_bodies",
                    f"Bodies of {self._taken:,} bytes are in flight and at most {self._max_bytes:,} are taken on:"
                    " come back later.",
                    retry_after_s=self._mean_s,
                )
            held += count
            self._count(count)

        try:
            yield take
        finally:
            self._count(-held)
            self._mean_s += SMOOTHING * (self._clock() - since_s - self._mean_s)

    def _count(self, count: int) -> None:
        self._taken += count
        self._report(count)


async def read(
    stream: AsyncIterator[bytes],
    headers: Mapping[str, str],
    *,
    max_body_bytes: int,
    max_parts: int,
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
    content_type, options = parse_options_header(headers.get("content-type", ""))
    kind = content_type.decode("latin-1")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise _body_too_large(max_body_bytes)
    if kind == "multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise BadRequest("malformed_body", "The multipart body's Content-Type names no boundary.")
        parts = _Parts(boundary, max_parts)
        async for chunk in _bounded(stream, max_body_bytes, take):
            parts.feed(chunk)
        return RawBody("multipart", b"", parts.finish())
    if kind == "application/json" or (accepts_image and kind.startswith("image/")):
        data = bytearray()
        async for chunk in _bounded(stream, max_body_bytes, take):
            data += chunk
        return RawBody("json" if kind == "application/json" else "image", bytes(data), {})
    forms = "multipart/form-data, application/json" + (" or image/*" if accepts_image else "")
    raise UnsupportedMediaType("unsupported_media_type", f"The Content-Type {kind[:100]!r} is not read; send {forms}.")


def parse(body: RawBody, query: Mapping[str, str], schema: type[BodyT]) -> BodyT:
    """Hold a body, whatever its form, and the query string to one schema; takes milliseconds for large JSON.

    Raises: BadRequest: a field is missing, unknown, or of the wrong type.
    """
    fields: dict[str, Any] = dict(query)
    if body.form == "json":
        fields.update(_parse_json(body.data))
    elif body.form == "image":
        fields["image"] = body.data
    elif schema is RankBody:
        fields.update(_rank_fields(body.fields))
    else:
        fields.update(_single_fields(body.fields))
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from error


def _parse_json(data: bytes) -> dict[str, Any]:
    if sum(map(data.count, (b"[", b"{", b","))) > JSON_VALUES:  # of a text they count as well: it is a bound
        raise TooLarge("too_many_values", f"The JSON body has more than {JSON_VALUES:,} values.")
    try:
        parsed = json.loads(data)
    except RecursionError as error:
        raise BadRequest("malformed_json", "The JSON body is nested too deeply.") from error
    except ValueError as error:
        raise BadRequest("malformed_json", f"The body is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise BadRequest("malformed_json", "The JSON body must be an object.")
    return parsed


def _single_fields(fields: Fields) -> dict[str, Any]:
    for name, values in fields.items():
        if len(values) > 1:
            raise BadRequest("repeated_field", f"The field {name[:100]!r} is given {len(values)} times; give it once.")
    return {name: values[0] for name, values in fields.items()}


def _rank_fields(fields: Fields) -> dict[str, Any]:
    """Turn query_text or query_image, and repeated images or texts, into the JSON body's fields."""
    texts, images = fields.pop("texts", []), fields.pop("images", [])
    single = _single_fields(fields)
    query = {kind: single.pop(f"query_{kind}") for kind in ("text", "image") if f"query_{kind}" in single}
    if len(query) != 1:
        raise BadRequest("missing_field", "Give one query: the field query_text or query_image.")
    if bool(texts) == bool(images):
        raise BadRequest("missing_field", "Give candidates of one kind: the field images or texts, repeated.")
    candidates = [{"text": text} for text in texts] or [{"image": image} for image in images]
    return {**single, "query": query, "candidates": candidates}


def _explain(error: ValidationError) -> BadRequest:
    """Say the first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("str", "bytes"))[:100]
    match first["type"]:
        case "missing":
            return BadRequest("missing_field", f"The field {where!r} is missing.")
        case "extra_forbidden":
            return BadRequest("unknown_field", f"There is no field {where!r}.")
        case _:
            message = first["msg"].removeprefix("Value error, ")
            return BadRequest(
                "invalid_field", f"The field {where!r} is not valid: {message}." if where else f"{message}."
            )


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


class _Parts:
    """The parts of a multipart body, kept in memory: files as bytes, other fields as text."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        self._max_parts = max_parts
        self._fields: Fields = {}
        self._count = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest("malformed_body", f"The multipart body is malformed: {error}.") from error

    def finish(self) -> Fields:
        if not self._ended:
            raise BadRequest("malformed_body", "The multipart body ends before its closing boundary.")
        return self._fields

    def _begin(self) -> None:
        self._count += 1
        if self._count > self._max_parts:
            raise TooLarge("too_many_parts", f"The multipart body has more than {self._max_parts:,} parts.")
        self._header_name, self._header_value, self._value = bytearray(), bytearray(), bytearray()
        self._disposition = b""

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise BadRequest("malformed_body", "A part of the multipart body has no name.")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options or self._name in ("image", "images", "query_image")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if not self._is_file and len(self._value) > FIELD_BYTES:
            raise TooLarge("field_too_large", f"The field {self._name[:100]!r} is larger than {FIELD_BYTES:,} bytes.")

    def _end_part(self) -> None:
        value: str | bytes = bytes(self._value)
        if not self._is_file:
            try:
                value = self._value.decode()
            except UnicodeDecodeError as error:
                raise BadRequest("malformed_body", f"The field {self._name[:100]!r} is not UTF-8 text.") from error
        self._fields.setdefault(self._name, []).append(value)

    def _end(self) -> None:
        self._ended = True
