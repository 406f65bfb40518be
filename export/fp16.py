"""ViLT in half precision, as one graph of standard operators for a GPU; its inputs and outputs are those of fp32.

onnxruntime's CUDA provider runs another, made from this one: export/cuda.py.

The layers' matrix products run in half precision. What that would spoil stays fp32:
    - the product with uint8 patches: its weights, divided by 255, are so small that halves represent them badly, and
      most of the product is cancelled by the folded mean.
    - the residual stream and its norms: it grows from layer to layer, and each layer's addition would lose its last
      bits.
    - attention, between casts: kernels that are given halves may round scores before softmax, whatever
      `softmax_precision` says.
    - pooler and heads: large logits would come in steps, and ranks would tie.

What all tokens have in common is folded into biases, and the norms' gains into the products after them
(`fold_constants`). This is exact and costs nothing at run time.

The graph cannot be judged on a CPU: there onnxruntime computes its products in fp32 and removes the casts between
them. `rounded` rounds as a GPU does.
"""

import copy

import torch
from torch import Tensor, nn

from export.graph import Fused, KeyValue, Layer


def half(model: Fused) -> Fused:
    """Copy a model, with the products of its layers in half precision."""
    model = copy.deepcopy(model)
    for layer in model.interaction.layers:
        fold_constants(layer)
        layer.key_value = Stacked(layer.key_value)
        layer.query, layer.expand = Halved(layer.query), Halved(layer.expand)
        layer.key_value.half()
        for norm in ("norm_before", "norm_after"):
            setattr(layer, norm, nn.Sequential(getattr(layer, norm), To(torch.half)))
        for product in ("output", "contract"):  # onto the residual stream, which is fp32
            setattr(layer, product, OntoStream(getattr(layer, product)))
    return model


class Halved(nn.Linear):
    """A product of halves; `exact_bias` is its bias before that was rounded."""

    def __init__(self, product: nn.Linear) -> None:
        super().__init__(product.in_features, product.out_features, dtype=torch.half)
        self.load_state_dict(product.state_dict())
        self.requires_grad_(requires_grad=False)
        self.exact_bias = product.bias.detach().clone()


class OntoStream(nn.Sequential):
    """A product of halves whose result is fp32; `bias` is its bias before that was rounded."""

    def __init__(self, product: nn.Linear) -> None:
        exact = product.bias.detach().clone()
        super().__init__(product.half(), To(torch.float))
        self.bias = exact


class Stacked(nn.Module):
    """Keys and values from one product: for few rows a GPU is faster with one large product than with two."""

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


def rounded(model: Fused) -> Fused:
    """Copy a half precision model so that it computes in fp32 and rounds the inputs and outputs of the half products.

    A GPU that sums in fp32 and stores halves does the same. So does torch on a CPU with halves, but slowly.
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
    """Remove from the activations what is the same for every token: it would cost the rest its last bits.

    The norms' gains and biases go into the products after them. The bias that keys would get from that is dropped, and
    that of values goes into the output's, as in export/graph.py.
    """
    before, after, output = layer.norm_before, layer.norm_after, layer.output
    key, value = layer.key_value.key, layer.key_value.value
    # Biases first, before the gains change the weights.
    output.bias += (output.weight.double() @ (value.weight.double() @ before.bias.double())).float()
    for norm, product in ((before, layer.query), (after, layer.expand)):
        product.bias += (product.weight.double() @ norm.bias.double()).float()
    for norm, product in ((before, layer.query), (before, key), (before, value), (after, layer.expand)):
        product.weight *= norm.weight
    for norm in (before, after):
        norm.weight.fill_(1.0)
        norm.bias.zero_()
