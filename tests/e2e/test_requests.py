"""Hundreds of requests of every kind, all answered, all telling where their time went."""

import base64
import itertools
import re
from typing import Any

import factories
import httpx
import pytest
from PIL import Image

from .conftest import Running

STAGES = ["receive", "admit", "decode", "preprocess", "tokenize", "queue", "inference", "answer"]
PARTS = ["text_embedding", "visual_embedding", "interaction"]
ORIENTATION = 0x0112


def pictures() -> dict[str, tuple[str, bytes]]:
    """Encode pictures of many sizes, modes and formats: content type and bytes by name."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    frames = {"save_all": True, "append_images": [factories.noise(90, 60, seed=1)]}
    gray16 = factories.noise(300, 200, "L").convert("I").convert("I;16")
    return {
        "jpeg 640x480": ("image/jpeg", factories.encoded(factories.noise(640, 480), "JPEG")),
        "jpeg 4000x3000": ("image/jpeg", factories.encoded(factories.noise(4000, 3000), "JPEG")),
        "jpeg gray 40x40": ("image/jpeg", factories.encoded(factories.noise(40, 40, "L"), "JPEG")),
        "jpeg cmyk": ("image/jpeg", factories.encoded(factories.noise(320, 200, "CMYK"), "JPEG")),
        "jpeg progressive": ("image/jpeg", factories.encoded(factories.noise(320, 640), "JPEG", progressive=True)),
        "jpeg rotated": ("image/jpeg", factories.encoded(factories.noise(300, 200), "JPEG", exif=exif)),
        "png": ("image/png", factories.encoded(factories.noise(200, 300), "PNG")),
        "png alpha": ("image/png", factories.encoded(factories.noise(200, 200, "RGBA"), "PNG")),
        "png palette": ("image/png", factories.encoded(factories.noise(123, 77, "P"), "PNG")),
        "png 16 bit": ("image/png", factories.encoded(gray16, "PNG")),
        "png 1 bit": ("image/png", factories.encoded(factories.noise(99, 99, "1"), "PNG")),
        "webp": ("image/webp", factories.encoded(factories.noise(500, 375), "WEBP")),
        "webp animated": ("image/webp", factories.encoded(factories.noise(90, 60), "WEBP", **frames)),
        "gif animated": ("image/gif", factories.encoded(factories.noise(90, 60), "GIF", **frames)),
        "bmp": ("image/bmp", factories.encoded(factories.noise(64, 200), "BMP")),
        "tiff": ("image/tiff", factories.encoded(factories.noise(250, 250), "TIFF")),
    }


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ways_to_send(content_type: str, data: bytes) -> dict[str, dict[str, Any]]:
    """Write one picture as every request that the contract knows, by route and form."""
    text = "is there a red circle?"
    uri = f"data:{content_type};base64,{base64_of(data)}"
    raw = {"content": data, "headers": {"Content-Type": content_type}}
    two = [("images", data), ("images", PICTURES["png"][1])]
    return {
        "/v1/vqa multipart": {"files": {"image": data}, "data": {"question": text, "top_k": "3"}},
        "/v1/vqa json": {"json": {"image": base64_of(data), "question": text, "top_k": 1}},
        "/v1/vqa raw": {**raw, "params": {"question": text}},
        "/v1/itm multipart": {"files": {"image": ("a.bin", data, content_type)}, "data": {"text": "a red circle"}},
        "/v1/itm json": {"json": {"image": uri, "text": "a red circle"}},
        "/v1/itm raw": {**raw, "params": {"text": "a red circle", "model": "shapes"}},
        "/v1/rank multipart images": {"files": two, "data": {"query_text": "a red circle"}},
        "/v1/rank multipart texts": {"files": {"query_image": data}, "data": {"texts": ["a star", "a cross"]}},
        "/v1/rank json images": {
            "json": {"query": {"text": "a star"}, "candidates": [{"image": uri}, {"id": "b", "image": base64_of(data)}]}
        },
        "/v1/rank json texts": {
            "json": {"query": {"image": uri}, "candidates": [{"text": "a star"}, {"text": "a cross"}], "top_k": 1}
        },
    }


PICTURES = pictures()
FORMS = list(ways_to_send("image/png", b""))
LARGE = "jpeg 4000x3000"  # which takes long, and one form of it shows as much as ten
CASES = [case for case in itertools.product(PICTURES, FORMS) if case[0] != LARGE or case[1] == "/v1/vqa multipart"]
ANSWERS = {"/v1/vqa multipart": 3, "/v1/vqa json": 1, "/v1/vqa raw": 5, "/v1/rank json texts": 1}  # as asked for
STRANGERS = [  # more texts than pictures: short, long, unknown words, other scripts
    "?", "a", "what color is the cat on the mat", "wie viele Kreise?", "что это?", "何色ですか", "🙂" * 5,
    "circle " * 200,
]  # fmt: skip


def assert_complete(response: httpx.Response) -> None:
    """Check what every answer carries."""
    assert response.status_code == 200, response.text
    body = response.json()
    timing = body["timing_ms"]
    assert [name for name in timing if name in STAGES] == STAGES
    assert sum(timing[stage] for stage in STAGES) == pytest.approx(timing["total"], abs=0.01)
    assert sum(timing[part] for part in PARTS) <= timing["inference"] + 0.01
    assert body["model"] == "shapes"
    assert body["request_id"] == response.headers["X-Request-ID"]
    named = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"]))
    assert {name: float(value) for name, value in named.items()} == pytest.approx(timing)


@pytest.mark.parametrize(("picture", "form"), CASES, ids=[f"{form}, {picture}" for picture, form in CASES])
def test_request_of_any_form_with_any_picture_is_answered(server: Running, picture: str, form: str) -> None:
    """Every route reads every picture in every form it takes."""
    route = form.split(maxsplit=1)[0]

    response = server.client.post(route, **ways_to_send(*PICTURES[picture])[form])

    assert_complete(response)
    body = response.json()
    if route == "/v1/vqa":
        scores = [answer["score"] for answer in body["answers"]]
        assert len(scores) == ANSWERS[form]
        assert scores == sorted(scores, reverse=True)
    elif route == "/v1/itm":
        assert body["match"] is (body["score"] >= 0.5)
    else:
        logits = [result["logit"] for result in body["results"]]
        assert len(logits) == ANSWERS.get(form, 2)
        assert logits == sorted(logits, reverse=True)


@pytest.mark.parametrize("text", STRANGERS, ids=range(len(STRANGERS)))
@pytest.mark.parametrize("field", ["question", "text"])
def test_request_with_any_text_is_answered(server: Running, field: str, text: str) -> None:
    """A text may be anything but blank; one that is longer than the model reads says so."""
    route = "/v1/vqa" if field == "question" else "/v1/itm"

    response = server.client.post(route, files={"image": PICTURES["png"][1]}, data={field: text})

    assert_complete(response)
    assert response.json()["truncated"] is (len(text.split()) > 14)


@pytest.mark.parametrize("form", ["multipart", "json", "raw"])
def test_forms_of_one_question_give_one_answer(server: Running, form: str) -> None:
    """How a picture is sent changes nothing about what is seen in it."""
    way = ways_to_send(*PICTURES["png"])[f"/v1/itm {form}"]
    reference = server.client.post("/v1/itm", **ways_to_send(*PICTURES["png"])["/v1/itm multipart"]).json()

    assert server.client.post("/v1/itm", **way).json()["score"] == reference["score"]


def test_rank_returns_each_candidate_once_with_its_id_and_its_own_logit(server: Running) -> None:
    """Twenty candidates come back with their index and id, the best first, with the logits that each has alone."""
    texts = [
        f"a {color} {shape}"
        for color in ("red", "blue", "green", "pink", "cyan")
        for shape in ("star", "cross", "circle", "square")
    ]
    candidates = [{"id": f"id {text}", "text": text} for text in texts]
    image = base64_of(PICTURES["png"][1])

    def rank(candidates: list[dict[str, str]]) -> httpx.Response:
        return server.client.post("/v1/rank", json={"query": {"image": image}, "candidates": candidates})

    response = rank(candidates)

    assert_complete(response)
    results = response.json()["results"]
    assert sorted(result["index"] for result in results) == list(range(20))
    assert all(result["id"] == f"id {texts[result['index']]}" for result in results)
    alone = [rank([candidate]).json()["results"][0]["logit"] for candidate in candidates]
    assert max(alone) - min(alone) > 0.1
    assert {result["index"]: result["logit"] for result in results} == pytest.approx(dict(enumerate(alone)), abs=1e-3)
    best = [result["logit"] for result in results]
    assert best == sorted(best, reverse=True)


def test_refusal_says_where_its_time_went(server: Running) -> None:
    """An image that is damaged at its end is one that was decoded for a while."""
    damaged = factories.encoded(factories.noise(400, 400), "PNG")[:-60_000]

    response = server.client.post("/v1/vqa?question=a", content=damaged, headers={"Content-Type": "image/png"})

    named = re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"])
    assert response.status_code == 422
    assert [stage for stage, _ in named] == ["receive", "admit", "decode", "total"]
    assert sum(float(ms) for _, ms in named[:-1]) == pytest.approx(float(named[-1][1]), abs=0.01)
    assert float(dict(named)["decode"]) > 0


def test_route_with_a_slash_behind_it_is_no_route(server: Running) -> None:
    """A redirect is no answer of the contract's."""
    response = server.client.post("/v1/vqa/", params={"question": "a"}, content=b"")

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_health_is_told_without_a_body_to_whoever_asks_so(server: Running, path: str) -> None:
    """As some balancers do."""
    response = server.client.head(path)

    assert (response.status_code, response.content) == (200, b"")


