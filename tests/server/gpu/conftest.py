"""A small artifact in half precision, exported once, and the kernels on a CPU, compiled once."""

from pathlib import Path

import factories
import pytest
from emulated import Emulated

from export import artifact, checkpoint


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = factories.small_config()
    folder = tmp_path_factory.mktemp("half")
    loaded = checkpoint.load(str(factories.write_checkpoint(folder / "hf", config, factories.redrawn_state(config))))
    output = folder / "artifact"
    artifact.write_artifact(
        loaded, output, name="half", description="", tasks=[], report=lambda _: None, precision="fp16"
    )
    return output


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(tmp_path_factory.mktemp("emulated"))
