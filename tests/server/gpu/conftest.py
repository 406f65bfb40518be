"""A small artifact in half precision, exported once."""

from pathlib import Path

import factories
import pytest

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
