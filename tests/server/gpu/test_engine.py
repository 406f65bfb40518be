"""Buckets, slots, bound tensors and threads, with onnxruntime's CPU in the place of the GPU."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import factories
import numpy as np
import pytest
from cudart import FakeCudart

from models.batch import Features, Feeds
from models.errors import ArtifactError
from models.manifest import Artifact, load_artifact
from server.engine import OrtEngine
from server.gpu import parity, program, timing
from server.gpu.buckets import Bucket, OutsideBuckets, buckets_of, span
from server.gpu.copies import Copies
from server.gpu.engine import SLOTS, GpuEngine
from server.gpu.libraries import ProviderError
from server.gpu.options import CUDA
from server.gpu.program import OrtProgram, open_session
from server.types import EngineOutput, Logits

MOST = 4
SAME = 2e-3  # of a logit: half precision sums in another order in another shape


@pytest.fixture(scope="module")
def loaded(half: Path) -> Artifact:
    return load_artifact(half, "fp16")


def engine_of(program: object, artifact: Artifact) -> GpuEngine:
    spec = artifact.manifest.spec
    buckets = buckets_of(spec, MOST)
    return GpuEngine(
        [(span(buckets, tuned=buckets[0]), program)],
        buckets,
        spec,
        artifact.manifest.heads,
        provider="cuda",
        version="0",
        device="NVIDIA Fake 9.0",
        allocate=lambda shape: np.zeros(shape, np.uint8),
        thread=ThreadPoolExecutor(1),
    )


@pytest.fixture(scope="module")
def engine(loaded: Artifact) -> GpuEngine:
    """The engine on a session of the CPU's, at its buckets and no other shapes."""
    spec = loaded.manifest.spec
    session = open_session(loaded.graphs["standard"], [("CPUExecutionProvider", {})])
    return engine_of(
        OrtProgram(
            session,
            buckets_of(spec, MOST),
            loaded.manifest.heads,
            spec.patch_values,
            device="cpu",
            copies=Copies(FakeCudart()),
        ),
        loaded,
    )


def assert_same(found: EngineOutput, expected: EngineOutput) -> None:
    assert set(found.logits) == set(expected.logits) == {"vqa_logits", "itm_logits", "rank_logits"}
    for head, logits in expected.logits.items():
        np.testing.assert_allclose(found.logits[head], logits, atol=SAME)


def test_random_shapes_answer_as_the_same_graph_at_their_own_shape(engine: GpuEngine, loaded: Artifact) -> None:
    """Padding to a bucket, and what an earlier batch left in its tensors, change nothing."""
    alone = OrtEngine(loaded)

    for seed in range(12):
        batch = factories.random_batch(loaded.manifest.spec, seed=seed, size=1 + seed % MOST)
        assert_same(engine.run(batch), alone.run(batch))


def test_one_graph_reports_no_parts(engine: GpuEngine, loaded: Artifact) -> None:
    """Inference alone is timed."""
    batch = factories.random_batch(loaded.manifest.spec, seed=0, size=1)

    assert engine.run(batch).parts_s == {}
    assert OrtEngine(loaded).run(batch).parts_s == {}


def test_batch_beyond_the_buckets_never_reaches_the_program(loaded: Artifact) -> None:
    """It is refused with its shape, and the slots are as they were."""
    recorder = Recorder(loaded)
    engine = engine_of(recorder, loaded)

    with pytest.raises(OutsideBuckets, match=f"batch of {MOST + 1}"):
        engine.run(factories.random_batch(loaded.manifest.spec, seed=0, size=MOST + 1))

    assert recorder.ran == []


class Recorder:
    """A program that says what it was given, and by whom it was run; it waits until it may."""

    def __init__(self, artifact: Artifact, failures: int = 0) -> None:
        self.failures = failures
        self.copied: list[tuple[Bucket, int]] = []
        self.ran: list[tuple[Bucket, int, str]] = []
        self.has_copied, self.may_run = threading.Semaphore(0), threading.Event()
        self.may_run.set()

    def copy_in(self, bucket: Bucket, slot: int, tensors: Feeds) -> None:
        self.copied.append((bucket, slot))
        self.has_copied.release()

    def run(self, bucket: Bucket, slot: int) -> None:
        self.may_run.wait(30)
        self.ran.append((bucket, slot, threading.current_thread().name))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the GPU broke")

    def copy_out(self, bucket: Bucket, slot: int, logits: Logits) -> None:
        for values in logits.values():
            values[:] = len(self.ran)


