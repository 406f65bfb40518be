"""Bodies to fields: every form says the same, and what is wrong is named before it is worked on."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import pytest

from server import bodies, forms
from server.errors import BadRequest, TooLarge, UnsupportedMediaType, Unusable
from server.schemas import Body, RankBody, VqaBody

BodyT = TypeVar("BodyT", bound=Body)


def read(data: bytes, content_type: str, *, chunk: int, limit: int = 10_000) -> bodies.RawBody:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    headers = {"content-type": content_type}
    return asyncio.run(bodies.read(stream(), headers, max_body_bytes=limit, accepts_image=True))


def fields_of(data: bytes) -> forms.Fields:
    return forms.multipart_fields(bodies.RawBody("multipart", data, b"x"), ("image", "question"), 8)


def parse(body: bodies.RawBody, schema: type[BodyT], query: bytes = b"") -> BodyT:
    return forms.parse(body, query, schema, max_parts=8, max_candidates=5)


PART = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="question"\r\n\r\nis it r\xc3\xb6t?\r\n'
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    b"\x89PNG\r\n--y\r\n\x00\r\n--x--\r\n"
)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_multipart_in_chunks_of_any_size_is_read_the_same(chunk: int) -> None:
    """Where the network cuts a body changes nothing, down to single bytes."""
    body = read(MULTIPART, "multipart/form-data; boundary=x", chunk=chunk)

    assert parse(body, VqaBody) == VqaBody(image=b"\x89PNG\r\n--y\r\n\x00", question="is it röt?")


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_body_around_its_limit_is_refused_only_beyond(content_type: str, excess: int) -> None:
    """The limit is exact in every form."""
    data = MULTIPART if content_type.startswith("multipart") else b"1" * 100

    if excess > 0:
        with pytest.raises(TooLarge):
            read(data, content_type, chunk=16, limit=len(data) - excess)
    else:
        read(data, content_type, chunk=16, limit=len(data) - excess)


def test_rank_of_multipart_is_the_json_body_s_fields() -> None:
    """Both forms of a rank are one request."""
    fields = (("query_text", b"a star"), ("images", b"1"), ("images", b"2"), ("top_k", b"1"))
    parts = (b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (n.encode(), v) for n, v in fields)

    body = bodies.RawBody("multipart", b"".join(parts) + b"--x--\r\n", b"x")

    assert parse(body, RankBody) == RankBody.model_validate(
        {"query": {"text": "a star"}, "candidates": [{"image": b"1"}, {"image": b"2"}], "top_k": 1}
    )


def test_wrong_field_is_named() -> None:
    """The sentence says which field, and what is wrong with it."""
    body = bodies.RawBody("json", b'{"image": "aa", "question": "a", "top_k": 0}')

    with pytest.raises(BadRequest, match=r"The field 'top_k' is not valid: .*greater than or equal to 1"):
        parse(body, VqaBody)


@pytest.mark.parametrize(
    ("schema", "body", "says"),
    [
        (
            VqaBody,
            PART % (b"file", b"\x89PNG") + PART % (b"question", b"a"),
            "'file'; the fields are image, question, top_k",
        ),
        (VqaBody, PART % (b"image", b"a") + PART % (b"text", b"a"), "'text'; the fields are image, question"),
        (
            RankBody,
            PART % (b"query_text", b"a") + PART % (b"picture", b"\xff"),
            "'picture'; the fields are query_text, ",
        ),
        (RankBody, PART % (b"query", b"a") + PART % (b"images", b"a"), "'query'; the fields are query_text, "),
        (VqaBody, b'{"img": "aa", "question": "a"}', "'img'; the fields are image, question"),
        (RankBody, b'{"query": {"text": "a"}, "candidates": [{"image_url": "a"}]}', "'candidates.0.image_url'"),
    ],
    ids=["file", "text", "picture", "of JSON", "img", "in a candidate"],
)
def test_wrong_name_is_told_with_the_right_ones(schema: type[Body], body: bytes, says: str) -> None:
    """It says more than that the right one is missing, or that the file is no text."""
    form = "json" if body.startswith(b"{") else "multipart"

    with pytest.raises(BadRequest, match=f"There is no field {says}"):
        parse(bodies.RawBody(form, body + (b"" if form == "json" else b"--x--"), b"x"), schema)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top_k": "x"}, "'top_k' is not valid: Input should be a valid integer"),
        ({"query": "x"}, "should be an object"),
    ],
)
def test_wrong_type_is_told_in_words_of_json(fields: dict[str, Any], says: str) -> None:
    """Who asks over HTTP has no dictionaries, and no instances of our classes."""
    content = {"query": {"text": "a"}, "candidates": [{"image": "aa"}], **fields}

    with pytest.raises(BadRequest, match=rf"{says}\.$"):
        parse(bodies.RawBody("json", json.dumps(content).encode()), RankBody)


@pytest.mark.parametrize("boundary", ["undefined''x", "idna''x", "punycode''%e9"])
def test_boundary_in_a_codec_that_refuses_it_is_none(boundary: str) -> None:
    """RFC 2231 lets the client name the codec."""
    with pytest.raises(BadRequest, match="names no boundary"):
        read(MULTIPART, f"multipart/form-data; boundary*={boundary}", chunk=16)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_json_around_its_number_of_values_is_refused_only_beyond(excess: int) -> None:
    """Beyond it is not parsed: small lists take twenty times their bytes, and parsing them holds up every thread."""
    data = b'{"a": [' + b"0," * (forms.JSON_VALUES + excess - 2) + b"0}"  # no JSON, which is found out only by parsing

    with pytest.raises(TooLarge if excess > 0 else BadRequest):
        parse(bodies.RawBody("json", data), VqaBody)


def test_json_nested_too_deeply_is_said_to_be() -> None:
    """In words of ours, not of Python's."""
    with pytest.raises(BadRequest, match=r"nested too deeply\."):
        parse(bodies.RawBody("json", b"[" * 250_000), VqaBody)


