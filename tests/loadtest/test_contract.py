"""What is made of a server's refusals."""

from typing import Any

import httpx
import pytest

from loadtest.contract import accepted, model_for

from .conftest import MODEL, RANKER

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1/itm?text=a")


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (httpx.Response(404, json={"error": "No model serves itm.", "code": "no_model"}), r"No model serves itm\."),
        (httpx.Response(404, json={"detail": "Not Found"}), r'404 {"detail":"Not Found"}'),
        (httpx.Response(502, text="<h1>Bad Gateway</h1>"), "502 <h1>Bad Gateway</h1>"),
        (httpx.Response(503, json=["none"]), r'503 \["none"\]'),
        (httpx.Response(307), "307"),
    ],
    ids=["ours", "another contract", "a proxy", "no object", "nothing"],
)
def test_refusal_is_told_in_the_words_of_the_server(response: httpx.Response, sentence: str) -> None:
    """Those of its contract; of whoever speaks another one, what there is."""
    response.request = REQUEST

    with pytest.raises(ValueError, match=f"^the server refused /v1/itm: {sentence}$"):
        accepted(response)


def test_model_is_the_one_that_a_request_without_its_name_is_for(fake_server: Any) -> None:
    """The first that serves the task, whichever is listed first."""
    fake_server.models = [RANKER, MODEL, {**MODEL, "name": "<second>"}]

    assert [model_for(fake_server.url, task)["name"] for task in ("rank", "vqa", "itm")] == ["<ranker>"] + 2 * [
        "<fake>"
    ]


def test_task_that_no_model_serves_is_told(fake_server: Any) -> None:
    """Where a benchmark asks questions of a server that ranks."""
    fake_server.models = [RANKER]

    with pytest.raises(ValueError, match=f"no model at {fake_server.url} serves vqa"):
        model_for(fake_server.url, "vqa")


@pytest.mark.parametrize("body", ['{"object": "list", "data": []}', "[]", "<h1>It works!</h1>"])
def test_server_that_is_no_vilt_server_is_told(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that lists models as OpenAI does."""
    monkeypatch.setattr("httpx.get", lambda *_, **__: httpx.Response(200, text=body, request=REQUEST))

    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:80 is not a ViLT server"):
        model_for("http://127.0.0.1:80", "vqa")


def test_answer_is_passed_on() -> None:
    """As it is."""
    response = httpx.Response(200, request=REQUEST)

    assert accepted(response) is response
