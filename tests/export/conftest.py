"""A small checkpoint with every head, and its graphs, written once."""

import factories
import pytest
from exported import Exported, export_both_forms

from export import checkpoint


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    config = factories.small_config()
    folder = tmp_path_factory.mktemp("small")
    loaded = checkpoint.load(str(factories.write_checkpoint(folder / "hf", config, factories.redrawn_state(config))))
    return export_both_forms(folder, loaded)