@pytest.mark.parametrize(
    ("schema", "fields", "says"),
    [
        (VqaBody, {"image": "\U0001f600aa", "question": "a"}, "The image is not valid base64"),
        (RankBody, {"query": {"image": "é"}, "candidates": [{"text": "a"}]}, "Query: The image is not valid base64"),
        (
            RankBody,
            {"query": {"text": "a"}, "candidates": [{"image": "aa"}, {"image": "é"}]},
            r"Candidates\[1\]: The image is not valid base64",
        ),
    ],
    ids=["image", "query", "candidate"],
)
@pytest.mark.parametrize("escapes", [True, False])
def test_image_beyond_ascii_is_refused_before_it_waits(
    schema: type[Body], fields: dict[str, Any], says: str, escapes: bool
) -> None:
    """It would take four times the memory that its body is counted with."""
    body = bodies.RawBody("json", json.dumps(fields, ensure_ascii=escapes).encode())

    with pytest.raises(Unusable, match=f"^{says}"):
        parse(body, schema)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("-" + "9" * 19, "'top_k' is not valid"),
        ("9" * 21, "too many digits"),
        ("1." + "0" * 38, "'image' is missing"),
        ("1." + "0" * 39, "too many digits"),
        ("1" * 41 + "e1", "too many digits"),
    ],
)
def test_number_around_its_length_is_refused_only_beyond(number: str, says: str) -> None:
    """Thousands of long ones would hold up every thread for most of a second."""
    fields = '"question": "a"' if "." in number else '"image": "aa", "question": "a"'

    with pytest.raises(BadRequest, match=says):
        parse(bodies.RawBody("json", f'{{{fields}, "top_k": {number}}}'.encode()), VqaBody)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", ""])
def test_compressed_body_is_refused_before_it_is_read(encoding: str) -> None:
    """So there is no bomb to defuse."""

    async def stream() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-type": "application/json", "content-encoding": encoding}
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding"):
        asyncio.run(bodies.read(stream(), headers, max_body_bytes=10, accepts_image=True))


CROWD = 250_000  # within JSON_VALUES


