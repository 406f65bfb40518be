"""ViLT in half precision in operators of our own, whose kernels are in server/gpu/kernels.cu.

In place of export/cuda.py's graph, if asked for. A layer's products are standard. Between them it has
    - attention over what one product gives for queries, keys and values. Scores and sums are fp32; what softmax makes
      of the scores is rounded to half.
    - twice, a product's bias, the residual addition and the next norm, in fp32.
    - a product's bias and GELU, in fp32.
In the file each is a function of standard operators, which runs where the kernels are not registered: on a CPU.
"""

from typing import Any

import onnx.parser
import torch
from torch import Tensor, nn

from export import cuda, fp16
from export.graph import Fused, Layer

HEAD_SIZES, LARGEST_HIDDEN = (32, 64), 1024  # of the kernels
SIZES = "hidden_size has to be at most 1,024, in heads of 32 or 64, and intermediate_size a multiple of 8"
EVERY = 2**62  # query
MASKED = -1e30  # as in the kernel

TEXTS = """
<domain: "vilt", opset_import: ["": 23]>
Attention <heads, queries> (products, bias, mask) => (attended) {
    exact = Cast <to = 1> (products)
    query, key, value = Split <axis = -1, num_outputs = 3> (exact)
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    count = Constant <value_int: int = @queries> ()
    end = Reshape (count, one)
    first = Slice (query, zero, end, one)
    shifted = Add (first, bias)
    open = Constant <value = float {0.0}> ()
    masked = Constant <value = float {-1e30}> ()
    added = Where (mask, open, masked)
    middle = Constant <value_ints = [1, 2]> ()
    row = Unsqueeze (added, middle)
    rows = Shape <start = 1, end = 2> (first)
    shape = Concat <axis = 0> (one, one, rows, one)
    table = Expand (row, shape)
    found = Attention <q_num_heads: int = @heads, kv_num_heads: int = @heads, scale = 1.0> (shifted, key, value, table)
    attended = Cast <to = 10> (found)
}

<domain: "vilt", opset_import: ["": 23]>
AddNorm <epsilon> (product, stream, bias) => (added, normed) {
    exact = Cast <to = 1> (product)
    biased = Add (exact, bias)
    added = Add (biased, stream)
    shape = Shape (bias)
    gain = ConstantOfShape <value = float[1] {1.0}> (shape)
    norm = LayerNormalization <axis = -1, epsilon: float = @epsilon> (added, gain)
    normed = Cast <to = 10> (norm)
}

<domain: "vilt", opset_import: ["": 23]>
BiasGelu (product, bias) => (found) {
    exact = Cast <to = 1> (product)
    biased = Add (exact, bias)
    active = Gelu (biased)
    found = Cast <to = 10> (active)
}
"""
FUNCTIONS = [onnx.parser.parse_function(text) for text in TEXTS.strip().split("\n\n")]


def can_run(model: Fused) -> bool:
    """Whether the kernels can run a model of these sizes."""
    intermediate, hidden = model.interaction.layers[0].expand.weight.shape
    size = hidden // model.interaction.layers[0].heads
    return size in HEAD_SIZES and hidden <= LARGEST_HIDDEN and intermediate % 8 == 0


def fused(half: Fused) -> Fused:
    """Build a model of half precision (`fp16.half`) of these operators."""
    parts = half.text_embedding, cuda.PatchesInTf32(half.visual_embedding), KernelInteraction(half.interaction)
    return Fused(*parts).eval()


def rounded(model: Fused) -> Fused:
    """Copy such a model so that it computes in fp32 and rounds as the kernels do; products of fp32 read TF32."""
    return cuda.round_heads(fp16.rounded(model))


