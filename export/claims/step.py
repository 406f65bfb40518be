"""One graph of one stage, and the shapes that follow from a picture's size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx
from torch import nn

from export.claims import resnet
from export.claims.resnet import ResNet, ResNetConfig
from export.claims.sizes import Sizes

OPSET = 20  # of graphs without attention: in opset 22 onnxruntime lacks RoiAlign on CPUs, MaxPool and GRU on GPUs
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One graph of one stage. Steps that name the same graph share its file, and its weights."""

    stage: str
    graph: str
    build: Callable[[], nn.Module | onnx.ModelProto]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    free: dict[str, tuple[int, ...]] = field(default_factory=dict)  # axes that vary among designs, by input
    opset: int = OPSET


def cells(image_px: tuple[int, int], stride: int) -> tuple[int, int]:
    """Count the rows and columns of a feature map: every halving rounds up."""
    return math.ceil(image_px[0] / stride), math.ceil(image_px[1] / stride)


def pixels(image_px: tuple[int, int]) -> Shape:
    return (1, 3, *image_px)


def feature_map(sizes: Sizes, image_px: tuple[int, int], stage: str) -> Shape:
    """Size the feature map of a stage."""
    return (1, resnet.channels(sizes, stage), *cells(image_px, resnet.STRIDE[stage]))


def whole_backbone(name: str, config: ResNetConfig, sizes: Sizes, image_px: tuple[int, int]) -> Step:
    return Step(
        stage="visual_backbone",
        graph=f"{name}_res5",
        build=lambda: ResNet(config, sizes),
        inputs={"pixel_values": pixels(image_px)},
        outputs=("res5",),
    )