@pytest.mark.parametrize(
    ("content", "refused", "says"),
    [
        ({"query": {"text": "a"}, "candidates": [1] * CROWD}, TooLarge, "250,000 candidates"),
        ({"query": {"text": "a"}, "candidates": [{"image": "aa"}] * 6}, TooLarge, "at most 5 are allowed"),
        ({"query": {"text": "a"}, "candidates": [{"image": "aa"}, {"imag": "aa"}]}, BadRequest, "'candidates.1.imag'"),
        ({"query": {"text": "a"}, "candidates": [{str(n): 0 for n in range(CROWD)}]}, BadRequest, "'candidates.0.0'"),
        ({"query": {str(n): 0 for n in range(CROWD)}, "candidates": []}, BadRequest, "'query.0'"),
        ({str(number): 0 for number in range(CROWD)}, BadRequest, "no field '0'"),
    ],
    ids=["numbers", "one too many", "one unknown", "unknown in a candidate", "unknown in the query", "unknown"],
)
def test_crowd_is_refused_at_its_first(content: dict[str, Any], refused: type[Exception], says: str) -> None:
    """Not after a sentence has been made about each, which takes a second and half a gigabyte."""
    with pytest.raises(refused, match=says):
        parse(bodies.RawBody("json", json.dumps(content).encode()), RankBody)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"question=a&question=b", "'question' is given 2 times"),
        (b"question=%FF", "not UTF-8"),
        (b"&".join(b"a=%d" % number for number in range(40)), "more than 32 fields"),
    ],
    ids=["twice", "not text", "too many"],
)
def test_query_string_is_held_to_what_a_form_is(query: bytes, says: str) -> None:
    """A field given twice has no one meaning, whichever way it comes."""
    with pytest.raises(BadRequest, match=says):
        parse(bodies.RawBody("image", b"\x89PNG"), VqaBody, query)


@pytest.mark.parametrize("query", [b"texts=b", b"query=1", b"top=1"])
def test_query_string_of_a_rank_has_two_fields(query: bytes) -> None:
    """Its others come several times, or are files: they are the body's."""
    body = bodies.RawBody("multipart", PART % (b"query_text", b"a") + PART % (b"images", b"a") + b"--x--", b"x")

    with pytest.raises(
        BadRequest, match=r"There is no field '\w+' in the query string; the fields are top_k, model\.$"
    ):
        parse(body, RankBody, query)


def test_truth_is_no_number() -> None:
    """For Python true is 1."""
    with pytest.raises(BadRequest, match="'top_k' is not valid"):
        parse(bodies.RawBody("json", b'{"image": "aa", "question": "a", "top_k": true}'), VqaBody)


def test_what_is_before_the_first_part_is_passed_over() -> None:
    """As RFC 2046 says."""
    body = bodies.RawBody("multipart", b"This is multipart.\r\n" + MULTIPART, b"x")

    assert parse(body, VqaBody).question == "is it röt?"


def test_text_is_bounded_as_text_even_if_it_comes_as_a_file() -> None:
    """A file name makes no picture of a question."""
    head = b'--x\r\nContent-Disposition: form-data; name="question"; filename="q.txt"\r\n\r\n'

    assert fields_of(head + b"a\r\n--x--") == {"question": ["a"]}
    with pytest.raises(TooLarge, match="'question' is larger than"):
        fields_of(head + bytes(forms.FIELD_BYTES + 1) + b"\r\n--x--")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"--x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n\r\n--x--", "header count"),
        (b"--x\r\na:" + b" " * 10_000 + b"\r\n\r\n\r\n--x--", "header length"),
        (PART % (b"image", b"\r\n--xA" * 3_000_000) + b"--x--", "bytes after boundary"),
        (PART % (b"image", b"a") + b"--x" + b" " * 20_000_000, "bytes after boundary"),
        (PART % (b"image", b"a"), "end of multipart stream"),
        (b"", "end of multipart stream"),
        (b"no boundary", "Boundary not found"),
        (b"--x\r\nContent-Disposition: form-data;\r\n" + b" a\r\n" * 1_000_000, "continuation"),
        (PART % (b"", b"a") + b"--x--", "no name"),
        (b"--x\r\n\r\na\r\n--x--", "Content-Disposition"),
        (PART % (b"question", b"\xff") + b"--x--", "not UTF-8"),
    ],
    ids=[
        *("headers", "a long header", "look-alikes", "padding", "no end", "nothing", "no boundary", "a folded header"),
        *("no name", "no header", "not text"),
    ],
)
def test_malformed_multipart_is_refused_at_the_first_thing_that_is_wrong(data: bytes, says: str) -> None:
    """Python that walks 20 MB byte by byte takes seconds."""
    with pytest.raises(BadRequest, match=says):
        fields_of(data)


def test_parts_are_counted_as_they_are_found() -> None:
    """Nothing is read of those behind the last that may be there."""
    with pytest.raises(TooLarge, match="more than 8 parts"):
        fields_of(1_000_000 * (PART % (b"image", b"")) + b"--x--")


