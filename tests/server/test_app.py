"""The application: what is done before the first request, and what is left of one that failed."""

import gc
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, FakeEngine, served
from fastapi import routing
from pydantic import ValidationError
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from server import version
from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.metrics import Metrics
from server.schemas import RankBody
from server.settings import Settings

SCENE = Path(__file__).parents[2] / "docs" / "images" / "scene.png"


def application(**settings_: Any) -> ASGIApp:
    metrics, settings, models = Metrics(), Settings(**settings_), [served(FakeEngine())]
    admission = Admission(16, metrics, FakeClock())
    return create_app(settings, models, LocalBackend(settings, models, admission, metrics, FakeClock()))


@pytest.mark.skipif(not hasattr(routing, "_EffectiveRouteContext"), reason="this FastAPI prepares routes otherwise")
def test_routes_are_prepared_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would wait for them."""
    with TestClient(application()) as client:
        monkeypatch.setattr(routing._EffectiveRouteContext, "from_api_route", None)
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/vqa").json()["code"] == "unsupported_media_type"


def bodies_alive() -> int:
    return sum(type(one) is RankBody for one in gc.get_objects())


def test_body_of_a_request_that_failed_is_let_go_at_once() -> None:
    """Not when garbage is collected, which may be after many of them."""
    files = [("images", SCENE.read_bytes()), ("images", b"no picture")]
    with TestClient(application()) as client:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                assert client.post("/v1/rank", data={"query_text": "a"}, files=files).json()["code"] == "invalid_image"
            until_s = time.monotonic() + 5  # the last one's threads may still be at it
            while (left := bodies_alive()) and time.monotonic() < until_s:
                time.sleep(0.01)
        finally:
            gc.enable()

    assert not left


PAGE = {"Origin": "https://a.example"}
ASKS = {
    **PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, x-deadline-ms",
}


@pytest.mark.parametrize(
    ("origins", "may"), [([], False), (["https://b.example"], False), ([PAGE["Origin"]], True), (["*"], True)]
)
def test_page_of_another_origin_may_call_only_if_it_is_named(origins: list[str], may: bool) -> None:
    """With a key and a deadline, and it may read where the time went, of a refusal, too."""
    with TestClient(application(cors_origins=origins, api_key="secret")) as client:
        before = client.options("/v1/vqa", headers=ASKS)
        refused = client.post("/v1/vqa", headers=PAGE)

    assert (before.status_code == 200) is may
    assert refused.status_code == 401
    for response in (before, refused):
        assert ("access-control-allow-origin" in response.headers) is may
        assert response.headers.get("timing-allow-origin") == (", ".join(origins) or None)
    if may:
        assert "x-deadline-ms" in before.headers["access-control-allow-headers"]
        assert "Server-Timing" in refused.headers["access-control-expose-headers"]


def test_origins_are_split_as_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILT_CORS_ORIGINS", "https://a.example, http://localhost:3000,")

    assert Settings().cors_origins == ["https://a.example", "http://localhost:3000"]


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://a.example/page", "**"])
def test_origin_that_no_browser_names_so_is_refused(origin: str) -> None:
    """It would match nothing, and every page be refused without a word."""
    with pytest.raises(ValidationError, match=r"is not \* or an origin"):
        Settings(cors_origins=[origin])


def test_tree_that_was_never_installed_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is of the schema alone."""

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", absent)

    with TestClient(application()) as client:
        assert client.get("/openapi.json").json()["info"]["version"] == "not installed"
