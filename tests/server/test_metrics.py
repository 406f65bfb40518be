"""The instruments: that the process is among them, and that the buckets can tell what they should."""

import itertools
import sys
from datetime import UTC, datetime

import pytest
from fakes import FakeClock, FakeEngine, served
from starlette.testclient import TestClient

from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.metrics import SECONDS, Metrics
from server.settings import Settings
from server.slowest import RequestRecord
from server.version import own_version


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus-client reads /proc")
def test_process_s_memory_and_open_files_are_exposed() -> None:
    """A leak of either shows where the rest is read, under the names that every dashboard knows."""
    read = Metrics().registry.get_sample_value

    assert (read("process_resident_memory_bytes") or 0) > 1e6
    assert 0 < (read("process_open_fds") or 0) < (read("process_max_fds") or 0)


def test_replica_says_which_artifact_and_version_it_serves() -> None:
    """In one series for each model, and of the artifact as GET /v1/models has it."""
    metrics, settings, models = Metrics(), Settings(), [served(FakeEngine()), served(FakeEngine(), name="other")]
    admission = Admission(16, metrics, FakeClock())
    backend = LocalBackend(settings, models, admission, metrics, FakeClock())
    with TestClient(create_app(settings, models, backend)) as client:
        described = client.get("/v1/models").json()["models"]

    (metric,) = (one for one in metrics.registry.collect() if one.name == "vilt_model_info")
    assert [(one.labels["model"], one.labels["artifact"], one.value) for one in metric.samples] == [
        (model["name"], model["artifact"], 1) for model in described
    ]
    assert {one.labels["version"] for one in metric.samples} == {own_version()}
    assert models[0].artifact.identity.startswith(described[0]["artifact"])
    assert len(described[0]["artifact"]) == 12


def test_buckets_tell_stages_below_a_millisecond_and_reach_beyond_the_deadline() -> None:
    """Admission takes microseconds, and a request at most its deadline."""
    assert len([bound for bound in SECONDS if bound < 0.001]) >= 3
    assert max(SECONDS) > Settings().deadline_ms / 1000
    assert all(later == pytest.approx(2 * earlier, rel=0.03) for earlier, later in itertools.pairwise(SECONDS))


def test_request_and_its_stages_are_observed_in_seconds() -> None:
    """Half a second is 0.5; the stages of a refusal, which say little, are left out."""
    metrics = Metrics()
    about = {"request_id": "a", "task": "vqa", "when": datetime.now(UTC), "total_ms": 500, "timing_ms": {"queue": 250}}

    for model, status, code in (("shapes", 200, "ok"), ("", 503, "deadline_unreachable")):
        metrics.record(RequestRecord(**about, model=model, status=status, code=code))

    read = metrics.registry.get_sample_value
    for model in ("shapes", ""):
        assert read("vilt_request_seconds_sum", {"task": "vqa", "model": model}) == 0.5
    assert read("vilt_stage_seconds_sum", {"stage": "queue"}) == 0.25
