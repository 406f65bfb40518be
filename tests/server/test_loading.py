"""From settings to models that are ready to serve: what may run together, what fits, what is measured anew."""

from pathlib import Path
from typing import Any

import pytest
from exported import with_int8

from models.errors import ArtifactError
from server import loading
from server.loading import CPU_BATCH_SIZE, load
from server.memory import OWN_BYTES
from server.settings import SHAPES, Settings
from server.types import LoadedModel


def loaded(folder: Path, cache: Path, **settings: Any) -> LoadedModel:
    (model,) = load(Settings(model=[folder], cache_dir=cache, calibration_s=0.01, **settings))
    return model


def test_int8_runs_one_entry_at_a_time_and_fp32_several(tmp_path: Path) -> None:
    """An int8 scale spans a whole batch, so that answers would depend on it, whatever --max-batch-size says."""
    folder = with_int8(tmp_path / "shapes")

    for precision, wished, most in (("int8", 0, 1), ("int8", 16, 1), ("fp32", 0, CPU_BATCH_SIZE), ("fp32", 16, 16)):
        model = loaded(folder, tmp_path, precision=precision, max_batch_size=wished)
        assert (model.artifact.precision, model.max_batch_size) == (precision, most)


def test_model_that_does_not_fit_into_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the kernel would kill the process without a message."""
    monkeypatch.setattr(loading, "memory_limit_bytes", lambda: OWN_BYTES)

    with pytest.raises(ArtifactError, match="MB is the limit"):
        loaded(SHAPES, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_model_is_measured_anew_when_it_gets_other_threads(tmp_path: Path) -> None:
    """Two threads take another time than one; a second start with as many reuses the measurement."""
    for threads, kept in ((1, 1), (2, 2), (1, 2)):
        loaded(SHAPES, tmp_path, threads=threads)
        assert len([*tmp_path.glob("latency-*.json")]) == kept
