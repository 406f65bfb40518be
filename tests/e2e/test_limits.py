"""Every limit in every body form: one below and the limit itself pass, one beyond is refused with its sentence."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import factories
import httpx
import pytest

from server.connections import HEAD_BYTES, MAX_HEADERS
from server.forms import FIELD_BYTES
from server.routes import SPARE_PARTS
from server.schemas import VqaBody
from server.settings import Settings

from .conftest import Running, connect, drain, start, stop
from .test_requests import base64_of

AROUND = (-1, 0, 1)
BODY_BYTES, IMAGE_PIXELS, TEXT_CHARS, CANDIDATES = 200_000, 200 * 200, 60, 5
REQUEST_PIXELS = IMAGE_PIXELS + 132 * 132
ID_CHARS = 256
SIZES = {  # one pixel below a limit, at it, one beyond; no side more than 2.5 times the other
    IMAGE_PIXELS: ((199, 201), (200, 200), (181, 221)),
    REQUEST_PIXELS - IMAGE_PIXELS: ((131, 133), (132, 132), (85, 205)),
}
QUESTION = {"question": "is there a star?"}


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server whose limits are near."""
    limits = {
        "max-body-bytes": BODY_BYTES,
        "max-image-pixels": IMAGE_PIXELS,
        "max-request-pixels": REQUEST_PIXELS,
        "max-text-chars": TEXT_CHARS,
        "max-candidates": CANDIDATES,
    }
    running = start(*(f"--{name}={value}" for name, value in limits.items()))
    drain(running)
    yield running
    stop(running)


def picture(size: tuple[int, int]) -> bytes:
    return factories.encoded(factories.noise(*size), "JPEG")


@dataclass(frozen=True)
class Asked:
    """A question about a picture, in a form."""

    form: str
    image: bytes
    text: str = "is there a star?"

    def request(self) -> dict[str, Any]:
        match self.form:
            case "raw":
                return {
                    "content": self.image,
                    "headers": {"Content-Type": "image/jpeg"},
                    "params": {"question": self.text},
                }
            case "json":
                return {"json": {"image": base64_of(self.image), "question": self.text}}
            case _:
                return {"files": {"image": self.image}, "data": {"question": self.text}}


FORMS = ("raw", "json", "multipart")
FEW = picture((64, 48))


def assert_around(response: httpx.Response, excess: int, code: str, says: str) -> None:
    """One beyond is 413 with its code, and a sentence that tells the limit; else the request is answered."""
    if excess > 0:
        assert (response.status_code, response.json()["code"]) == (413, code), response.text
        assert says in response.json()["error"]
    else:
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("excess", AROUND)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("form", FORMS)
def test_body_around_its_limit(small: Running, form: str, is_chunked: bool, excess: int) -> None:
    """With a Content-Length it is refused before it is read; chunked, while it is."""
    request = small.client.build_request("POST", "/v1/vqa", **Asked(form, FEW).request())
    body = request.read()
    missing = BODY_BYTES + excess - len(body)
    padded = body.replace(FEW, FEW + b"\0" * missing) if form != "json" else body + b" " * missing
    assert len(padded) == BODY_BYTES + excess
    content = iter([padded[:1000], padded[1000:]]) if is_chunked else padded
    headers = {"Content-Type": request.headers["Content-Type"]}

    response = small.client.post(request.url.raw_path.decode(), content=content, headers=headers)

    assert_around(response, excess, "body_too_large", "larger than 200,000 bytes")


@pytest.mark.parametrize("excess", AROUND)
@pytest.mark.parametrize("form", FORMS)
def test_pixels_of_an_image_around_their_limit(small: Running, form: str, excess: int) -> None:
    """Counted before anything is decoded."""
    image = picture(SIZES[IMAGE_PIXELS][1 + excess])

    response = small.client.post("/v1/vqa", **Asked(form, image).request())

    assert_around(response, excess, "image_too_large", "at most 40,000 are allowed")


@pytest.mark.parametrize("excess", AROUND)
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_pixels_of_a_request_around_their_limit(small: Running, form: str, excess: int) -> None:
    """The images of a rank are counted together."""
    sizes = (SIZES[IMAGE_PIXELS][1], SIZES[REQUEST_PIXELS - IMAGE_PIXELS][1 + excess])
    unseen = [factories.encoded(factories.noise(*size, seed=7 + excess), "JPEG") for size in sizes]  # none is kept
    if form == "json":
        candidates = [{"image": base64_of(image)} for image in unseen]
        request: dict[str, Any] = {"json": {"query": {"text": "a star"}, "candidates": candidates}}
    else:
        request = {"files": [("images", image + b"\0") for image in unseen], "data": {"query_text": "a star"}}

    response = small.client.post("/v1/rank", **request)

    assert_around(response, excess, "too_many_pixels", "57,424 pixels")


@pytest.mark.parametrize("excess", AROUND)
@pytest.mark.parametrize("form", FORMS)
def test_text_around_its_limit(small: Running, form: str, excess: int) -> None:
    """In characters, not bytes."""
    text = "is it röt? " * 10

    response = small.client.post("/v1/vqa", **Asked(form, FEW, text[: TEXT_CHARS + excess]).request())

    assert_around(response, excess, "text_too_long", "at most 60 are allowed")


