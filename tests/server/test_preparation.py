"""Images and texts to features: what is kept of one, and for whom."""

from dataclasses import replace

import numpy as np
from factories import encoded, noise
from fakes import FakeEngine, served

from models.spec import ViltSpec
from server.preparation import Limits, Preparation
from server.types import LoadedModel, Timings

LIMITS = Limits(max_image_pixels=10**6, max_request_pixels=10**6, max_text_chars=100, decoded_cache_bytes=10**8)
PNG = encoded(noise(200, 200), "PNG")


def with_spec(spec: ViltSpec, name: str) -> LoadedModel:
    model = served(FakeEngine(), name=name)
    return replace(model, artifact=replace(model.artifact, manifest=replace(model.artifact.manifest, spec=spec)))


def test_image_that_is_kept_for_one_model_is_not_given_to_one_that_reads_it_otherwise() -> None:
    """Two models of two sizes have each its own patches; two of one size share them."""
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
