"""What a front knows of an engine on a GPU: its estimates have to be those of the process that runs it."""

from pathlib import Path

import pytest

from models.manifest import load_artifact
from server.desk import describe
from server.front import EngineElsewhere, known_here
from server.gpu.buckets import buckets_of
from server.latency import LatencyModel, Sample
from server.types import ServedModel

MOST = 8


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_front_estimates_runs_and_slices_as_the_engine_process_does(half: Path, provider: str) -> None:
    """Five rows run as eight there, and a rank's candidates are prepared by how many run together."""
    artifact = load_artifact(half, "fp16")
    engine = EngineElsewhere(provider, "1.2.3", "NVIDIA Fake 9.0", buckets_of(artifact.manifest.spec, MOST))
    samples = [Sample(batch, tokens, 1e-4 + 1e-6 * batch * tokens) for batch in (1, 2, 8) for tokens in (20, 40)]
    there = ServedModel(
        artifact=artifact,
        engine=engine,
        latency=LatencyModel(samples, 30, engine.padded),
        max_batch_size=MOST,
    )

    here = known_here(half, describe(there))

    assert here.engine == engine
    assert here.latency.slice_size(MOST) == there.latency.slice_size(MOST)
    assert [here.latency.run_s(rows) for rows in range(1, MOST + 1)] == pytest.approx(
        [there.latency.run_s(rows) for rows in range(1, MOST + 1)]
    )
    assert here.latency.run_s(5) == here.latency.run_s(8) > here.latency.run_s(2)