@pytest.mark.parametrize("excess", AROUND)
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_candidates_around_their_limit(small: Running, form: str, excess: int) -> None:
    """Of a rank, whatever they are."""
    texts = [f"{number} stars" for number in range(CANDIDATES + excess)]
    if form == "json":
        candidates = [{"text": text} for text in texts]
        request: dict[str, Any] = {"json": {"query": {"image": base64_of(FEW)}, "candidates": candidates}}
    else:
        request = {"files": {"query_image": FEW}, "data": {"texts": texts}}

    response = small.client.post("/v1/rank", **request)

    assert_around(response, excess, "too_many_candidates", "at most 5 are allowed")


@pytest.mark.parametrize("excess", AROUND)
def test_parts_of_a_multipart_body_around_their_limit(small: Running, excess: int) -> None:
    """A few more than there are fields, so that one given twice is named; beyond, nothing is read any more."""
    limit = len(VqaBody.model_fields) + SPARE_PARTS

    response = small.client.post("/v1/vqa", files=(limit + excess) * [("image", b"")])

    expected = (413, "too_many_parts") if excess > 0 else (400, "repeated_field")
    assert (response.status_code, response.json()["code"]) == expected


@pytest.mark.parametrize("excess", AROUND)
def test_field_of_a_multipart_body_around_its_limit(small: Running, excess: int) -> None:
    """A field that is no file ends here, long before the body's limit."""
    text = "a" * (FIELD_BYTES + excess)

    response = small.client.post("/v1/vqa", **Asked("multipart", FEW, text).request())

    assert response.status_code == 413
    assert response.json()["code"] == ("field_too_large" if excess > 0 else "text_too_long")


@pytest.mark.parametrize("excess", AROUND)
def test_id_of_a_candidate_around_its_limit(small: Running, excess: int) -> None:
    """It is returned as it is, and so has a bound."""
    candidates = [{"id": "é" * (ID_CHARS + excess), "text": "a star"}]

    response = small.client.post("/v1/rank", json={"query": {"image": base64_of(FEW)}, "candidates": candidates})

    if excess > 0:
        assert (response.status_code, response.json()["code"]) == (400, "invalid_field")
        assert "at most 256 characters" in response.json()["error"]
    else:
        assert response.json()["results"][0]["id"] == candidates[0]["id"]


@pytest.mark.parametrize("excess", AROUND)
@pytest.mark.parametrize("where", ["a header", "headers", "the query"])
def test_head_of_a_request_around_its_limit(small: Running, where: str, excess: int) -> None:
    """One header, or many, or a long path: together they have a bound, and the connection ends there."""
    url, headers = "/livez", {"Host": "test", "Accept": "", "User-Agent": "", "Connection": "close"}
    headers["Accept-Encoding"] = ""
    left = HEAD_BYTES + excess - len(url) - sum(len(name) + len(value) + 4 for name, value in headers.items())
    if where == "the query":
        url += "?" + "a" * (left - 1)
    elif where == "a header":
        headers["X"] = "a" * (left - 5)
    else:
        headers |= {f"X{number:03}": "a" * 492 for number in range(left // 500)}
        headers["Y"] = "a" * (left % 500 - 5)

    head = f"GET {url} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"

    assert answer_to(small, head.encode()).startswith(b"HTTP/1.1 431 " if excess > 0 else b"HTTP/1.1 200 ")


@pytest.mark.parametrize("excess", AROUND)
def test_headers_of_a_request_around_their_number(small: Running, excess: int) -> None:
    """However short they are."""
    count = MAX_HEADERS + excess - len(("Host", "Connection"))

    head = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + count * b"a:\r\n" + b"\r\n"

    assert answer_to(small, head).startswith(b"HTTP/1.1 431 " if excess > 0 else b"HTTP/1.1 200 ")


def answer_to(running: Running, data: bytes) -> bytes:
    """Send these bytes on a connection of their own, and read until it ends."""
    with connect(running) as connection:
        connection.sendall(data)
        answer = io.BytesIO()
        while piece := connection.recv(65_536):
            answer.write(piece)
        return answer.getvalue()


def test_sizes_around_a_limit_are_around_it() -> None:
    """The pictures have as many pixels as their names here say."""
    for limit, sizes in SIZES.items():
        assert [width * height for width, height in sizes] == [limit - 1, limit, limit + 1]


def test_limits_are_those_of_the_contract_unless_they_are_set() -> None:
    """Requests around them would take long."""
    assert (Settings().max_body_bytes, Settings().max_image_pixels) == (20_000_000, 50_000_000)


def test_image_that_comes_twice_in_a_request_is_counted_once(small: Running) -> None:
    """It is decoded once; two others of its size would be more than the request may have."""
    image = factories.encoded(factories.noise(*SIZES[IMAGE_PIXELS][1], seed=11), "JPEG")
    candidates = [{"image": base64_of(image)}] * 2

    response = small.client.post("/v1/rank", json={"query": {"text": "a star"}, "candidates": candidates})

    assert 2 * IMAGE_PIXELS > REQUEST_PIXELS
    assert response.status_code == 200