def test_every_answer_of_the_model_can_be_asked_for(server: Running) -> None:
    """Best first, each once."""
    image = factories.encoded(factories.noise(100, 100), "PNG")

    response = server.client.post("/v1/vqa", files={"image": image}, data={"question": "a star?", "top_k": "100000"})

    answers = response.json()["answers"]
    scores = [answer["score"] for answer in answers]
    assert (
        len({answer["answer"] for answer in answers})
        == len(answers)
        == server.client.get("/v1/models").json()["models"][0]["labels"]
    )
    assert scores == sorted(scores, reverse=True)


def test_openapi_describes_three_tasks_and_their_forms(server: Running) -> None:
    """The schema has no dangling reference, and names each body form."""
    schema = server.client.get("/openapi.json")
    paths = schema.json()["paths"]

    forms = {path: set(paths[path]["post"]["requestBody"]["content"]) for path in ("/v1/vqa", "/v1/itm", "/v1/rank")}

    raw = {"image/png", "image/jpeg", "image/*"}
    assert forms["/v1/vqa"] == forms["/v1/itm"] == {"multipart/form-data", "application/json"} | raw
    assert forms["/v1/rank"] == {"multipart/form-data", "application/json"}
    defined = schema.json()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', schema.text)) <= set(defined)
    assert "#/$defs" not in schema.text