class Attention(nn.Module):
    """Attention after one product; queries are scaled already, and only they have a bias."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.heads, self.queries = layer.heads, 1 if layer.pooled_only else EVERY
        weight = torch.cat([layer.query.weight, layer.key_value.both[0].weight])
        self.products = cuda.without_bias(weight)
        self.bias = nn.Parameter(layer.query.exact_bias, requires_grad=False)
        self.leave = fp16.To(torch.half)

    def forward(self, normed: Tensor, mask: Tensor) -> Tensor:
        """Shapes: normed (B, N, hidden) half, mask (B, N) bool -> (B, N or 1, hidden) half."""
        products = self.products(normed)
        if torch.onnx.is_in_onnx_export():
            shape = [*products.shape[:1], 1 if self.queries == 1 else products.shape[1], len(self.bias)]
            attributes = {"heads": self.heads, "queries": self.queries}
            return _symbolic("Attention", [products, self.bias, mask], attributes, [products.dtype], [shape])[0]
        query, key, value = products.float().chunk(3, dim=-1)
        queries = cuda.to_half(query[:, : self.queries] + self.bias)
        added = torch.where(mask, 0.0, MASKED)[:, None, None, :]
        return self.leave(cuda.attend(queries, key, value, added, self.heads))


class AddNorm(nn.Module):
    """What follows a product: its bias, the residual stream, and the norm of the sum; gains are folded already."""

    def __init__(self, bias: Tensor, epsilon: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.epsilon = epsilon
        self.leave = fp16.To(torch.half)

    def forward(self, product: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: product (B, N, hidden) half, stream (B, N, hidden) fp32 -> the new stream, and its norm in half."""
        if torch.onnx.is_in_onnx_export():
            inputs, kinds = [product, stream, self.bias], [stream.dtype, product.dtype]
            added, normed = _symbolic("AddNorm", inputs, {"epsilon": self.epsilon}, kinds, [stream.shape] * 2)
            return added, normed
        added = product.float() + self.bias + stream
        return added, self.leave(nn.functional.layer_norm(added, self.bias.shape, eps=self.epsilon))


class BiasGelu(nn.Module):
    """What follows the expanding product: its bias, and GELU."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.leave = fp16.To(torch.half)

    def forward(self, product: Tensor) -> Tensor:
        """Shapes: (B, N, intermediate) half -> the same."""
        if torch.onnx.is_in_onnx_export():
            return _symbolic("BiasGelu", [product, self.bias], {}, [product.dtype], [product.shape])[0]
        return self.leave(nn.functional.gelu(product.float() + self.bias))


class KernelLayer(nn.Module):
    """A transformer layer, from one norm to the next."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        epsilon = layer.norm_before[0].eps
        self.pooled_only = layer.pooled_only
        self.attention = Attention(layer)
        self.output = cuda.without_bias(layer.output[0].weight)
        self.after_attention = AddNorm(layer.output.bias, epsilon)
        self.expand = cuda.without_bias(layer.expand.weight)
        self.after_expand = BiasGelu(layer.expand.exact_bias)
        self.contract = cuda.without_bias(layer.contract[0].weight)
        self.after_contract = AddNorm(layer.contract.bias, epsilon)

    def forward(self, stream: Tensor, normed: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: stream (B, N, hidden) fp32, normed the same in half, mask (B, N) bool -> both (B, N or 1, hidden)."""
        attended = self.attention(normed, mask)
        if self.pooled_only:
            stream = stream[:, :1]
        stream, normed = self.after_attention(self.output(attended), stream)
        return self.after_contract(self.contract(self.after_expand(self.expand(normed))), stream)


class KernelInteraction(cuda.CudaInteraction):
    """The same of these layers, whose kernels read the mask itself."""

    layer = KernelLayer

    def masking(self, mask: Tensor) -> Tensor:
        """Shapes: (B, N) bool -> the same."""
        return mask


def _symbolic(
    name: str, inputs: list[Tensor], attributes: dict[str, Any], kinds: list[torch.dtype], shapes: list[Any]
) -> Any:
    return torch.onnx.ops.symbolic_multi_out(
        f"vilt::{name}", inputs, attributes, dtypes=kinds, shapes=shapes, version=1
    )
