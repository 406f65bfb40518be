"""Graphs in int8: what they are made of, and that they are still the model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import int8, parity
from models.batch import Feeds
from models.manifest import load_artifact
from server.engine import session_options
from server.settings import SHAPES

ROOT = Path(__file__).parents[2]


def test_columns_are_rounded_to_scales_of_their_own() -> None:
    """A large column does not cost a small one its digits; a column of zeros stays one."""
    weight = np.array([[1.0, 0.001, 0.0], [-0.5, 0.0005, 0.0]], np.float32)

    quantised, scales = int8.by_column(weight)

    assert quantised.tolist() == [[127, 127, 0], [-64, 64, 0]]
    np.testing.assert_allclose(quantised * scales, weight, atol=0.005)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped artifact's graphs, quantised."""
    return int8.quantise(load_artifact(SHAPES).graphs, tmp_path_factory.mktemp("int8"))


def test_every_product_with_a_weight_is_of_integers(graphs: dict[str, Path]) -> None:
    """Those between activations stay fp32: each layer's attention."""
    nodes = {part: [node.op_type for node in onnx.load(path).graph.node] for part, path in graphs.items()}
    layers = nodes["interaction"].count("Attention")

    assert nodes["visual_embedding"].count("MatMulInteger") == 1
    assert "MatMul" not in nodes["visual_embedding"]
    assert layers > 0
    assert not {"MatMul", "Gemm"} & set(nodes["interaction"])
    assert nodes["interaction"].count("MatMulInteger") >= 5 * layers


def test_fp32_graphs_may_lie_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is put beside them, and the command is spared onnxruntime's advice."""
    written = []
    infer = onnx.shape_inference.infer_shapes_path
    monkeypatch.setattr(
        onnx.shape_inference, "infer_shapes_path", lambda *paths: (written.extend(paths), infer(*paths))
    )
    folder = load_artifact(SHAPES).graphs["interaction"].parent

    int8.quantise(load_artifact(SHAPES).graphs, tmp_path)

    assert written
    assert all(Path(path).parent != folder for path in written)
    assert not caplog.records


def test_visual_embedding_loses_no_more_than_its_weights_do(graphs: dict[str, Path]) -> None:
    """Patches are integers as they come: the difference is the weights' rounding, whatever the brightest pixel."""
    fp32 = load_artifact(SHAPES).graphs["visual_embedding"]
    rng = np.random.default_rng(0)
    for brightest in (30, 255):
        feeds = {
            "patches": rng.integers(0, brightest, (1, 6, 3072), dtype=np.uint8),
            "position_ids": np.ones((1, 6), np.int64),
        }
        expected, found = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
            for path in (fp32, graphs["visual_embedding"])
        )
        weight = next(w for w in map(numpy_helper.to_array, onnx.load(fp32).graph.initializer) if len(w) == 3072)
        rounding = np.abs(weight).max(axis=0) / int8.LARGEST / 2
        bound = (feeds["patches"].astype(np.float64).sum(axis=-1, keepdims=True) * rounding) + 1e-3

        assert (np.abs(found[:, 1:] - expected[:, 1:]) <= bound).all()
        assert np.abs(found - expected).max() > 0


@pytest.fixture
def saturating(tmp_path: Path) -> tuple[Path, Feeds, NDArray[np.int64]]:
    """A graph whose products are the largest there are, what to feed it, and what comes out of integers."""
    patches, weight = np.full((1, 2, 3072), 255, np.uint8), np.full((3072, 3), int8.LARGEST, np.int8)
    nodes = [
        helper.make_node("MatMulInteger", ["patches", "weight"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["x_logits"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("patches", TensorProto.UINT8, patches.shape)]
    outputs = [helper.make_tensor_value_info("x_logits", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, [numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "x.onnx")
    nothing = np.empty(0)
    return tmp_path / "x.onnx", Feeds(nothing, patches, nothing, nothing), patches.astype(np.int64) @ weight


def test_sums_of_integers_are_exact_on_any_processor(saturating: tuple[Path, Feeds, NDArray[np.int64]]) -> None:
    """Where it is judged and where it is served: x86 without VNNI would add pairs of products in 16 bits."""
    path, feeds, expected = saturating
    session = onnxruntime.InferenceSession(path, session_options(1), providers=["CPUExecutionProvider"])

    judged = parity.onnx_runner({"x": path})(feeds)["x_logits"]
    served = session.run(None, {"patches": feeds.patches})[0]

    assert judged.tolist() == served.tolist() == expected.tolist()


@pytest.mark.slow
def test_command_writes_int8_beside_fp32_and_says_what_it_costs(tmp_path: Path) -> None:
    """Asked the samples, which are too few to judge by: the manifest has the figures, and auto serves fp32."""
    command = [
        sys.executable,
        "-m",
        "export",
        str(ROOT / "export/shapes/checkpoint"),
        "--output",
        str(tmp_path / "out"),
    ]
    flags = ["--precision", "int8", "--eval-data", str(ROOT / "loadtest/samples/data.jsonl")]

    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)

    assert done.returncode == 0, done.stderr
    assert "not gated (--eval-data has 55 questions, 24 texts, 0 ranks: 300 of each are needed)" in done.stdout
    assert "pre-processing" not in done.stderr
    artifact = load_artifact(tmp_path / "out", "int8")
    gate = artifact.manifest.precisions["int8"].gate
    assert gate["questions"] > 20
    assert gate["agreement"] >= 0.9
    assert gate["status"] == "not gated"
    assert gate["heads"]["itm_logits"]["asked"] == 24
    assert load_artifact(tmp_path / "out", has_vnni=True).precision == "fp32"
    sizes = {name: sum(e.size_bytes for e in one.graphs.values()) for name, one in artifact.manifest.precisions.items()}
    assert sizes["int8"] < 0.4 * sizes["fp32"]