def test_warm_up_runs_every_bucket_in_every_slot_on_one_thread(loaded: Artifact) -> None:
    """No request captures a graph, and no graph is replayed by another thread than captured it."""
    recorder = Recorder(loaded)
    engine = engine_of(recorder, loaded)

    engine.warm_up()

    buckets = buckets_of(loaded.manifest.spec, MOST)
    assert {(bucket, slot) for bucket, slot, _ in recorder.ran} == {(b, slot) for b in buckets for slot in range(SLOTS)}
    assert len({thread for _, _, thread in recorder.ran}) == 1


def test_next_batches_are_copied_while_one_runs_and_one_more_waits(loaded: Artifact) -> None:
    """Each in a slot of its own."""
    recorder = Recorder(loaded)
    recorder.may_run.clear()
    engine = engine_of(recorder, loaded)
    batch = factories.random_batch(loaded.manifest.spec, seed=0, size=1)

    with ThreadPoolExecutor(SLOTS + 1) as callers:
        runs = [callers.submit(engine.run, batch) for _ in range(SLOTS + 1)]
        for _ in range(SLOTS):
            assert recorder.has_copied.acquire(timeout=30)
        assert not recorder.has_copied.acquire(timeout=0.05)
        assert {slot for _, slot in recorder.copied} == {*range(SLOTS)}
        recorder.may_run.set()
        for run in runs:
            run.result(30)

    assert len(recorder.ran) == SLOTS + 1


def test_logits_stay_what_they_are_when_the_slot_is_used_again(loaded: Artifact) -> None:
    """The server keeps them, and hands them out later."""
    engine = engine_of(Recorder(loaded), loaded)
    batch = factories.random_batch(loaded.manifest.spec, seed=0, size=3)

    found = [engine.run(batch).logits for _ in range(2 * SLOTS)]

    for number, logits in enumerate(found, 1):
        assert {head: values.shape for head, values in logits.items()} == {
            head: (3, width) for head, width in loaded.manifest.heads.items()
        }
        assert all((values == number).all() for values in logits.values())


def test_no_other_run_begins_before_warm_up_has_ended(loaded: Artifact) -> None:
    """A copy during a capture may spoil it."""
    recorder = Recorder(loaded)
    recorder.may_run.clear()
    engine = engine_of(recorder, loaded)
    captured = SLOTS * len(buckets_of(loaded.manifest.spec, MOST))

    with ThreadPoolExecutor(2) as callers:
        warming = callers.submit(engine.warm_up)
        assert recorder.has_copied.acquire(timeout=30)
        run = callers.submit(engine.run, factories.random_batch(loaded.manifest.spec, seed=0, size=1))
        assert not recorder.has_copied.acquire(timeout=0.05)
        recorder.may_run.set()
        warming.result(30)
        run.result(30)

    assert [slot for _, slot in recorder.copied[:captured]] == [*range(SLOTS)] * (captured // SLOTS)
    assert len(recorder.ran) == captured + 1


def test_failure_gives_its_slot_back(loaded: Artifact) -> None:
    """Or the third batch after two failures would wait for ever."""
    engine = engine_of(Recorder(loaded, failures=2 * SLOTS), loaded)
    batch = factories.random_batch(loaded.manifest.spec, seed=0, size=1)

    for _ in range(2 * SLOTS):
        with pytest.raises(RuntimeError, match="the GPU broke"):
            engine.run(batch)

    assert len(engine.run(batch).logits["vqa_logits"]) == 1


def test_provider_that_onnxruntime_does_not_know_is_refused(loaded: Artifact) -> None:
    """Its own way is to go on with the CPU."""
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(ArtifactError, match="Unknown Provider Type"),
    ):
        open_session(loaded.graphs["standard"], [("MadeUpExecutionProvider", {})])


