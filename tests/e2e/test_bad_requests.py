"""Bad input of every kind: a 4xx with a sentence and a code, and a server that lives."""

import base64
import re
from typing import Any

import factories
import httpx
import pytest
from PIL import Image

from .conftest import Running
from .test_requests import PICTURES, base64_of

PNG = PICTURES["png"][1]
JPEG = PICTURES["jpeg 640x480"][1]
QUESTION = {"question": "is there a star?"}
B64 = base64_of(PNG)
VQA, ITM, RANK = "/v1/vqa", "/v1/itm", "/v1/rank"
TEXTS = [{"text": "a star"}, {"text": "a cross"}]
HUGE_IHDR = bytes.fromhex("0000000d494844520000c3500000c3500802000000c4cdaa9d")  # 50,000 x 50,000
HUGE_HEADER = b"\x89PNG\r\n\x1a\n" + HUGE_IHDR + b"\0\0\x20\0IDAT"
NAN_TOP_K = b'{"image": "aa", "question": "a", "top_k": NaN}'


def image(data: bytes) -> dict[str, Any]:
    return {"files": {"image": data}, "data": QUESTION}


def body(**fields: Any) -> dict[str, Any]:
    return {"json": fields}


def content(data: bytes, content_type: str | None, **more: Any) -> dict[str, Any]:
    return {"content": data, "headers": {"Content-Type": content_type} if content_type else {}, **more}


def form(data: bytes, boundary: str = "x") -> dict[str, Any]:
    return content(data, f"multipart/form-data; boundary={boundary}")


