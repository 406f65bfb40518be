"""The task routes: who is told that it was a body that took too long, and who that it was we."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fakes import FakeClock, FakeEngine, served

from server import forms
from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.errors import Overloaded
from server.metrics import Metrics
from server.settings import Settings

PATIENCE_S = 20.0
JSON = {"Content-Type": "application/json"}


def ask(content: AsyncIterator[bytes] | bytes, **settings: Any) -> httpx.Response:
    """Send a body to a server that is never started: requests that do not come as far as the model need no more."""
    made, models, metrics = Settings(**settings), [served(FakeEngine())], Metrics()
    backend = LocalBackend(made, models, Admission(16, metrics, FakeClock()), metrics, FakeClock())
    transport = httpx.ASGITransport(create_app(made, models, backend))

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/livez")  # the framework prepares routes as the first request passes them
            return await client.post("/v1/vqa", content=content, headers=JSON)

    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


async def stalled() -> AsyncIterator[bytes]:
    """Begin a body, and never go on."""
    yield b"{"
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "limits",
    [{"deadline_ms": 1000}, {"receive_timeout_s": 1}, {"deadline_ms": 1000, "receive_timeout_s": 1}],
    ids=["deadline", "timeout", "both"],
)
def test_body_that_stalls_is_the_client_s_whichever_limit_ends_it(limits: dict[str, float]) -> None:
    """By default the deadline is the first, which would read as if the server had been too slow."""
    refused = ask(stalled(), **limits)

    assert (refused.status_code, refused.json()["code"]) == (504, "receive_timeout")
    assert refused.json()["error"] == "The body did not arrive within 1 s."


def test_deadline_that_passes_before_the_body_is_looked_at_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may while a front asks the engine process for one of the client's places."""

    @contextlib.asynccontextmanager
    async def place(*_: object) -> AsyncIterator[None]:
        await asyncio.sleep(0.05)
        yield

    monkeypatch.setattr(LocalBackend, "place", place)

    refused = ask(b"{}", deadline_ms=20)

    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_deadline_that_passes_behind_a_whole_body_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is still being taken apart, and so in the same stage."""
    has_answer = threading.Event()
    monkeypatch.setattr(forms, "parse", lambda *_, **__: has_answer.wait(PATIENCE_S))
    try:
        refused = ask(b"{}", deadline_ms=1000)
    finally:
        has_answer.set()

    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_refusal_tells_to_come_back_in_whole_seconds_that_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is rounded up, the body has milliseconds."""

    @contextlib.asynccontextmanager
    async def place(*_: object) -> AsyncIterator[None]:
        raise Overloaded("overloaded", "Too many.", retry_after_s=1.2004)
        yield

    monkeypatch.setattr(LocalBackend, "place", place)

    refused = ask(b"{}")

    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
    assert refused.json()["retry_after_ms"] == 1201
