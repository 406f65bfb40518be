"""The graph of our own operators: what it is made of, that it is still the model, and how it rounds.

Here the operators are what their functions say, in fp32. tests/server/gpu/test_kernels.py runs the kernels.
"""

from collections import Counter
from pathlib import Path

import factories
import onnx
import pytest
from exported import Exported
from onnx import TensorProto

from export import artifact, checkpoint, fp16, kernels, to_onnx
from export.checkpoint import CheckpointError
from models.manifest import KERNELS, STANDARD

CLOSE = 0.03  # of a logit, as for the graph of standard operators


@pytest.fixture(scope="module")
def graph(small: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "kernels.onnx"
    module = kernels.fused(fp16.half(small.model))
    to_onnx.write(to_onnx.whole(module, small.loaded.config), path, functions=kernels.FUNCTIONS)
    return path


def test_layer_is_four_products_and_four_operators_of_ours(graph: Path, small: Exported) -> None:
    """In the last layer, too, whose single query is a number of the operator."""
    nodes = onnx.load(graph).graph.node
    layers = small.loaded.config.num_layers

    found = Counter(node.op_type for node in nodes if node.domain == "vilt")

    assert found == {"Attention": layers, "AddNorm": 2 * layers, "BiasGelu": layers}
    assert sum(node.op_type == "MatMul" for node in nodes) == 4 * layers + 2  # and the patches', in two parts
    queries = [
        next(one.i for one in node.attribute if one.name == "queries") for node in nodes if node.op_type == "Attention"
    ]
    assert queries == [kernels.EVERY] * (layers - 1) + [1]


def test_products_are_halves_and_biases_fp32(graph: Path) -> None:
    """Nothing that is added to the residual stream is rounded but the products."""
    model = onnx.load(graph)
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    ours = [node for node in model.graph.node if node.domain == "vilt"]
    makers = {output: node for node in model.graph.node for output in node.output}

    assert {kinds[name] for node in ours for name in node.input if name in kinds} == {TensorProto.FLOAT}
    for node in ours:
        product = makers[node.input[0]]
        assert product.op_type == "MatMul"
        assert kinds[product.input[1]] == TensorProto.FLOAT16


@pytest.mark.slow
def test_artifact_has_the_graph_instead_of_onnxruntimes_if_asked_to(tmp_path: Path) -> None:
    """And is refused for sizes that no kernel has, before anything is written."""
    config = factories.small_config(hidden_size=64, num_attention_heads=2)
    for name, one in (("fits", config), ("other", factories.small_config())):
        factories.write_checkpoint(tmp_path / name, one, factories.redrawn_state(one))

    def write(name: str) -> set[str]:
        loaded = checkpoint.load(str(tmp_path / name))
        manifest = artifact.write_artifact(
            loaded,
            tmp_path / "out",
            name=name,
            description="",
            tasks=["itm"],
            report=lambda _: None,
            own_kernels=True,
        )
        return set(manifest.precisions["fp16"].graphs)

    with pytest.raises(CheckpointError, match="in heads of 32 or 64"):
        write("other")
    assert not (tmp_path / "out").exists()
    assert write("fits") == {KERNELS, STANDARD}
