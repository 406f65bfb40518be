"""A whole body to fields, whatever its form, and fields to a schema. On a pool thread where that takes long.

Knows syntax; what the fields mean is schemas.py's, and an image is still encoded when it leaves here.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.bodies import RawBody
from server.errors import BadRequest, TooLarge
from server.schemas import Body, Candidate, Item, RankBody

BodyT = TypeVar("BodyT", bound=Body)
IMAGES = ("image", "images", "query_image")  # the fields that are files
FIELD_BYTES = 64_000  # of a multipart part that is not a file; texts have their own limit
CROWD = 32  # names in an object, of which none has more than five
QUERY_FIELDS = 32  # of the query string, which has four at most
JSON_VALUES = 300_000  # in 20 MB there is room for 6 million empty lists, which take 500 MB and hold up every thread

Fields = dict[str, list[str | bytes]]


def parse(body: RawBody, query: bytes, schema: type[BodyT], *, max_parts: int, max_candidates: int) -> BodyT:
    """Hold a body, whatever its form, and the query string to one schema.

    Raises: BadRequest: it is malformed; a field is missing, unknown, or of the wrong type. TooLarge: of that, too much.
    """
    fields: dict[str, Any] = _single_fields(_query_fields(query))
    if body.form == "json":
        fields.update(_parse_json(body.data))
    elif body.form == "image":
        fields["image"] = body.data
    else:
        found = multipart_fields(body, max_parts)
        fields.update(_rank_fields(found) if schema is RankBody else _single_fields(found))
    _refuse_crowds(fields, schema, max_candidates)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from error


def multipart_fields(body: RawBody, max_parts: int) -> Fields:
    """Take a multipart body apart: files as bytes, other fields as text.

    Raises: BadRequest, TooLarge: as the message says.
    """
    return _Parts(body.boundary, max_parts).parse(body.data)


def _query_fields(query: bytes) -> Fields:
    fields: Fields = {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS)
    except UnicodeDecodeError as error:
        raise BadRequest("malformed_query", "The query string is not UTF-8 text.") from error
    except ValueError as error:
        raise BadRequest("malformed_query", f"The query string has more than {QUERY_FIELDS} fields.") from error
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _refuse_crowds(fields: Mapping[str, Any], schema: type[Body], max_candidates: int) -> None:
    """Refuse more than can be right at its first: the schema would write down each of a hundred thousand mistakes."""
    candidates = fields.get("candidates") if schema is RankBody else None
    listed = candidates if isinstance(candidates, list) else []
    if len(listed) > max_candidates:
        count = len(listed)
        raise TooLarge("too_many_candidates", f"There are {count:,} candidates; at most {max_candidates:,} are ranked.")
    _refuse_unknown(fields, schema)
    if schema is RankBody:
        _refuse_unknown(fields.get("query"), Item, "query.")
        for index, candidate in enumerate(listed):
            _refuse_unknown(candidate, Candidate, f"candidates.{index}.")


def _refuse_unknown(given: Any, schema: type[Body], where: str = "") -> None:
    if isinstance(given, Mapping) and len(given) > CROWD:
        unknown = next(name for name in given if name not in schema.model_fields)
        raise _no_field(where + unknown)


def _no_field(where: str) -> BadRequest:
    return BadRequest("unknown_field", f"There is no field {where[:100]!r}.")


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
            return _no_field(where)
        case _:
            message = first["msg"].removeprefix("Value error, ")
            return BadRequest(
                "invalid_field", f"The field {where!r} is not valid: {message}." if where else f"{message}."
            )


class _Parts:
    """The parts of a multipart body, kept in memory: files as bytes, other fields as text."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        self._delimiter = b"--" + boundary
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

    def parse(self, data: bytes) -> Fields:
        begin = max(0, data.find(self._delimiter))  # what is before is for people whose mail program knows no MIME
        try:
            self._parser.write(data[begin:] if begin else data)
        except FormParserError as error:
            raise BadRequest("malformed_body", f"The multipart body is malformed: {error}.") from error
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
        self._is_file = self._name in IMAGES

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
