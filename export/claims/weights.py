"""Draw random weights that keep activations ordinary: zeros, denormals and infinities would change the timing."""

import torch
from torch import nn

from export.claims.resnet import Bottleneck

BERT_STD = 0.02
RESIDUAL_SCALE = 0.25  # of a block's last convolution: 50 blocks then grow the variance some 20 times, not 2**50


def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter from a normal distribution: He's for convolutions, BERT's for everything else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            is_convolution = parameter.ndim == 4
            std = (2 / parameter[0].numel()) ** 0.5 if is_convolution else BERT_STD
            parameter.normal_(1.0 if is_scale else 0.0, std, generator=generator)
        for child in module.modules():
            if isinstance(child, Bottleneck):
                child.expand.weight *= RESIDUAL_SCALE
    return module.eval().requires_grad_(requires_grad=False)
