"""ViLT in half precision, as one graph for a GPU; its tensors and its answers are those of fp32.

What half precision would spoil stays fp32:
    - the product with uint8 patches: their weights, divided by 255, lie where half precision thins out, and the product
      is nearly cancelled by the folded mean.
    - layer norms' mean and variance, and softmax, by what the nodes ask for (`stash_type`, `softmax_precision`).
    - the heads: logits of some size would come in steps, and ranks would tie.

What all tokens share is folded into biases (`fold_constants`), which is exact and halves what half precision costs.

Attention is one node of ONNX's own (opset 23), on (B, N, hidden) tensors: onnxruntime's CUDA kernels take them without
a transpose and TensorRT knows it. The mask goes in as it is, one row for all queries. Fusing the eight nodes after the
export gets it wrong: it takes the mask for a length, as if padding came last, or drops it.
"""

import copy

import torch
from torch import Tensor, nn

from export.graph import Fused, Layer

OPSET = 23  # the first with Attention
FLOAT = 1  # onnx.TensorProto.FLOAT


class Half(nn.Module):
    """A model's three parts as one graph, in half precision but for what has to be exact."""

    def __init__(self, model: Fused) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        self.text_embedding = model.text_embedding.half()
        self.visual_embedding = model.visual_embedding
        self.interaction = model.interaction
        for layer in self.interaction.layers:
            fold_constants(layer)
            layer.attend = attend_in_one_node
        for part in (self.interaction.layers, self.interaction.norm, self.interaction.pooler):
            part.half()

    def forward(self, input_ids: Tensor, patches: Tensor, position_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: the tensors of DESIGN's contract -> logits of each head, fp32."""
        text, image = self.text_embedding(input_ids), self.visual_embedding(patches, position_ids).half()
        hidden = torch.cat([text, image], dim=1)  # (B, N, hidden)
        length = mask.shape[1]
        attended = mask[:, None, None, :].expand(-1, 1, length, length)  # (B, 1, N, N): kernels want every query's row
        for layer in self.interaction.layers:
            hidden = layer(hidden, attended)
        pooled = torch.tanh(self.interaction.pooler(self.interaction.norm(hidden[:, 0]))).float()
        return tuple(head(pooled) for head in self.interaction.heads.values())


@torch.no_grad()
def fold_constants(layer: Layer) -> None:
    """Take out of the activations what is the same for every token, for it costs the rest its last bits.

    The norms' bias goes into the products after it. Of a key's nothing then need be left, as softmax does not see what
    all keys share; a value's passes through attention, whose weights sum to 1, into the output's bias.
    """
    before, after = layer.norm_before, layer.norm_after
    for norm, product in ((before, layer.query), (before, layer.key_value), (after, layer.expand)):
        product.bias += (product.weight.double() @ norm.bias.double()).float()
    before.bias.zero_()
    after.bias.zero_()
    hidden = layer.query.in_features
    value = layer.key_value.bias[hidden:].double()
    layer.output.bias += (layer.output.weight.double() @ value).float()
    layer.key_value.bias.zero_()


def attend_in_one_node(query: Tensor, key: Tensor, value: Tensor, attended: Tensor, heads: int) -> Tensor:
    """Attend as export.graph.attend does, in one ONNX node.

    Shapes: query (B, N or 1, hidden), key and value (B, N, hidden), attended (B, 1, N, N) bool -> as query
    """
    return torch.onnx.ops.attention(
        query,
        key,
        value,
        attended[:, :, : query.shape[1]],
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1.0,
        softmax_precision=FLOAT,
    )[0]
