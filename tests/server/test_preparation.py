"""Images and texts to features: what is cached, and for which model."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from factories import encoded, noise
from fakes import FakeClock, FakeEngine, served

from models.spec import ViltSpec
from server.admission import Admission
from server.backend import LocalBackend
from server.errors import TooLarge, Unavailable
from server.metrics import Metrics
from server.preparation import Limits, Pair, PixelBudget, Preparation
from server.schemas import RankBody
from server.settings import Settings
from server.slowest import RequestRecord
from server.types import LoadedModel, Timings, Urgency

LIMITS = Limits(max_image_pixels=10**6, max_request_pixels=10**6, max_text_chars=100, decoded_cache_bytes=10**8)
PNG = encoded(noise(200, 200), "PNG")


def with_spec(spec: ViltSpec, name: str) -> LoadedModel:
    model = served(FakeEngine(), name=name)
    return replace(model, artifact=replace(model.artifact, manifest=replace(model.artifact.manifest, spec=spec)))


def test_image_that_is_kept_for_one_model_is_not_given_to_one_that_reads_it_otherwise() -> None:
    """Models of two sizes each get their own patches; models of one size share them."""
    hits: list[None] = []
    preparation = Preparation(LIMITS, lambda: hits.append(None))
    small, large, same = (
        with_spec(ViltSpec(shortest_edge_px=edge_px), name) for edge_px, name in ((160, "a"), (384, "b"), (160, "c"))
    )

    images = [
        preparation.pair(model, PNG, "a star?", Timings()).features.image for model in (small, large, small, large)
    ]

    assert [image.grid for image in images] == [(5, 5), (12, 12), (5, 5), (12, 12)]
    assert np.array_equal(images[0].patches, images[2].patches)
    assert len(hits) == 2
    preparation.pair(same, PNG, "a star?", Timings())
    assert len(hits) == 3


def test_pixels_are_counted_each_time_they_are_decoded() -> None:
    """An image that is kept costs nothing again; one that is not kept costs the server as much as the first time."""
    body = RankBody.model_validate({"query": {"text": "a star?"}, "candidates": [{"image": PNG}] * 4})
    model = served(FakeEngine())

    def rank(decoded_cache_bytes: int) -> list[Pair]:
        limits = replace(LIMITS, max_request_pixels=3 * 200 * 200, decoded_cache_bytes=decoded_cache_bytes)
        preparation = Preparation(limits, lambda: None)
        pixels = preparation.budget()
        first = preparation.first_of(model, body, Timings(), pixels)
        return [first, *(preparation.candidate(model, body, index, first, pixels) for index in range(1, 4))]

    assert len(rank(10**8)) == 4
    with pytest.raises(TooLarge, match=r"Candidates\[3\]: With this image the request exceeds its limit of 120,000"):
        rank(0)


def test_budget_of_a_request_is_no_reason_to_refuse_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for the same image decodes it itself, if the other may not."""
    begins, joins = threading.Event(), threading.Event()
    body = RankBody.model_validate({"query": {"text": "a star?"}, "candidates": [{"image": PNG}]})
    model, preparation = served(FakeEngine()), Preparation(LIMITS, lambda: None)

    class Awaited(Future[object]):
        def result(self, timeout: float | None = None) -> object:
            joins.set()
            return super().result(timeout)

    class Spent(PixelBudget):
        def spend(self, pixels: int) -> None:
            begins.set()
            assert joins.wait(10)
            super().spend(pixels)

    monkeypatch.setattr("server.caches.Future", Awaited)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(preparation.first_of, model, body, Timings(), Spent(0))
        assert begins.wait(10)
        assert preparation.first_of(model, body, Timings(), preparation.budget()).digest
        with pytest.raises(TooLarge, match="exceeds its limit"):
            refused.result()


def test_time_that_answers_took_to_prepare_is_expected_of_the_next() -> None:
    """A tenth of what the last one took; a refusal, for which nothing was decoded, teaches nothing."""
    metrics, clock = Metrics(), FakeClock()
    backend = LocalBackend(Settings(), [served(FakeEngine())], Admission(16, metrics, clock), metrics, clock)
    about = {"request_id": "a", "task": "vqa", "model": "shapes", "when": datetime.now(UTC), "total_ms": 1000}
    stages = {"decode": 200, "preprocess": 200, "tokenize": 100, "queue": 400}

    backend.record(RequestRecord(**about, status=200, code="ok", timing_ms=stages))
    backend.record(RequestRecord(**about, status=422, code="invalid_image", timing_ms={"decode": 60_000}))

    async def refusal() -> Unavailable:
        async with backend.admit("shapes", Urgency.INTERACTIVE, 1, deadline_s=1e9, client="", key="a"):
            with pytest.raises(Unavailable) as refused:
                async with backend.admit("shapes", Urgency.INTERACTIVE, 1, deadline_s=100.05, client="", key="b"):
                    pass
        return refused.value

    assert asyncio.run(refusal()).details == {"queued_ms": 10, "estimate_ms": 65, "deadline_ms": 50}
