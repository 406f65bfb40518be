"""ResNet and ResNeXt, cut where detectors cut them.

Source: He et al. 2016; Xie et al. 2017; detectron2 modeling/backbone/resnet.py.
Deviates: a frozen batch norm is a constant scale and shift, folded into its convolution, as engines do on loading.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.claims.sizes import Sizes

RES2_CHANNELS = 256
STRIDE = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """Blocks of res2 to res5, and the bottleneck's groups; ResNet has one of 64 channels."""

    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = True  # as Caffe's ResNets and detectron2's default; ResNeXt has it in the 3x3


RESNET50 = ResNetConfig(blocks=(3, 4, 6, 3))
RESNET101 = ResNetConfig(blocks=(3, 4, 23, 3))
RESNET152 = ResNetConfig(blocks=(3, 8, 36, 3))
# 32x4d is the ResNeXt-152 of 60 million parameters, which ViLT's Table 7 lists; 32x8d has twice as many.
RESNEXT152 = ResNetConfig(blocks=(3, 8, 36, 3), groups=32, width_per_group=4, stride_in_1x1=False)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut."""

    def __init__(
        self, config: ResNetConfig, *, groups: int, in_channels: int, channels: int, out_channels: int, stride: int
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.reduce = nn.Conv2d(in_channels, channels, 1, stride=first)
        self.convolve = nn.Conv2d(channels, channels, 3, stride=second, padding=1, groups=groups)
        self.expand = nn.Conv2d(channels, out_channels, 1)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        branch = torch.relu(self.convolve(torch.relu(self.reduce(features))))
        return torch.relu(self.shortcut(features) + self.expand(branch))


class ResNet(nn.Module):
    """Stem to res4 (what a C4 detector calls its backbone) or to res5; returns the last or, for an FPN, every stage."""

    def __init__(self, config: ResNetConfig, sizes: Sizes, last: str = "res5", *, every_stage: bool = False) -> None:
        super().__init__()
        self.every_stage = every_stage
        self.stem = nn.Conv2d(3, sizes.width(64), 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        names = list(STRIDE)
        self.stages = nn.ModuleList(stage(config, sizes, name) for name in names[: names.index(last) + 1])

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Shapes: (B, 3, H, W) -> (B, C, H / stride, W / stride) of the last stage, or a tuple of all."""
        features = self.pool(torch.relu(self.stem(pixel_values)))  # (B, 64, H / 4, W / 4)
        found = []
        for blocks in self.stages:
            features = blocks(features)
            found.append(features)
        return tuple(found) if self.every_stage else features


def stage(config: ResNetConfig, sizes: Sizes, name: str) -> nn.Sequential:
    """Build res2, res3, res4 or res5, which a C4 detector applies to each region."""
    index = list(STRIDE).index(name)
    out_channels = channels(sizes, name)
    bottleneck = sizes.width(config.groups * config.width_per_group * 2**index)
    groups = max(1, config.groups // sizes.divisor)
    in_channels = sizes.width(64) if index == 0 else out_channels // 2
    blocks = []
    for block in range(sizes.depth(config.blocks[index])):
        stride = 2 if index > 0 and block == 0 else 1
        blocks.append(
            Bottleneck(
                config,
                groups=groups,
                in_channels=in_channels,
                channels=bottleneck,
                out_channels=out_channels,
                stride=stride,
            )
        )
        in_channels = out_channels
    return nn.Sequential(*blocks)


def channels(sizes: Sizes, name: str) -> int:
    """Count the channels that a stage gives out: 256 for res2, 2,048 for res5."""
    return sizes.width(RES2_CHANNELS * STRIDE[name] // STRIDE["res2"])
