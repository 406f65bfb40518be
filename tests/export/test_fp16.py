"""The graph in half precision: what it is made of, that it is still the model, and that its mask masks.

It runs on the CPU here: that shows the graph and its casts, not a GPU's kernels.
"""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import Exported
from onnx import TensorProto, helper

from export import fp16, parity, to_onnx
from export.parity import Runner
from models.batch import Feeds, collate

CLOSE = 0.03  # of a logit, for weights redrawn at random, whose logits are of size 1; 0.011 seen


@pytest.fixture(scope="module")
def graph(small: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp16") / "model.onnx"
    part = to_onnx.whole(fp16.Half(small.model), small.model.interaction.heads, small.loaded.config)
    to_onnx.write(part, path, fp16.OPSET)
    return path


@pytest.fixture(scope="module")
def run(graph: Path) -> Runner:
    return parity.onnx_runner({"model": graph})


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def test_attention_is_one_node_of_a_layer_as_the_kernels_want_it(graph: Path, small: Exported) -> None:
    """Standard, on three axes, softmax in fp32, with a mask and a single output: TensorRT refuses more."""
    nodes = [node for node in onnx.load(graph).graph.node if node.op_type == "Attention"]

    assert len(nodes) == small.loaded.config.num_layers
    for node in nodes:
        found = attributes(node)
        assert (node.domain, len(node.input), len(node.output)) == ("", 4, 1)
        assert found["q_num_heads"] == found["kv_num_heads"] == small.loaded.config.num_attention_heads
        assert found["softmax_precision"] == TensorProto.FLOAT
        assert found["scale"] == 1.0


def test_what_has_to_be_exact_is_fp32(graph: Path) -> None:
    """Norms measure in fp32, patches meet fp32 weights, heads and logits are fp32; the rest is half."""
    model = onnx.load(graph)
    weights = {one.name: one for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"}]
    kinds = {weights[node.input[1]].data_type: 0 for node in products if node.input[1] in weights}
    (patches,) = [w for w in weights.values() if list(w.dims)[:1] == [3072]]

    assert patches.data_type == TensorProto.FLOAT
    assert TensorProto.FLOAT16 in kinds
    norms = [attributes(node) for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert norms
    assert all(one.get("stash_type", 1) == TensorProto.FLOAT for one in norms)
    assert {one.type.tensor_type.elem_type for one in model.graph.output} == {TensorProto.FLOAT}


def test_folding_what_tokens_share_is_exact(small: Exported) -> None:
    """In fp32 nothing changes but the order of summation."""
    folded = copy.deepcopy(small.model)
    for layer in folded.interaction.layers:
        fp16.fold_constants(layer)

    found = parity.compare(small.loaded, parity.torch_runner(folded), parity.torch_runner(small.model))

    assert 0 < found["max_logit_difference_to_fp32"] < 1e-5


def test_answers_alone_and_in_batches_are_those_of_fp32(small: Exported, run: Runner) -> None:
    """Over grids and lengths; batches pad texts in the middle of the sequence and pictures at its end."""
    found = parity.compare(small.loaded, run, parity.torch_runner(small.model), with_batches=True)

    assert found["inputs"] > 12
    assert found["max_logit_difference_to_fp32"] < CLOSE


def test_masked_tokens_change_nothing_wherever_they_are(small: Exported, run: Runner) -> None:
    """After the text as after the picture: a mask taken for a length would let one of them in."""
    samples = next(batch for batch in parity.cases(small.loaded.config, 64) if len(batch) == 3)
    feeds = collate([sample.features(small.loaded.config) for sample in samples])
    length = feeds.input_ids.shape[1]
    text, image = feeds.mask[:, :length], feeds.mask[:, length + 1 :]
    assert not text.all()
    assert not image.all()
    spoilt = Feeds(
        np.where(text, feeds.input_ids, 7),
        np.where(image[..., None], feeds.patches, 255).astype(np.uint8),
        np.where(image, feeds.position_ids, 9),
        feeds.mask,
    )

    for head, logits in run(feeds).items():
        np.testing.assert_array_equal(run(spoilt)[head], logits)


def test_logits_beyond_half_precision_are_refused(small: Exported) -> None:
    """A checkpoint whose activations overflow is not exported as if nothing were wrong."""
    model = copy.deepcopy(small.model)
    with torch.no_grad():
        model.interaction.layers[0].contract.bias += 1e6

    with pytest.raises(parity.ParityError, match="not numbers"):
        parity.compare(small.loaded, parity.torch_runner(fp16.Half(model)), parity.torch_runner(small.model))
