"""ViLT in half precision, as one graph for a GPU; its tensors and its answers are those of fp32.

The layers' products are half precision. What that would spoil stays fp32:
    - the product with uint8 patches: their weights, divided by 255, lie where half precision thins out, and the product
      is nearly cancelled by the folded mean.
    - the residual stream and its norms: it grows from layer to layer, and what a layer adds loses its last bits.
    - attention, between casts: of halves, kernels may round scores before softmax, whatever `softmax_precision` says.
    - pooler and heads: logits of some size would come in steps, and ranks would tie.

What all tokens share is folded into biases, norms' gains into the products after them (`fold_constants`). It is exact
and costs nothing at run time.

A CPU is no judge of the graph: onnxruntime computes its products in fp32 there and removes the casts between them. What
a GPU rounds, `rounded` rounds.
"""

import copy

import torch
from torch import Tensor, nn

from export.graph import Fused, KeyValue, Layer, added_to_scores


class Half(nn.Module):
    """A model's three parts as one graph, in half precision but for what has to be exact."""

    bias_dtype = torch.float  # of what is added to scores: attention's own

    def __init__(self, model: Fused) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        self.text_embedding = model.text_embedding
        self.visual_embedding = model.visual_embedding
        self.interaction = model.interaction
        for layer in self.interaction.layers:
            fold_constants(layer)
            layer.key_value = Stacked(layer.key_value)
            for product in ("query", "key_value", "expand"):
                getattr(layer, product).half()
            for norm in ("norm_before", "norm_after"):
                setattr(layer, norm, nn.Sequential(getattr(layer, norm), To(torch.half)))
            for product in ("output", "contract"):  # onto the residual stream, which is fp32
                setattr(layer, product, nn.Sequential(getattr(layer, product).half(), To(torch.float)))

    def forward(self, input_ids: Tensor, patches: Tensor, position_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: the tensors of DESIGN's contract -> logits of each head, fp32."""
        text, image = self.text_embedding(input_ids), self.visual_embedding(patches, position_ids)
        hidden = torch.cat([text, image], dim=1)  # (B, N, hidden)
        attention_bias = added_to_scores(mask, self.bias_dtype)
        for layer in self.interaction.layers:
            hidden = layer(hidden, attention_bias)
        pooled = torch.tanh(self.interaction.pooler(self.interaction.norm(hidden[:, 0])))
        return tuple(head(pooled) for head in self.interaction.heads.values())


class Stacked(nn.Module):
    """Keys and values from one product: of a GPU it is expected, not measured, that it does few large ones sooner."""

    def __init__(self, pair: KeyValue) -> None:
        super().__init__()
        weight = torch.cat([pair.key.weight, pair.value.weight])
        product = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        product.weight = nn.Parameter(weight, requires_grad=False)
        self.both = nn.Sequential(product, To(torch.float))  # cast before they part: one node instead of two

    def forward(self, normed: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (B, N, hidden) -> twice the same, fp32."""
        return self.both(normed).chunk(2, dim=-1)


class To(nn.Module):
    """A cast, as a module."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, tensor: Tensor) -> Tensor:
        """Shapes: any -> the same."""
        return tensor.to(self.dtype)


def rounded(model: Half) -> Half:
    """Copy a model so that it computes in fp32, and rounds what goes into and comes out of every product of halves.

    This is what a GPU does that sums in fp32 and stores halves. torch's own halves on a CPU are the same, but slow.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, To):
            module.dtype = torch.float
        elif isinstance(module, nn.Linear) and module.weight.dtype == torch.half:
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(one.half().float() for one in inputs))
            module.register_forward_hook(lambda _, __, output: output.half().float())
    return model


@torch.no_grad()
def fold_constants(layer: Layer) -> None:
    """Take out of the activations what is the same for every token, for it costs the rest its last bits.

    The norms' gain and bias go into the products after them. Keys and values would have a bias from that: the key's is
    dropped, the value's goes into the output's, as in export/graph.py.
    """
    before, after, output = layer.norm_before, layer.norm_after, layer.output
    key, value = layer.key_value.key, layer.key_value.value
    # Biases first: a gain is of what the norm multiplies, not of what it adds.
    output.bias += (output.weight.double() @ (value.weight.double() @ before.bias.double())).float()
    for norm, product in ((before, layer.query), (after, layer.expand)):
        product.bias += (product.weight.double() @ norm.bias.double()).float()
    for norm, product in ((before, layer.query), (before, key), (before, value), (after, layer.expand)):
        product.weight *= norm.weight
    for norm in (before, after):
        norm.weight.fill_(1.0)
        norm.bias.zero_()
