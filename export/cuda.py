"""ViLT in half precision in onnxruntime's own operators, which its CUDA provider runs in two thirds as many kernels.

Beside the graph of standard operators (export/fp16.py), which TensorRT reads:
    - attention and its three products are one node. Its kernels (cuDNN's, among others) take halves, keep the scores in
      fp32, and round what softmax makes of them.
    - a product's bias, the residual addition and the next norm are one node, in fp32.
    - the patches' product is two in TF32: of its weights rounded to that, and of what the rounding left over. uint8
      patches are exact in TF32, so tensor cores lose nothing; one product of rounded weights would double the largest
      error of a score on noise.

Sources: onnxruntime, docs/ContribOperators.md: Attention, SkipLayerNormalization.
"""

import torch
from torch import Tensor, nn

from export import fp16, graph
from export.graph import Fused, Interaction, Layer, VisualEmbedding

FUNCTIONS = ()  # onnxruntime knows what its operators are
TF32_DROPPED = 13  # bits of fp32's mantissa


def fused(half: Fused) -> Fused:
    """Build a model of half precision (`fp16.half`) of these operators."""
    parts = half.text_embedding, PatchesInTf32(half.visual_embedding), CudaInteraction(half.interaction)
    return Fused(*parts).eval()


def rounded(model: Fused) -> Fused:
    """Copy such a model so that it computes in fp32 and rounds as onnxruntime's CUDA kernels do.

    They round a product before its bias is added and after, and what GELU multiplies with; products of fp32 read TF32.
    """
    model = fp16.rounded(model)
    for layer in model.interaction.layers:
        layer.gelu = RoundedGelu()
        layer.expand = RoundedProduct(layer.expand)
        name = "query" if layer.pooled_only else "products"
        setattr(layer.attention, name, RoundedProduct(getattr(layer.attention, name)))
    return round_heads(model)


def round_heads(model: Fused) -> Fused:
    """Let the pooler and the heads read TF32."""
    for module in (model.interaction.pooler, *model.interaction.heads.modules()):
        if isinstance(module, nn.Linear):
            module.weight.data = to_tf32(module.weight)
            module.register_forward_pre_hook(lambda _, inputs: tuple(map(to_tf32, inputs)))
    return model


class PatchesInTf32(nn.Module):
    """As export.graph.VisualEmbedding, with weights in two parts that TF32 can represent."""

    def __init__(self, exact: VisualEmbedding) -> None:
        super().__init__()
        large = to_tf32(exact.weight.detach())
        small = to_tf32(exact.weight.detach() - large)
        self.large, self.small = (nn.Parameter(part, requires_grad=False) for part in (large, small))
        self.positions, self.cls_token = exact.positions, exact.cls_token

    def forward(self, patches: Tensor, position_ids: Tensor) -> Tensor:
        """Shapes: patches (B, P, 3072) uint8, position_ids (B, P) int64 -> (B, 1 + P, hidden)."""
        values = patches.float()
        positions = nn.functional.embedding(position_ids, self.positions)
        embedded = values @ self.large + (values @ self.small + positions)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), embedded], dim=1)


class RoundedProduct(nn.Module):
    """A product of halves with a bias, in fp32."""

    def __init__(self, product: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = product.weight, product.bias

    def forward(self, tensor: Tensor) -> Tensor:
        """Shapes: (B, N, in) -> (B, N, out)."""
        return to_half(to_half(nn.functional.linear(to_half(tensor), self.weight)) + self.bias)


class RoundedGelu(nn.Module):
    """GELU of halves, in fp32; what reads it rounds it."""

    def forward(self, tensor: Tensor) -> Tensor:
        """Shapes: any -> the same."""
        return tensor * to_half(torch.special.ndtr(tensor))


class Attention(nn.Module):
    """Attention with its products; queries are scaled already, and only they have a bias."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        query, key_value = layer.query, layer.key_value.both[0]
        self.heads = layer.heads
        weight = torch.cat([query.weight, key_value.weight])
        self.products = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        self.products.weight.data = weight
        self.products.bias.data = torch.cat([query.bias, query.bias.new_zeros(len(key_value.weight))])
        self.products.requires_grad_(requires_grad=False)

    def forward(self, normed: Tensor, attention_bias: Tensor) -> Tensor:
        """Shapes: normed (B, N, hidden), attention_bias (B, 1, N, N) -> (B, N, hidden)."""
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                "com.microsoft::Attention",
                [normed, self.products.weight.T, self.products.bias, None, None, attention_bias],
                {"num_heads": self.heads, "scale": 1.0},
                dtype=normed.dtype,
                shape=normed.shape,
                version=1,
            )
        return attend(*self.products(normed).chunk(3, dim=-1), attention_bias, self.heads)


def attend(query: Tensor, key: Tensor, value: Tensor, attention_bias: Tensor, heads: int) -> Tensor:
    """Attend as a fused kernel of halves does: scores and sums in fp32, exponentials rounded.

    Shapes: query (B, N or 1, hidden), key and value (B, N, hidden), attention_bias (B, 1, N, N) -> as query
    """
    split = (one.float().unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    queries, keys, values = split
    scores = queries @ keys.transpose(2, 3) + attention_bias[:, :, : queries.shape[2]]
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    attended = to_half(exponentials) @ values / exponentials.sum(dim=-1, keepdim=True)
    return attended.transpose(1, 2).flatten(2).to(query.dtype)


class AddNorm(nn.Module):
    """What follows a product: its bias, the residual stream, and the norm of the sum; gains are folded already."""

    def __init__(self, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.norm = nn.LayerNorm(len(bias), eps=eps).requires_grad_(requires_grad=False)
        self.enter, self.leave = fp16.To(torch.float), fp16.To(torch.half)

    def forward(self, product: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: product (B, N, hidden) half, stream (B, N, hidden) fp32 -> the new stream, and its norm in half."""
        product = self.enter(product)
        if torch.onnx.is_in_onnx_export():
            normed, _, _, stream = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::SkipLayerNormalization",
                [product, stream, self.norm.weight, self.norm.bias, self.bias],
                {"epsilon": self.norm.eps},
                dtypes=[stream.dtype] * 4,
                shapes=[stream.shape, [*stream.shape[:2], 1], [*stream.shape[:2], 1], stream.shape],
                version=1,
            )
        else:
            stream = product + stream + self.bias
            normed = self.norm(stream)
        return stream, self.leave(normed)