class Session:
    """A session in which providers run nodes."""

    def __init__(self, nodes: dict[str, str]) -> None:
        self._nodes = nodes

    def get_providers(self) -> list[str]:
        return list(dict.fromkeys([*self._nodes.values(), "CPUExecutionProvider"]))

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda op=op: [SimpleNamespace(op_type=op)])
            for op, name in self._nodes.items()
        ]


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ({"Attention": "CPUExecutionProvider"}, "did not start CUDAExecutionProvider, but CPUExecutionProvider"),
        ({"MatMul": CUDA, "Attention": "CPUExecutionProvider"}, "left Attention to CPUExecutionProvider"),
    ],
)
def test_session_that_another_provider_runs_is_refused(
    nodes: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole, as where the provider's library cannot be loaded, or in part."""
    monkeypatch.setattr(program.onnxruntime, "InferenceSession", lambda *_, **__: Session(nodes))

    with pytest.raises(ProviderError, match=sentence):
        open_session(Path("model.onnx"), [(CUDA, {})])


def test_session_may_leave_shapes_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime computes them there on purpose, once for a captured graph."""
    session = Session({"MatMul": CUDA, "Shape": "CPUExecutionProvider"})
    monkeypatch.setattr(program.onnxruntime, "InferenceSession", lambda *_, **__: session)

    assert open_session(Path("model.onnx"), [(CUDA, {})]) is session


def test_parity_of_a_sound_engine_passes_over_all_grids_and_random_batches(
    engine: GpuEngine, half: Path, loaded: Artifact
) -> None:
    """Against fp32, at its own shapes; rows in a batch are what they are alone."""
    reference = OrtEngine(load_artifact(half, "fp32"))

    found = parity.check(engine, reference, loaded.manifest.spec, most=MOST, shapes=20)

    assert found["status"] == "passed", found
    assert found["grids"] == 37
    assert found["agreement"] is not None
    assert 0 < found["max_logit_difference"] < 0.05


class Mistaken:
    """An engine whose graph was captured for another shape: every batch gets the first one's logits."""

    def __init__(self, engine: GpuEngine) -> None:
        self._engine = engine
        self._first: EngineOutput | None = None
        self.provider, self.version, self.overlapping = "cuda", "0", 1
        self.padded, self.warm_up = engine.padded, engine.warm_up

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        self._first = self._first or self._engine.run(batch)
        rows = len(batch)
        return EngineOutput({head: np.repeat(one[:1], rows, 0) for head, one in self._first.logits.items()}, {})


def test_parity_of_a_graph_replayed_for_another_shape_fails(engine: GpuEngine, half: Path, loaded: Artifact) -> None:
    """Which is the mistake that it is there to find."""
    reference = OrtEngine(load_artifact(half, "fp32"))

    found = parity.check(Mistaken(engine), reference, loaded.manifest.spec, most=MOST, shapes=3)

    assert found["status"] == "failed"


def test_timing_has_a_row_for_each_bucket(engine: GpuEngine, loaded: Artifact) -> None:
    """With what it was asked of it, and images per second."""
    buckets = [Bucket(1, 15, 144), Bucket(2, 15, 144)]

    rows = timing.measure(engine, buckets, loaded.manifest.spec, repeat=2)

    assert [(row["batch"], row["tokens"]) for row in rows] == [(1, 160), (2, 160)]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["images_per_s"] > 0 for row in rows)
    assert all(row["graph_p50_ms"] > 0 for row in rows)


def test_batch_that_is_run_again_is_copied_neither_way(loaded: Artifact) -> None:
    """So that the graph can be timed without copies."""
    recorder = Recorder(loaded)
    engine = engine_of(recorder, loaded)
    batch = factories.random_batch(loaded.manifest.spec, seed=0, size=1)
    engine.run(batch)

    engine.run_again(batch)

    assert (len(recorder.copied), len(recorder.ran)) == (1, 2)