@pytest.mark.parametrize("task", ["vqa", "itm", "rank"])
def test_openapi_examples_are_answered_in_each_form(server: Running, task: str) -> None:
    """As /docs fills them in, with a file where one is chosen; no client sends a field twice because of a default."""
    described = server.client.get("/openapi.json").json()["paths"][f"/v1/{task}"]["post"]
    bodies, (_, picture) = described["requestBody"]["content"], PICTURES["png"]
    query = {one["name"]: one["example"] for one in described["parameters"] if "example" in one}
    form = bodies["multipart/form-data"]["schema"]["properties"]
    filled = {name: field["examples"][0] for name, field in form.items() if "examples" in field}
    file = "images" if task == "rank" else "image"

    sent = [{"json": bodies["application/json"]["example"]}, {"data": filled, "files": {file: picture}}]
    if task != "rank":
        sent.append({"params": query, "content": picture, "headers": {"Content-Type": "image/png"}})
    responses = [server.client.post(f"/v1/{task}", **one) for one in sent]

    assert [response.status_code for response in responses] == [200] * len(sent)
    assert filled["model"] == responses[0].json()["model"]
    assert not [one for one in described["parameters"] if "default" in one["schema"]]


@pytest.mark.parametrize("task", ["vqa", "itm", "rank"])
def test_openapi_describes_no_null_outside_of_json(server: Running, task: str) -> None:
    """A client would send the word None; and what has no type in a form becomes no type in generated clients."""
    described = server.client.get("/openapi.json").json()["paths"][f"/v1/{task}"]["post"]
    form = described["requestBody"]["content"]["multipart/form-data"]["schema"]

    assert not {"oneOf", "anyOf"} & form.keys()
    for schema in [*form["properties"].values(), *(one["schema"] for one in described["parameters"])]:
        assert schema["type"] in {"string", "integer", "number", "array"}


def test_openapi_describes_health_and_what_it_refuses(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]

    for path in ("/readyz", "/health"):
        for status in ("200", "503"):
            schema = paths[path]["get"]["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/StatusResponse"}
    assert all("405" in about["get"]["responses"] for path, about in paths.items() if "/v1" in path and "get" in about)


def test_docs_page_loads_nothing_from_elsewhere(server: Running) -> None:
    """It works without a network, under a proxy's prefix and behind TLS: what it needs is beside it on the server."""
    page = server.client.get("/docs").text
    sources = re.findall(r"(?:src=|href=|\burl: )\"([^\"]+)\"", page)

    assert len(sources) >= 4
    assert not [source for source in sources if source.startswith("/") or ":" in source]
    assert all(server.client.get(f"/{source}").status_code == 200 for source in sources)


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/readyz", "/v1/models", "/metrics"])
def test_head_is_answered_as_get_without_the_body(server: Running, path: str) -> None:
    """As some balancers and link checkers ask; and the connection is good for what follows."""
    head, got = server.client.head(path), server.client.get(path)

    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers.get("Content-Type") == got.headers.get("Content-Type")


def test_root_leads_to_the_docs_page_under_any_prefix(server: Running) -> None:
    assert server.client.get("/").headers["Location"] == "docs"
