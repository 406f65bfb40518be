"""On a machine with an NVIDIA GPU; elsewhere these are skipped, and the reason says what is missing."""

from pathlib import Path

import factories
import pytest

from export import artifact, checkpoint
from models.manifest import KERNELS, load_artifact
from server.engine import OrtEngine
from server.gpu import libraries, parity
from server.gpu.buckets import OutsideBuckets
from server.gpu.libraries import MissingError
from server.gpu.options import NAMES
from server.gpu.program import open_engine

MOST = 8


@pytest.fixture(
    scope="module",
    params=[(4, False), (4, True), (2, True)],
    ids=["onnxruntime's kernels", "our kernels, heads of 32", "our kernels, heads of 64"],
)
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        libraries.gpu_name(libraries.load(libraries.DRIVER))
    except (OSError, MissingError) as error:
        pytest.skip(f"there is no NVIDIA GPU: {error}")
    heads, own_kernels = request.param
    config = factories.small_config(hidden_size=128, num_attention_heads=heads)
    folder = tmp_path_factory.mktemp("half")
    loaded = checkpoint.load(str(factories.write_checkpoint(folder / "hf", config, factories.redrawn_state(config))))
    artifact.write_artifact(
        loaded,
        folder / "out",
        name="half",
        description="",
        tasks=[],
        report=lambda _: None,
        precision="fp16",
        own_kernels=own_kernels,
    )
    return folder / "out"


@pytest.mark.timeout(3600)  # TensorRT builds eight engines first
@pytest.mark.parametrize("provider", NAMES)
def test_gpu_answers_as_fp32_over_all_grids_and_1000_random_shapes(provider: str, half: Path, tmp_path: Path) -> None:
    """Through captured graphs, in any order; and what no bucket holds is refused."""
    loaded = load_artifact(half, "fp16", on_gpu=True)
    if provider == "tensorrt" and KERNELS in loaded.manifest.precisions["fp16"].graphs:
        pytest.skip("TensorRT runs the graph of standard operators, whatever is beside it")
    try:
        engine = open_engine(loaded, provider, most=MOST, cache=tmp_path)
    except MissingError as error:
        pytest.skip(str(error))
    engine.warm_up()
    spec = loaded.manifest.spec

    found = parity.check(engine, OrtEngine(load_artifact(half, "fp32")), spec, most=MOST, shapes=1000)

    assert found["status"] == "passed", found
    with pytest.raises(OutsideBuckets):
        engine.run(factories.random_batch(spec, seed=0, size=MOST + 1))
