"""A front of an engine process on a GPU: it has none itself, and prepares what that runs."""

from pathlib import Path

from models.manifest import load_artifact
from server.front import known_here


def test_front_serves_the_artifact_of_a_gpu_as_the_engine_process_describes_it(half: Path) -> None:
    """In half precision, with slices as large as they are there."""
    identity = load_artifact(half, "fp16", on_gpu=True).identity

    model = known_here(half, {"identity": identity, "precision": "fp16", "provider": "cuda", "slice_size": 8})

    assert (model.artifact.precision, model.provider, model.slice_size) == ("fp16", "cuda", 8)
