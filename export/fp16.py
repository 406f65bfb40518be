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

from export.graph import Fused, Layer, added_to_scores


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

    The norms' gain and bias go into the products after it. Of a key's nothing then need be left, as softmax does not
    see what all keys share; a value's passes through attention, whose weights sum to 1, into the output's bias.
    """
    before, after = layer.norm_before, layer.norm_after
    for norm, product in ((before, layer.query), (before, layer.key_value), (after, layer.expand)):
        product.bias += (product.weight.double() @ norm.bias.double()).float()
        product.weight *= norm.weight
    for norm in (before, after):
        norm.weight.fill_(1.0)
        norm.bias.zero_()
    hidden = layer.query.in_features
    value = layer.key_value.bias[hidden:].double()
    layer.output.bias += (layer.output.weight.double() @ value).float()
    layer.key_value.bias = None
