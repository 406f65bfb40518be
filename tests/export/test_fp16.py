"""The graph in half precision: what it is made of, that it is still the model, and that its mask masks.

It runs on the CPU here: that shows the graph and its casts, not a GPU's kernels.
"""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import Exported, padded_and_spoilt
from onnx import TensorProto, helper

from export import artifact, fp16, parity, to_onnx
from export.parity import Runner

HALF_OR_FP32 = {TensorProto.FLOAT, TensorProto.FLOAT16}
CASTS = 7  # of a layer: three around attention, four where the residual stream is left and entered
CLOSE = 0.03  # of a logit, for weights redrawn at random, whose logits are of size 1; 0.011 seen


@pytest.fixture(scope="module")
def graph(small: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp16") / "model.onnx"
    part = to_onnx.whole(fp16.half(small.model), small.loaded.config)
    to_onnx.write(part, path)
    return path


@pytest.fixture(scope="module")
def run(graph: Path) -> Runner:
    return parity.onnx_runner({"model": graph})


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_attention_is_one_node_of_a_layer_as_the_kernels_want_it(graph: Path, small: Exported, precision: str) -> None:
    """Standard, on three axes, with a mask and a single output, and no wish that some kernel does not know."""
    path = graph if precision == "fp16" else small.three_parts["interaction"]
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Attention"]

    assert len(nodes) == small.loaded.config.num_layers
    for node in nodes:
        found = attributes(node)
        assert set(found) <= {"q_num_heads", "kv_num_heads", "scale"}
        assert (node.domain, len(node.input), len(node.output)) == ("", 4, 1)
        assert found["q_num_heads"] == found["kv_num_heads"] == small.loaded.config.num_attention_heads
        assert found["scale"] == 1.0


def test_attention_is_fp32_between_three_casts(graph: Path, small: Exported) -> None:
    """Of query, of key and value together, and of what comes out, which goes into a product of halves."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    kinds = {one.name: one.type.tensor_type.elem_type for one in model.graph.value_info}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in (one for one in model.graph.node if one.op_type == "Attention"):
        query, key, value = (made_by[name] for name in node.input[:3])
        (back,) = [one for one in model.graph.node if node.output[0] in one.input]

        assert {kinds[name] for name in (*node.input[:3], *node.output)} == {TensorProto.FLOAT}
        assert (query.op_type, back.op_type) == ("Cast", "Cast")
        assert key == value
        assert made_by[key.input[0]].op_type == "Cast"
        assert kinds[back.output[0]] == TensorProto.FLOAT16

    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == CASTS * small.loaded.config.num_layers + 1  # and the patches'


def test_what_has_to_be_exact_is_fp32(graph: Path) -> None:
    """Norms and the stream they read, patches and their weights, heads and logits; products of layers are half."""
    model = onnx.load(graph)
    weights = {one.name: one for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"}]
    kinds = {weights[node.input[1]].data_type: 0 for node in products if node.input[1] in weights}
    (patches,) = [w for w in weights.values() if list(w.dims)[:1] == [3072]]

    assert patches.data_type == TensorProto.FLOAT
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT16 not in {
        weights[name].data_type
        for node in model.graph.node
        if node.op_type in {"LayerNormalization", "Gather"}
        for name in node.input
        if name in weights
    }
    assert {one.type.tensor_type.elem_type for one in model.graph.output} == {TensorProto.FLOAT}


def test_residual_stream_is_fp32(graph: Path, small: Exported) -> None:
    """Every sum of two activations of a layer: what the layer reads, and what it adds."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    kinds = {one.name: one.type.tensor_type.elem_type for one in model.graph.value_info}
    weights = {one.name for one in model.graph.initializer}
    sums = [
        node
        for node in model.graph.node
        if node.op_type == "Add" and not weights & set(node.input) and kinds[node.output[0]] in HALF_OR_FP32
    ]

    assert len(sums) >= 2 * small.loaded.config.num_layers
    assert {kinds[name] for node in sums for name in node.output} == {TensorProto.FLOAT}


def test_rounded_layer_is_the_layer_in_halves(small: Exported) -> None:
    """Each rounds where the other does; sums of another order move an element in a hundred by its last bit."""
    half = fp16.half(small.model)
    size = small.loaded.config.hidden_size
    hidden = torch.randn(2, 40, size, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(2, 1, 40, 40)
    exact = copy.deepcopy(small.model.interaction.layers[0])
    fp16.fold_constants(exact)
    with torch.no_grad():
        found = fp16.rounded(half).interaction.layers[0](hidden, bias)
        expected = half.interaction.layers[0](hidden, bias)
        error = (expected - exact(hidden, bias)).abs().mean()

    assert error > 0
    assert (found - expected).abs().mean() < error / 10


def test_folding_what_tokens_share_is_exact(small: Exported) -> None:
    """In fp32 nothing changes but the order of summation."""
    folded = copy.deepcopy(small.model)
    for layer in folded.interaction.layers:
        fp16.fold_constants(layer)

    found = parity.compare(small.loaded, parity.torch_runner(folded), parity.torch_runner(small.model))

    assert 0 < found["max_logit_difference_to_fp32"] < 1e-5


def test_norms_and_key_value_have_nothing_left_to_round_that_tokens_share(small: Exported) -> None:
    """Gain and bias lie in the products after them; keys and values have no bias to add."""
    for layer in small.model.interaction.layers:
        assert layer.key_value.key.bias is layer.key_value.value.bias is None
    for layer in fp16.half(small.model).interaction.layers:
        for norm, _ in (layer.norm_before, layer.norm_after):
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
            assert not norm.bias.any()


def test_answers_alone_and_in_batches_are_those_of_fp32(small: Exported, run: Runner) -> None:
    """Over grids and lengths; batches pad texts in the middle of the sequence and pictures at its end."""
    found = parity.compare(small.loaded, run, parity.torch_runner(small.model), with_batches=True)

    assert found["inputs"] > 12
    assert found["max_logit_difference_to_fp32"] < CLOSE


def test_masked_tokens_change_nothing_wherever_they_are(small: Exported, run: Runner) -> None:
    """After the text as after the picture: a mask taken for a length would let one of them in."""
    feeds, spoilt = padded_and_spoilt(small.loaded)

    for head, logits in run(feeds).items():
        np.testing.assert_array_equal(run(spoilt)[head], logits)


@pytest.mark.slow
def test_logits_beyond_half_precision_are_refused(small: Exported, tmp_path: Path) -> None:
    """Activations that overflow are found, though a CPU computes the graph's products in fp32 and is none the wiser."""
    up, down = "vilt.encoder.layer.0.intermediate.dense.bias", "vilt.encoder.layer.0.output.dense.weight"
    state = small.loaded.state | {name: small.loaded.state[name].clone() for name in (up, down)}
    state[up][0] = 6e4  # a half, as are the weights; what they make is none
    state[down][:, 0] = 0
    state[down][0, 0] = 10
    overflowing = dataclasses.replace(small.loaded, state=state)

    with pytest.raises(parity.ParityError, match="not numbers"):
        artifact.write_artifact(
            overflowing, tmp_path, name="x", description="", tasks=[], report=lambda _: None, precision="fp16"
        )

    assert not (tmp_path / "manifest.json").exists()
