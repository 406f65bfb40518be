"""`--provider cuda` on a machine without a GPU: the wheel's own provider, and stand-ins for CUDA's libraries.

It opens, captures and replays what it would on a GPU. Kernels do nothing here, so the answers are not looked at. The
graph is that of our own kernels: attention of onnxruntime's asks cuDNN for plans, which no stand-in can make.
"""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import factories
import httpx
import pytest
import standins

from export import artifact, checkpoint, fp16, graph, kernels, to_onnx
from loadtest.launch import started
from models.manifest import KERNELS, TOKENIZER, Manifest, Precision, describe_file
from server.gpu import libraries
from server.gpu.engine import SLOTS

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "loadtest/samples"
LAYERS, BUCKETS = 3, 8
RUN = """
import sys
from pathlib import Path

from models.manifest import load_artifact
from server.gpu.buckets import blank
from server.gpu.program import open_engine

artifact = load_artifact(Path(sys.argv[1]), "fp16", on_gpu=True)
engine = open_engine(artifact, "cuda", most=1, cache=Path(sys.argv[1]))
engine.warm_up()
bucket = engine._buckets[0]
logits = engine.run(blank(bucket, artifact.manifest.spec.patch_values)).logits
print(engine.device, {head: values.shape for head, values in logits.items()})
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact of one graph, which has passed no gate."""
    config = factories.small_config(hidden_size=128, num_hidden_layers=LAYERS)
    loaded = checkpoint.load(str(factories.write_checkpoint(tmp_path / "hf", config, factories.redrawn_state(config))))
    model = graph.build(loaded.config, loaded.state)
    artifact.keep_heads(model, loaded, ["itm"])  # which needs no labels
    file, module = f"fp16/{KERNELS}.onnx", kernels.fused(fp16.half(model))
    to_onnx.write(to_onnx.whole(module, loaded.config), tmp_path / file, functions=kernels.FUNCTIONS)
    loaded.tokenizer.save(str(tmp_path / TOKENIZER))
    half = Precision(graphs={KERNELS: describe_file(tmp_path, file)}, opset=to_onnx.OPSET)
    Manifest(
        name="rehearsal",
        description="",
        spec=loaded.config.spec,
        heads={head: next(module.parameters()).shape[0] for head, module in model.interaction.heads.items()},
        files={TOKENIZER: describe_file(tmp_path, TOKENIZER)},
        precisions={"fp16": half},
        source={},
        tools={},
    ).write(tmp_path)
    return tmp_path


@pytest.fixture
def log(packages: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-ins write to, in processes that have them."""
    standins.build(packages / "onnxruntime/capi" / libraries.PROVIDERS["cuda"], folder)
    (nvrtc,) = packages.glob("nvidia/*/lib")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{folder}:{nvrtc}")
    monkeypatch.setenv("PYTHONPATH", f"{packages}:{ROOT}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("STANDINS_LOG", str(folder / "log"))
    return folder / "log"


def test_engine_captures_every_bucket_and_slot_with_our_kernels_and_replays_them(log: Path, folder: Path) -> None:
    """The provider takes our operators, and they launch on the stream that it captures."""
    command = [sys.executable, "-c", RUN, str(folder)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "stand-in 9.0 {'itm_logits': (1, 2)}"
    events = [line.split() for line in log.read_text().splitlines()]
    count = Counter(event[0] for event in events)
    assert count["capture"] == count["captured"] == BUCKETS * SLOTS
    assert count["replay"] == BUCKETS * SLOTS + 1  # each capture is replayed at once, and then the last run
    assert len({event[2] for event in events if event[0] == "replay"}) == BUCKETS * SLOTS
    assert len({event[1] for event in events if event[0] in ("capture", "launch")}) == 1
    launched = Counter(event[2] for event in events if event[0] == "launch")
    runs = launched["add_norm"] // (2 * LAYERS)
    assert runs >= 2 * BUCKETS * SLOTS  # some before each capture, and the capture
    assert launched == {"attend_32": runs * LAYERS, "add_norm": runs * 2 * LAYERS, "bias_gelu": runs * LAYERS}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_server_in_front_of_it_answers_many_at_once_and_replays_only(log: Path, folder: Path, workers: str) -> None:
    """Of one process, and of two fronts whose pictures are in memory that they share with the engine."""
    flags = ("--provider", "cuda", "--precision", "fp16", "--max-batch-size", "4", "--workers", workers)
    picture = (SAMPLES / "00000.png").read_bytes()

    def ask(number: int) -> httpx.Response:
        return client.post("/v1/itm", files={"image": picture}, data={"text": f"scene {number}"})

    with started(flags, model=folder) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        (model,) = client.get("/v1/models").json()["models"]
        captured = log.read_text().count("captured")
        with ThreadPoolExecutor(16) as clients:
            answers = [*clients.map(ask, range(64))]

    assert (model["provider"], model["precision"]) == ("cuda", "fp16")
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["score"] for answer in answers}) == 1  # nothing is computed
    assert log.read_text().count("captured") == captured > 0
    assert server.process.returncode == 0
