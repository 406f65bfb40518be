"""What a run takes: fitted, kept, corrected, and what follows from it for batches."""

import json
import math
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeClock, FakeEngine, latency

from models.batch import Features, extent
from models.spec import ViltSpec
from server.gpu.buckets import buckets_of, padded
from server.latency import LatencyModel, Sample, calibrated, measure
from server.types import EngineOutput

SPEC = ViltSpec(shortest_edge_px=160)
IDENTITY: dict[str, object] = {"artifact": "abc", "threads": 2}


class TimedEngine(FakeEngine):
    """Takes 2 ms and 10 us a token, on a clock set by hand."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        rows, length, patches = extent(batch)
        self.clock.now_s += 0.002 + 0.00001 * rows * (length + 1 + patches)
        return super().run(batch)


def test_fit_recovers_what_runs_take() -> None:
    """Between and beyond the shapes that were measured."""
    runs = LatencyModel([Sample(b, t, 0.002 + 1e-5 * b * t + 1e-8 * b * t * t) for b in (1, 8) for t in (50, 200)], 100)

    assert runs.run_s(4, 120) == pytest.approx(0.002 + 1e-5 * 480 + 1e-8 * 4 * 120**2, rel=1e-3)


def test_fit_of_noise_has_no_negative_term() -> None:
    """More work never seems to take less time."""
    runs = LatencyModel(
        [Sample(1, 50, 0.010), Sample(1, 200, 0.009), Sample(8, 200, 0.0091), Sample(2, 50, 0.012)], 100
    )

    assert (runs.coefficients >= 0).all()
    assert runs.run_s(8, 200) > 0


def test_fit_of_one_sample_is_a_model_all_the_same() -> None:
    """A budget that allowed one shape still gives an estimate."""
    assert LatencyModel([Sample(1, 100, 0.5)], 100).run_s(1) == pytest.approx(0.5)


def test_estimates_follow_runs_that_have_become_slower() -> None:
    """A neighbour on the same cores shows as drift, and goes again."""
    runs = latency(base_s=0.01)
    for _ in range(200):
        runs.observe(1, 10, 0.02)
    slow = runs.run_s(1)
    for _ in range(200):
        runs.observe(1, 10, 0.01)

    assert slow == pytest.approx(0.02, rel=0.01)
    assert runs.run_s(1) == pytest.approx(0.01, rel=0.01)


def test_batch_grows_with_the_backlog_where_runs_have_a_base_cost() -> None:
    """Sharing a base cost pays once enough are waiting; where there is none, it never does."""
    shared = latency(base_s=0.01, per_token_s=0.0002)
    alone = latency(base_s=0.0, per_token_s=0.0002)

    sizes = [shared.batch_size(waiting, 16) for waiting in (1, 2, 8, 64)]

    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] > 4
    assert [alone.batch_size(waiting, 16) for waiting in (1, 2, 8, 64)] == [1, 1, 1, 1]


def test_what_passes_between_runs_is_shared_like_a_base_cost() -> None:
    """Where the hop to the engine and back takes as long as a small model's run, few hops are sooner done."""
    runs = latency(base_s=0.0, per_token_s=0.0002)  # 2 ms of 10 tokens

    assert runs.batch_size(8, 16, between_s=0.0) == 1
    assert runs.batch_size(8, 16, between_s=0.002) > 1
    assert runs.batch_size(1, 16, between_s=0.002) == 1


def test_slice_of_a_rank_takes_hardly_longer_than_one_candidate() -> None:
    """So that a question behind it hardly waits longer."""
    runs = latency(base_s=0.01, per_token_s=0.0001)

    size = runs.slice_size(16)

    assert size > 1
    assert runs.run_s(size) <= 1.5 * runs.run_s(1) < runs.run_s(size + 1)


def test_measuring_stays_within_its_budget_and_takes_the_telling_shapes_first() -> None:
    """A slow model is measured less, never longer."""
    clock = FakeClock()
    engine = TimedEngine(clock)

    samples = measure(engine, SPEC, most=8, budget_s=0.040, clock=clock)

    assert clock.now_s - 100 <= 0.040
    assert (samples[0].batch, samples[0].tokens) == (1, 12 + 1 + 25)
    assert len(samples) < 8


