"""The application: what is done before the first request."""

import pytest
from fakes import FakeClock, FakeEngine, served
from fastapi import routing
from starlette.testclient import TestClient

from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.metrics import Metrics
from server.settings import Settings


@pytest.mark.skipif(not hasattr(routing, "_EffectiveRouteContext"), reason="this FastAPI prepares routes otherwise")
def test_routes_are_prepared_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would wait for them."""
    metrics, settings, models = Metrics(), Settings(), [served(FakeEngine())]
    admission = Admission(16, metrics, FakeClock())
    app = create_app(settings, models, LocalBackend(settings, models, admission, metrics, FakeClock()))

    with TestClient(app) as client:
        monkeypatch.setattr(routing._EffectiveRouteContext, "from_api_route", None)
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/vqa").json()["code"] == "unsupported_media_type"
