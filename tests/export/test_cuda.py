"""The graph of onnxruntime's own operators: what it is made of, that it is still the model, and how it rounds.

It runs on the CPU here, whose kernels of these operators are in fp32: that shows the graph, not a GPU's kernels.
"""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from exported import Exported
from onnx import TensorProto

from export import cuda, fp16, to_onnx

CLOSE = 0.03  # of a logit, as for the graph of standard operators


@pytest.fixture(scope="module")
def graph(small: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda") / "cuda.onnx"
    to_onnx.write(to_onnx.whole(cuda.fused(fp16.half(small.model)), small.loaded.config), path)
    return path


def test_layer_is_attention_with_its_products_and_two_sums_with_their_norms(graph: Path, small: Exported) -> None:
    """The last layer has a single query, so that its attention stays ONNX's own."""
    nodes = onnx.load(graph).graph.node
    layers = small.loaded.config.num_layers

    found = Counter((node.domain, node.op_type) for node in nodes)

    assert found["com.microsoft", "Attention"] == layers - 1
    assert found["", "Attention"] == 1
    assert found["com.microsoft", "SkipLayerNormalization"] == 2 * layers


def test_optional_outputs_that_nothing_reads_have_no_name(graph: Path) -> None:
    """Means and variances, which the CUDA kernel does not write."""
    sums = [node for node in onnx.load(graph).graph.node if node.op_type == "SkipLayerNormalization"]

    assert {tuple(node.output[1:3]) for node in sums} == {("", "")}


def test_sums_are_fp32_and_products_of_layers_half(graph: Path) -> None:
    """Nothing of the residual stream is rounded."""
    model = onnx.load(graph)
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    of = {
        kind: [node for node in model.graph.node if node.op_type == kind]
        for kind in ("SkipLayerNormalization", "Attention")
    }

    assert {kinds[name] for node in of["SkipLayerNormalization"] for name in node.input[2:]} == {TensorProto.FLOAT}
    assert {kinds[node.input[1]] for node in of["Attention"] if node.domain} == {TensorProto.FLOAT16}
    assert {one.type.tensor_type.elem_type for one in model.graph.output} == {TensorProto.FLOAT}


def test_fused_layer_is_the_layer_of_standard_operators(small: Exported) -> None:
    """In fp32, where neither rounds; they differ by the order of summation, and by the exponentials' halves."""
    half = fp16.half(small.model)
    rounded, fused = fp16.rounded(half).interaction, fp16.rounded(cuda.fused(half)).interaction
    for module in (*rounded.modules(), *fused.modules()):  # without their rounding
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    size = small.loaded.config.hidden_size
    stream = torch.randn(2, 40, size, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(2, 1, 40, 40)
    with torch.no_grad():
        expected = rounded.layers[0](stream, bias)
        found, normed = fused.layers[0](stream, fused.norm_before(stream), bias)

    assert (found - expected).abs().max() < 1e-3
    assert torch.allclose(normed, rounded.layers[1].norm_before(found), atol=1e-5)


def test_attention_rounds_what_softmax_makes_of_scores() -> None:
    """As kernels of halves do, before the sum over values; the scores and the sum stay fp32."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 30, 64, generator=generator) for _ in range(3))
    bias = torch.zeros(2, 1, 30, 30)
    split = [one.unflatten(-1, (4, -1)).transpose(1, 2) for one in (query, key, value)]
    exact = torch.nn.functional.scaled_dot_product_attention(*split, scale=1.0).transpose(1, 2).flatten(2)

    found = cuda.attend(query, key, value, bias, 4)

    assert 0 < (found - exact).abs().max() < 2**-10


def test_tf32_keeps_ten_bits_of_a_mantissa() -> None:
    """Rounded to the nearest, also below zero; numbers that have no more stay, such as every uint8."""
    assert torch.equal(cuda.to_tf32(torch.arange(256.0)), torch.arange(256.0))
    assert torch.equal(
        cuda.to_tf32(torch.tensor([1 + 2**-11, -1 - 3 * 2**-11])), torch.tensor([1 + 2**-10, -1 - 2**-9])
    )
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert ((cuda.to_tf32(numbers) - numbers).abs() <= numbers.abs() * 2**-11).all()


def test_patches_in_two_parts_are_those_of_one(small: Exported) -> None:
    """Both parts are TF32's, and nothing of the weights is lost."""
    exact = small.model.visual_embedding
    parts = cuda.PatchesInTf32(exact)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (2, 6, small.loaded.config.spec.patch_values), generator=generator).byte()
    ids = torch.arange(1, 7).expand(2, -1)

    with torch.no_grad():
        found, expected = parts(patches, ids), exact(patches, ids)

    for part in (parts.large, parts.small):
        assert torch.equal(cuda.to_tf32(part), part)
    assert (parts.large + parts.small - exact.weight).abs().max() <= exact.weight.abs().max() * 2**-21
    assert torch.allclose(found, expected, atol=1e-5)