def test_second_start_takes_what_the_first_one_measured(tmp_path: Path) -> None:
    """Same artifact, machine and settings: nothing is measured again."""
    clock = FakeClock()
    engines = [TimedEngine(clock), TimedEngine(clock)]

    first, second = (
        calibrated(engine, SPEC, most=4, budget_s=15, identity=IDENTITY, cache=tmp_path, clock=clock)
        for engine in engines
    )

    assert len(engines[0].batches) > 0
    assert engines[1].batches == []
    assert second.run_s(3, 77) == pytest.approx(first.run_s(3, 77))


def test_another_artifact_is_measured_anew(tmp_path: Path) -> None:
    """Times of one model say nothing of another."""
    clock = FakeClock()
    for name in ("abc", "def"):
        engine = TimedEngine(clock)
        calibrated(engine, SPEC, most=4, budget_s=15, identity={"artifact": name}, cache=tmp_path, clock=clock)
        assert engine.batches

    assert len(list(tmp_path.iterdir())) == 2


def test_another_gpu_of_the_same_host_is_measured_anew(tmp_path: Path) -> None:
    """A host may be given another one between two starts."""
    clock = FakeClock()
    for device in ("NVIDIA A10 8.6", "NVIDIA H200 9.0"):
        engine = TimedEngine(clock)
        engine.device = device
        calibrated(engine, SPEC, most=4, budget_s=15, identity=IDENTITY, cache=tmp_path, clock=clock)
        assert engine.batches


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"samples": []}), json.dumps({"samples": [{"batch": 1}]})])
def test_damaged_cache_is_measured_anew(tmp_path: Path, content: str) -> None:
    """A file cut short by a full disk keeps no server from starting."""
    clock = FakeClock()

    def calibrate() -> LatencyModel:
        return calibrated(TimedEngine(clock), SPEC, most=4, budget_s=15, identity=IDENTITY, cache=tmp_path, clock=clock)

    calibrate()
    (file,) = tmp_path.iterdir()
    file.write_text(content)

    assert calibrate().run_s(1, 38) == pytest.approx(0.002 + 0.00001 * 38, rel=0.01)


def test_cache_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A read-only file system costs a measurement at every start, no more."""
    (tmp_path / "file").write_text("")
    clock = FakeClock()

    runs = calibrated(
        TimedEngine(clock), SPEC, most=4, budget_s=15, identity=IDENTITY, cache=tmp_path / "file" / "x", clock=clock
    )

    assert runs.run_s(1) > 0


def test_cache_folder_on_a_full_disk_is_done_without(tmp_path: Path) -> None:
    """Files may have no bytes here; the server measures, serves, and the next start measures again."""
    clock = FakeClock()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # Python ignores the signal: writing fails
    try:
        first, second = (
            calibrated(TimedEngine(clock), SPEC, most=4, budget_s=15, identity=IDENTITY, cache=tmp_path, clock=clock)
            for _ in range(2)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert first.run_s(1) == second.run_s(1) > 0
    assert not list(tmp_path.glob("*.json"))


def test_batch_is_as_many_as_fill_a_bucket_where_the_engine_pads_to_one() -> None:
    """Five rows cost what eight do, and are answered sooner on average than four and then one."""
    buckets = buckets_of(ViltSpec(), 32)

    def padded_to(batch: int, tokens: float) -> tuple[int, int]:
        return padded(buckets, batch, tokens)

    samples = [
        Sample(batch, tokens, 0.0004 + 4e-7 * batch * tokens) for batch in (1, 2, 4, 8, 32) for tokens in (160, 208)
    ]
    model = LatencyModel(samples, 204, padded_to)

    assert model.run_s(5) == model.run_s(8) == pytest.approx(0.0004 + 4e-7 * 8 * 208, rel=1e-3)
    assert model.run_s(1, 170) == model.run_s(1, 190)
    mean_s = {rows: model.run_s(rows) * (math.ceil(5 / rows) + 1) / 2 for rows in range(1, 6)}
    assert model.batch_size(5, 32) == min(mean_s, key=mean_s.__getitem__) == 5
    for waiting in range(1, 100):
        rows = model.batch_size(waiting, 32)
        assert rows == waiting or rows in {1, 2, 4, 8, 16, 32}