def part(name: str, value: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n"


BAD: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "image empty": (VQA, image(b""), 422, "empty_image"),
    "image of text": (VQA, image(b"hello"), 422, "invalid_image"),
    "image jpeg cut short": (VQA, image(JPEG[: len(JPEG) // 2]), 422, "invalid_image"),
    "image png cut short": (VQA, image(PNG[:200]), 422, "invalid_image"),
    "image svg": (VQA, image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, "invalid_image"),
    "image of an unlisted format": (VQA, image(factories.encoded(factories.noise(9, 9), "PPM")), 422, "invalid_image"),
    "image 50,000 x 50,000": (VQA, image(HUGE_HEADER), 413, "image_too_large"),
    "image 1 x 5000": (VQA, image(factories.encoded(Image.new("L", (1, 5000)), "PNG")), 422, "image_too_elongated"),
    "image of zeros": (VQA, image(b"\0" * 1000), 422, "invalid_image"),
    "image raw empty": (VQA, content(b"", "image/png", params=QUESTION), 422, "empty_image"),
    "image raw of text": (VQA, content(b"hi", "image/png", params=QUESTION), 422, "invalid_image"),
    "image field is text": (VQA, {"data": QUESTION | {"image": "hello"}}, 415, "unsupported_media_type"),
    "image is missing": (VQA, form(part("question", b"a") + b"--x--\r\n"), 400, "missing_field"),
    "image is a URL": (VQA, body(image="https://example.com/a.png", **QUESTION), 422, "invalid_base64"),
    "image base64 invalid": (VQA, body(image="a$b", **QUESTION), 422, "invalid_base64"),
    "image base64 not ASCII": (VQA, body(image="é" * 8, **QUESTION), 422, "invalid_base64"),
    "image data URI not base64": (VQA, body(image="data:image/png,abc", **QUESTION), 422, "invalid_base64"),
    "image is a number": (VQA, body(image=1, **QUESTION), 400, "invalid_field"),
    "image is null": (VQA, body(image=None, **QUESTION), 400, "invalid_field"),
    "question empty": (VQA, body(image=B64, question=""), 422, "empty_text"),
    "question blank": (VQA, body(image=B64, question=" \n\t"), 422, "empty_text"),
    "question missing": (VQA, body(image=B64), 400, "missing_field"),
    "question is a list": (VQA, body(image=B64, question=["a"]), 400, "invalid_field"),
    "question of 100,000 characters, JSON": (VQA, body(image=B64, question="a" * 100_000), 413, "text_too_long"),
    "question of 100,000 characters, multipart": (
        VQA, {"files": {"image": PNG}, "data": {"question": "a" * 100_000}}, 413, "field_too_large",
    ),
    "question with NUL": (VQA, body(image=B64, question="a\0b"), 422, "invalid_text"),
    "question with NUL, multipart": (VQA, {"files": {"image": PNG}, "data": {"question": "a\0"}}, 422, "invalid_text"),
    "question not UTF-8": (VQA, form(part("question", b"\xff\xfe") + b"--x--\r\n"), 400, "malformed_body"),
    "question with half a surrogate": (
        VQA, content(f'{{"image": "{B64}", "question": "\\ud800"}}'.encode(), "application/json"), 422, "invalid_text",
    ),
    "id with half a surrogate": (
        RANK, content(f'{{"query": {{"image": "{B64}"}}, "candidates": [{{"text": "a", "id": "\\ud800"}}]}}'.encode(),
        "application/json"), 400, "invalid_field",
    ),
    "question twice": (
        VQA, form(part("question", b"a") + part("question", b"b") + b"--x--\r\n"), 400, "repeated_field",
    ),
    "field unknown": (VQA, body(image=B64, **QUESTION, prompt="x"), 400, "unknown_field"),
    "field unknown, query": (VQA, image(PNG) | {"params": {"verbose": "1"}}, 400, "unknown_field"),
    "field unknown, a file": (VQA, {"files": {"file": PNG}, "data": QUESTION}, 400, "unknown_field"),
    "rank, field unknown, a file": (RANK, {"files": {"photo": PNG}, "data": {"query_text": "a"}}, 400, "unknown_field"),
    "top_k 0": (VQA, body(image=B64, **QUESTION, top_k=0), 400, "invalid_field"),
    "top_k negative": (VQA, body(image=B64, **QUESTION, top_k=-1), 400, "invalid_field"),
    "top_k a word": (VQA, image(PNG) | {"data": QUESTION | {"top_k": "many"}}, 400, "invalid_field"),
    "top_k NaN": (VQA, content(NAN_TOP_K, "application/json"), 400, "invalid_field"),
    "model unknown": (VQA, body(image=B64, **QUESTION, model="gpt"), 404, "unknown_model"),
    "model of a million characters": (VQA, body(image=B64, **QUESTION, model="a" * 1_000_000), 404, "unknown_model"),
    "model unknown, query": (ITM, image(PNG) | {"data": {"text": "a"}, "params": {"model": "x"}}, 404, "unknown_model"),
    "body empty, JSON": (VQA, content(b"", "application/json"), 400, "malformed_json"),
    "body a list": (VQA, {"json": [1, 2]}, 400, "malformed_json"),
    "body not JSON": (VQA, content(b"{image: 1}", "application/json"), 400, "malformed_json"),
    "body of bytes": (VQA, content(b"\xff\xfe\0\0", "application/json"), 400, "malformed_json"),
    "body 250,000 deep": (VQA, content(b"[" * 250_000, "application/json"), 400, "malformed_json"),
    "body without a type": (VQA, content(b"hi", None), 415, "unsupported_media_type"),
    "body of plain text": (VQA, content(b"hi", "text/plain"), 415, "unsupported_media_type"),
    "body url-encoded": (ITM, content(b"a=b", "application/x-www-form-urlencoded"), 415, "unsupported_media_type"),
    "multipart of an impossible boundary": (
        VQA, content(b"hi", "multipart/form-data; boundary*=idna''x"), 400, "malformed_body",
    ),
    "multipart without boundary": (VQA, content(b"hi", "multipart/form-data"), 400, "malformed_body"),
    "multipart cut short": (VQA, form(part("question", b"a")), 400, "malformed_body"),
    "multipart empty": (VQA, form(b""), 400, "malformed_body"),
    "multipart of noise": (VQA, form(b"\r\n\0\xffnonsense"), 400, "malformed_body"),
    "multipart part without name": (VQA, form(b"--x\r\n\r\nhi\r\n--x--\r\n"), 400, "malformed_body"),
    "multipart of many parts": (VQA, form(part("question", b"a") * 50 + b"--x--\r\n"), 413, "too_many_parts"),
    "multipart with a large header": (
        VQA, form(b"--x\r\nX-A: " + b"a" * 10_000 + b"\r\n\r\nhi\r\n--x--\r\n"), 400, "malformed_body",
    ),
    "itm without text": (ITM, body(image=B64), 400, "missing_field"),
    "itm with a question": (ITM, body(image=B64, question="a"), 400, "unknown_field"),
    "rank without query": (RANK, body(candidates=TEXTS), 400, "missing_field"),
    "rank without candidates": (RANK, body(query={"image": B64}), 400, "missing_field"),
    "rank of none": (RANK, body(query={"image": B64}, candidates=[]), 400, "invalid_field"),
    "rank with an empty query": (RANK, body(query={}, candidates=TEXTS), 400, "invalid_field"),
    "rank with both queries": (RANK, body(query={"text": "a", "image": B64}, candidates=TEXTS), 400, "invalid_field"),
    "rank texts for a text": (RANK, body(query={"text": "a"}, candidates=TEXTS), 400, "invalid_field"),
    "rank of mixed kinds": (
        RANK, body(query={"image": B64}, candidates=[*TEXTS, {"image": B64}]), 400, "invalid_field",
    ),
    "rank of too many": (RANK, body(query={"image": B64}, candidates=TEXTS * 501), 413, "too_many_candidates"),
    "rank with a bad third": (
        RANK, body(query={"image": B64}, candidates=[*TEXTS, {"text": " "}]), 422, "empty_text",
    ),
    "rank with a bad text and a bad image": (
        RANK, body(query={"image": "a$"}, candidates=[{"text": ""}]), 422, "empty_text",
    ),
    "rank with a bad query image": (RANK, body(query={"image": "a$"}, candidates=TEXTS), 422, "invalid_base64"),
    "rank of a raw image": (RANK, content(PNG, "image/png"), 415, "unsupported_media_type"),
    "rank multipart without candidates": (RANK, {"files": {"query_image": PNG}}, 400, "missing_field"),
    "deadline a word": (VQA, image(PNG) | {"headers": {"X-Deadline-Ms": "soon"}}, 400, "invalid_header"),
    "deadline 0": (VQA, image(PNG) | {"headers": {"X-Deadline-Ms": "0"}}, 400, "invalid_header"),
    "deadline infinite": (VQA, image(PNG) | {"headers": {"X-Deadline-Ms": "inf"}}, 400, "invalid_header"),
    "route unknown": ("/v1/nothing", body(), 404, "not_found"),
}  # fmt: skip


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    """Check the contract of every failure."""
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    found = response.json()
    assert set(found) == {"error", "code", "request_id"}
    assert re.fullmatch(r"[A-Z].{8,300}[.;?]?", found["error"], re.DOTALL)
    assert "Traceback" not in found["error"]
    assert found["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(("route", "request_", "status", "code"), BAD.values(), ids=BAD)
def test_bad_request_of_any_kind_is_refused_and_the_server_lives(
    server: Running, route: str, request_: dict[str, Any], status: int, code: str
) -> None:
    """Nothing that a client sends is our fault, and nothing of it ends the process."""
    response = server.client.post(route, **request_)

    assert_refused(response, status, code)
    assert server.client.get("/livez").status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_on_a_task_are_405_and_name_the_right_one(server: Running, method: str) -> None:
    """A wrong method says which is right."""
    response = server.client.request(method, VQA)

    assert_refused(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


def test_body_without_content_type_is_told_to_send_one(server: Running) -> None:
    response = server.client.post(VQA, content=PNG)

    assert_refused(response, 415, "unsupported_media_type")
    assert response.json()["error"].startswith("There is no Content-Type: send multipart/form-data, ")


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/v1/models", "/docs", "/openapi.json", "/swagger/swagger-ui.css"]
)
def test_other_methods_on_what_can_be_read_are_405_and_name_both(server: Running, path: str) -> None:
    response = server.client.post(path)

    assert_refused(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("case", "part"),
    [("rank with a bad third", "Candidates[2]: "), ("rank with a bad query image", "Query: ")],
    ids=["candidate", "query"],
)
def test_error_about_a_part_of_a_rank_names_it(server: Running, case: str, part: str) -> None:
    """Among many, the culprit is named."""
    route, request, *_ = BAD[case]

    assert server.client.post(route, **request).json()["error"].startswith(part)


def test_request_id_of_the_caller_is_kept_when_well_formed(server: Running) -> None:
    """An id that could be anything is replaced, one that is safe to log is kept."""
    kept = server.client.get("/livez", headers={"X-Request-ID": "abc-1.2_3"}).headers["X-Request-ID"]
    replaced = server.client.get("/livez", headers={"X-Request-ID": "<script>"}).headers["X-Request-ID"]

    assert kept == "abc-1.2_3"
    assert re.fullmatch(r"[0-9a-f]{32}", replaced)


def test_base64_with_line_breaks_is_read(server: Running) -> None:
    """Mail-style base64 is base64."""
    wrapped = base64.encodebytes(PNG).decode()

    assert server.client.post(VQA, json={"image": wrapped, **QUESTION}).status_code == 200