def test_boundary_may_be_whatever_a_client_likes() -> None:
    """As long, and of any bytes that a header may have, in quotes or without."""
    boundary = b"\xe9" * 300
    written = (
        (f'; boundary="{boundary.decode("latin-1")}"', boundary),
        ("; boundary=" + "y" * 300, b"y" * 300),
        ("; boundary=----=_Part_5_1", b"----=_Part_5_1"),
        (";\tcharset=utf-8;\tBoundary=a:b/c", b"a:b/c"),
    )
    for parameters, expected in written:
        data = MULTIPART.replace(b"--x", b"--" + expected)
        body = read(data, f"multipart/form-data{parameters}", chunk=10_000)
        assert parse(body, VqaBody).question == "is it röt?"


def test_boundary_that_no_body_can_have_is_found_nowhere() -> None:
    """Letters beyond a header's, in the way that is there for them."""
    with pytest.raises(BadRequest, match="Boundary not found"):
        parse(read(MULTIPART, "multipart/form-data; boundary*=utf-8''%E2%82%AC", chunk=10_000), VqaBody)


def test_files_may_be_named_in_any_encoding() -> None:
    """What a file is called is of no interest here; what a field is called is UTF-8."""
    body = bodies.RawBody("multipart", MULTIPART.replace(b"a.png", b"\xe9.png"), b"x")
    assert parse(body, VqaBody).question == "is it röt?"

    with pytest.raises(BadRequest, match="no field 'röt'"):
        parse(bodies.RawBody("multipart", PART % ("röt".encode(), b"") + MULTIPART, b"x"), VqaBody)


@pytest.mark.parametrize("name", ["query", "candidates"])
def test_fields_of_json_are_none_of_a_form(name: str) -> None:
    """They would be passed over."""
    parts = ((b"query_text", b"a"), (b"images", b"1"), (name.encode(), b"a"))
    data = b"".join(PART % part for part in parts) + b"--x--"

    with pytest.raises(BadRequest, match=f"no field '{name}'"):
        parse(bodies.RawBody("multipart", data, b"x"), RankBody)


@pytest.mark.parametrize(
    ("data", "query", "says"),
    [
        (b'{"image": "aa", "question": "a", "question": "b"}', b"", "'question' is given more than once"),
        (b'{"image": "aa", "question": "a"}', b"question=b", "in the query string and in the body"),
        (b'{"image": "aa", "question": "a", "top_k": ' + b"1" * 5000 + b"}", b"", "too many digits"),
        (b'{"image": "\xff"}', b"", "not JSON: 'utf-8'"),
    ],
    ids=["twice", "in both", "digits", "not text"],
)
def test_json_says_each_thing_once_and_in_bounds(data: bytes, query: bytes, says: str) -> None:
    """What is given twice has no one meaning, whichever way it comes."""
    with pytest.raises(BadRequest, match=says):
        parse(bodies.RawBody("json", data), VqaBody, query)


def test_content_type_is_bounded() -> None:
    """It is taken apart on the event loop."""
    with pytest.raises(UnsupportedMediaType, match="400 characters"):
        read(MULTIPART, "multipart/form-data; boundary=x" + ";a=b" * 1000, chunk=10_000)


@pytest.mark.parametrize(
    ("body", "query", "takes_long"),
    [
        (bodies.RawBody("image", bytes(100_000)), b"question=a", False),
        (bodies.RawBody("image", bytes(10_000_000)), b"question=a", False),
        (bodies.RawBody("image", b""), b"question=" + b"%C3%A9" * 2000, True),
        (bodies.RawBody("json", b"{}"), b"", True),
        (bodies.RawBody("multipart", MULTIPART, b"x"), b"", False),
        (bodies.RawBody("multipart", MULTIPART + bytes(200_000), b"x"), b"", True),
        (bodies.RawBody("multipart", MULTIPART + 100 * (PART % (b"texts", b"")), b"x"), b"", True),
    ],
    ids=["picture", "large picture", "picture with a long query", "JSON", "form", "large form", "form of many parts"],
)
def test_only_what_is_quick_is_taken_apart_on_the_event_loop(
    body: bodies.RawBody, query: bytes, takes_long: bool
) -> None:
    """Every other request waits for it there."""
    assert forms.takes_long(body, query) is takes_long
