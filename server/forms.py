"""From a whole body in any form to fields, and from fields to a schema; on a thread of its own if that takes long.

Only syntax: schemas.py says what the fields mean, and images stay encoded.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from multipart import MultipartError, MultipartSegment, PushMultipartParser
from pydantic import ValidationError

from server.bodies import RawBody
from server.errors import BadRequest, ServerError, TooLarge, Unusable
from server.schemas import Body, Candidate, Item, RankBody

BodyT = TypeVar("BodyT", bound=Body)
IMAGES = ("image", "images", "query_image")  # the fields that are files
RANK_FIELDS = ("query_text", "query_image", "images", "texts", "top_k", "model")  # of a rank's multipart body
FIELD_BYTES = 64_000  # of a multipart part that is not a file; texts have their own limit
PLAINLY = {  # in place of pydantic's messages about Python
    "model_type": "Input should be an object",
    "int_parsing": "Input should be a valid integer",
}
RANK_QUERY = ("top_k", "model")  # of its query string
CROWD = 32  # names in an object; none of the schemas has more than five
QUERY_FIELDS = 32  # in a query string, which needs four at most
QUICK_BYTES, QUICK_PARTS = 2**17, 64  # of a multipart body that is parsed in about a millisecond
QUICK_QUERY_BYTES = 2**13
INTEGER_CHARS, FLOAT_CHARS = 20, 40  # of a JSON number; parsing long ones holds up every thread
JSON_VALUES = 300_000  # 20 MB can hold 6 million empty lists, which take 500 MB and block every thread

Fields = dict[str, list[str | bytes]]


def parse(body: RawBody, query: bytes, schema: type[BodyT], *, max_parts: int, max_candidates: int) -> BodyT:
    """Validate a body in any form, and the query string, against one schema.

    Raises: BadRequest: it is malformed; a field is missing, unknown, or of the wrong type. TooLarge: it has too many
        parts, values or candidates. Unusable: an image cannot be base64.
    """
    fields: dict[str, Any] = _single_fields(_query_fields(query))
    if schema is RankBody and (unknown := [name for name in fields if name not in RANK_QUERY]):
        raise _no_field(unknown[0], RANK_QUERY, "in the query string")
    names = RANK_FIELDS if schema is RankBody and body.form == "multipart" else tuple(schema.model_fields)
    of_body = _body_fields(body, schema, names, max_parts)
    if twice := fields.keys() & of_body.keys():
        raise _repeated(min(twice), "in the query string and in the body")
    fields |= of_body
    _refuse_crowds(fields, schema, max_candidates)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _explain(error, names) from error


def takes_long(body: RawBody, query: bytes) -> bool:
    """Check whether parsing could take more than a millisecond or two, too long for the event loop."""
    if body.form == "json" or len(query) > QUICK_QUERY_BYTES:
        return True
    if body.form == "image":
        return False
    return len(body.data) > QUICK_BYTES or body.data.count(b"\r\n--" + body.boundary) > QUICK_PARTS


def multipart_fields(body: RawBody, names: Sequence[str], max_parts: int) -> Fields:
    """Parse a multipart body with these fields: files as bytes, others as text.

    Raises: BadRequest, TooLarge: as the message says.
    """
    fields: Fields = {}
    try:
        # Strict: folded header lines, of which few bytes can hold many, are refused. File names come in any encoding.
        with PushMultipartParser(body.boundary, header_charset="latin-1", strict=True) as parser:
            name, value, count = "", b"", 0
            for event in parser.parse(body.data):
                if isinstance(event, MultipartSegment):
                    name, value, count = _name_of(event), b"", count + 1
                    if count > max_parts:
                        raise TooLarge("too_many_parts", f"The multipart body has more than {max_parts:,} parts.")
                    if name not in names:
                        raise _no_field(name, names)
                elif event is None:
                    fields.setdefault(name, []).append(value if name in IMAGES else _text(name, value))
                else:
                    value = event  # all of it, for the body is whole
    except MultipartError as error:
        raise BadRequest("malformed_body", f"The multipart body is malformed: {error}.") from error
    return fields


def _name_of(part: MultipartSegment) -> str:
    if not part.name:
        raise BadRequest("malformed_body", "A part of the multipart body has no name.")
    name: bytes = part.name.encode("latin-1", "replace")
    return name.decode("utf-8", "replace")


def _text(name: str, value: bytes) -> str:
    if len(value) > FIELD_BYTES:
        raise TooLarge("field_too_large", f"The field {name[:100]!r} is larger than {FIELD_BYTES:,} bytes.")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRequest("malformed_body", f"The field {name[:100]!r} is not UTF-8 text.") from error


def _body_fields(body: RawBody, schema: type[Body], names: Sequence[str], max_parts: int) -> dict[str, Any]:
    if body.form == "json":
        return _parse_json(body.data)
    if body.form == "image":
        return {"image": body.data}
    found = multipart_fields(body, names, max_parts)
    return _rank_fields(found) if schema is RankBody else _single_fields(found)


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
    """Refuse excess at its first item: pydantic would describe each of a hundred thousand mistakes."""
    candidates = fields.get("candidates") if schema is RankBody else None
    listed = candidates if isinstance(candidates, list) else []
    if len(listed) > max_candidates:
        count = len(listed)
        raise TooLarge(
            "too_many_candidates", f"There are {count:,} candidates; at most {max_candidates:,} are allowed."
        )
    _refuse_unknown(fields, schema)
    if schema is RankBody:
        _refuse_unknown(fields.get("query"), Item, "query.")
        for index, candidate in enumerate(listed):
            _refuse_unknown(candidate, Candidate, f"candidates.{index}.")


def _refuse_unknown(given: Any, schema: type[Body], where: str = "") -> None:
    if isinstance(given, Mapping) and len(given) > CROWD:
        unknown = next(name for name in given if name not in schema.model_fields)
        raise _no_field(where + unknown)


def _no_field(name: str, names: Sequence[str] = (), where: str = "") -> BadRequest:
    known = f"; the fields are {', '.join(names)}" if names else ""
    return BadRequest("unknown_field", f"There is no field {name[:100]!r}{where and ' ' + where}{known}.")


def _repeated(name: str, how: str) -> BadRequest:
    return BadRequest("repeated_field", f"The field {name[:100]!r} is given {how}; give it once.")


def _parse_json(data: bytes) -> dict[str, Any]:
    if sum(map(data.count, (b"[", b"{", b","))) > JSON_VALUES:  # those inside of texts count, too: it is an upper bound
        raise TooLarge("too_many_values", f"The JSON body has more than {JSON_VALUES:,} values.")
    try:
        parsed = json.loads(data, object_pairs_hook=_object, parse_int=_integer, parse_float=_float)
    except RecursionError as error:
        raise BadRequest("malformed_json", "The JSON body is nested too deeply.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequest("malformed_json", f"The body is not JSON: {error}.") from error
    except ValueError as error:
        raise BadRequest("malformed_json", "The JSON body contains a number with too many digits.") from error
    if not isinstance(parsed, dict):
        raise BadRequest("malformed_json", "The JSON body must be an object.")
    return parsed


def _integer(digits: str) -> int:
    if len(digits) > INTEGER_CHARS:
        raise ValueError
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > FLOAT_CHARS:
        raise ValueError
    return float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _repeated(name, "more than once")
        found[name] = value
    return found


def _single_fields(fields: Fields) -> dict[str, Any]:
    for name, values in fields.items():
        if len(values) > 1:
            raise _repeated(name, f"{len(values)} times")
    return {name: values[0] for name, values in fields.items()}


def _rank_fields(fields: Fields) -> dict[str, Any]:
    """Turn query_text or query_image, and repeated images or texts, into the fields of the JSON body."""
    texts, images = fields.pop("texts", []), fields.pop("images", [])
    single = _single_fields(fields)
    query = {kind: single.pop(f"query_{kind}") for kind in ("text", "image") if f"query_{kind}" in single}
    if len(query) != 1:
        raise BadRequest("missing_field", "Give one query: the field query_text or query_image.")
    if bool(texts) == bool(images):
        raise BadRequest("missing_field", "Give candidates of one kind: the field images or texts, repeated.")
    candidates = [{"text": text} for text in texts] or [{"image": image} for image in images]
    return {**single, "query": query, "candidates": candidates}


def _explain(error: ValidationError, names: Sequence[str]) -> ServerError:
    """Describe the first mistake and its place; an unknown name before the missing one that it may stand for."""
    found = error.errors(include_url=False, include_input=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    where = ".".join(str(part) for part in first["loc"] if part not in ("str", "bytes"))[:100]
    match first["type"]:
        case "missing":
            return BadRequest("missing_field", f"The field {where!r} is missing.")
        case "extra_forbidden":
            return _no_field(where, names if len(first["loc"]) == 1 else ())
        case "invalid_base64":
            part, index = str(first["loc"][0]), "".join(f"[{n}]" for n in first["loc"] if isinstance(n, int))
            about = f"{part.capitalize()}{index}: " if len(first["loc"]) > 1 else ""
            return Unusable("invalid_base64", about + first["msg"])
        case kind:
            message = PLAINLY.get(kind, first["msg"].removeprefix("Value error, "))
            return BadRequest(
                "invalid_field", f"The field {where!r} is not valid: {message}." if where else f"{message}."
            )