class PooledAttention(nn.Module):
    """Attention of the last layer's single query: ONNX's own node, in fp32, as in export/fp16.py."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.heads, self.query, self.key_value = layer.heads, layer.query, layer.key_value

    def forward(self, normed: Tensor, attention_bias: Tensor) -> Tensor:
        """Shapes: normed (B, N, hidden), attention_bias (B, 1, N, N) -> (B, 1, hidden)."""
        queries, first = self.query(normed[:, :1]), attention_bias[:, :, :1].float()
        return graph.attend(queries, *self.key_value(normed), first, self.heads)


class CudaLayer(nn.Module):
    """A transformer layer, from one norm to the next."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        eps = layer.norm_before[0].eps
        self.pooled_only = layer.pooled_only
        self.attention = PooledAttention(layer) if layer.pooled_only else Attention(layer)
        self.output = without_bias(layer.output[0].weight)
        self.after_attention = AddNorm(layer.output.bias, eps)
        self.expand, self.gelu = layer.expand, nn.GELU()
        self.contract = without_bias(layer.contract[0].weight)
        self.after_contract = AddNorm(layer.contract.bias, eps)

    def forward(self, stream: Tensor, normed: Tensor, attention_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: stream and normed (B, N, hidden), attention_bias (B, 1, N, N) -> both (B, N or 1, hidden)."""
        attended = self.attention(normed, attention_bias)
        if self.pooled_only:
            stream = stream[:, :1]
        stream, normed = self.after_attention(self.output(attended), stream)
        return self.after_contract(self.contract(self.gelu(self.expand(normed))), stream)


class CudaInteraction(nn.Module):
    """As export.graph.Interaction."""

    layer: type[nn.Module] = CudaLayer

    def __init__(self, half: Interaction) -> None:
        super().__init__()
        self.norm_before = half.layers[0].norm_before
        self.layers = nn.ModuleList(map(self.layer, half.layers))
        self.norm, self.pooler, self.heads = half.norm, half.pooler, half.heads

    def forward(self, text: Tensor, image: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: text (B, L, hidden), image (B, 1 + P, hidden), mask (B, L + 1 + P) bool -> logits of each head."""
        masking = self.masking(mask)
        stream = torch.cat([text, image], dim=1)  # (B, N, hidden)
        normed = self.norm_before(stream)
        for layer in self.layers:
            stream, normed = layer(stream, normed, masking)
        pooled = torch.tanh(self.pooler(self.norm(stream[:, 0])))
        return tuple(head(pooled) for head in self.heads.values())

    def masking(self, mask: Tensor) -> Tensor:
        """Make what layers take of the mask: -inf to add to scores, which is safe, as no row has every key masked."""
        return graph.added_to_scores(mask, torch.half)


def to_half(tensor: Tensor) -> Tensor:
    """Round to half, in fp32."""
    return tensor.half().float()


def without_bias(weight: Tensor) -> nn.Linear:
    """Make a product of a weight."""
    bare = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    bare.weight = nn.Parameter(weight, requires_grad=False)
    return bare


def to_tf32(tensor: Tensor) -> Tensor:
    """Round to the 10 bits of mantissa that tensor cores read of an fp32 number."""
    bits = tensor.contiguous().view(torch.int32)
    half_of_last = 1 << (TF32_DROPPED - 1)
    return ((bits + half_of_last) >> TF32_DROPPED << TF32_DROPPED).view(torch.float)
