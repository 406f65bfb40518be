"""The parts of Faster R-CNN that turn a picture into region features: FPN, region proposal, RoI heads.

Source: Ren et al. 2015; Lin et al. 2017; detectron2 at its defaults with the Visual Genome settings of
MILVLG/bottom-up-attention.pytorch configs/d2/base-d2.yaml (the code that ViLT's authors timed): 1,600 classes,
400 attributes, 6,000 proposals before and 1,000 after their NMS.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from export.claims import resnet
from export.claims.resnet import ResNet, ResNetConfig
from export.claims.sizes import Sizes

CLASSES, ATTRIBUTES = 1600, 400
CANDIDATES, PROPOSALS = 6000, 1000  # PRE_NMS_TOPK_TEST, POST_NMS_TOPK_TEST
ASPECT_RATIOS = (0.5, 1.0, 2.0)
C4_ANCHORS_PX = (32, 64, 128, 256, 512)
LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}  # strides
FPN_CHANNELS = 256
MLP_CHANNELS = 1024
SAMPLING_RATIO = 2
MAX_LOG_SCALE = math.log(1000 / 16)  # detectron2's bound on how much a box may grow


class FpnBackbone(nn.Module):
    """ResNet with a feature pyramid on top; P6 is every second cell of P5."""

    def __init__(self, config: ResNetConfig, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width(FPN_CHANNELS)
        self.bottom_up = ResNet(config, sizes, every_stage=True)
        self.lateral = nn.ModuleList(nn.Conv2d(resnet.channels(sizes, name), width, 1) for name in resnet.STRIDE)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in resnet.STRIDE)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (1, 3, H, W) -> p2 to p6, each (1, 256, H / stride, W / stride)."""
        stages = cast("tuple[Tensor, ...]", self.bottom_up(pixel_values))
        merged = [convolution(features) for convolution, features in zip(self.lateral, stages, strict=True)]
        for index in (2, 1, 0):
            upper = nn.functional.interpolate(merged[index + 1], size=merged[index].shape[2:], mode="nearest")
            merged[index] = merged[index] + upper
        levels = [convolution(features) for convolution, features in zip(self.output, merged, strict=True)]
        return (*levels, levels[-1][:, :, ::2, ::2])


class RegionProposal(nn.Module):
    """Score and refine the anchors of every cell, keep the best of each level."""

    def __init__(
        self, channels: int, cells: dict[int, tuple[int, int]], anchors_px: dict[int, tuple[int, ...]]
    ) -> None:
        """Take each level's stride with its rows and columns of cells, and its anchors' sizes."""
        super().__init__()
        per_cell = len(ASPECT_RATIOS) * len(next(iter(anchors_px.values())))
        self.convolve = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * per_cell, 1)
        for index, (stride, grid) in enumerate(cells.items()):
            self.register_buffer(f"anchors{index}", anchors(grid, stride, anchors_px[stride]))

    def propose(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: each (1, C, H, W) -> boxes (N, 4), scores (N,); at most 6,000 of each level."""
        boxes, scores = [], []
        for index, level in enumerate(levels):
            features = torch.relu(self.convolve(level))
            objectness = self.objectness(features).permute(0, 2, 3, 1).flatten()  # (H * W * anchors,)
            deltas = self.deltas(features).permute(0, 2, 3, 1).reshape(-1, 4)  # (H * W * anchors, 4)
            best, order = objectness.topk(min(CANDIDATES, objectness.shape[0]))
            boxes.append(refine(self.get_buffer(f"anchors{index}")[order], deltas[order]))
            scores.append(best)
        return torch.cat(boxes), torch.cat(scores)


class C4RegionProposal(RegionProposal):
    """Propose from one feature map, anchors of every size on each cell."""

    def forward(self, res4: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, 1024, H, W) -> boxes (N, 4), scores (N,)."""
        return self.propose(res4)


class FpnRegionProposal(RegionProposal):
    """Propose from five levels, anchors of one size on each."""

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: each (1, 256, H, W) -> boxes (N, 4), scores (N,)."""
        return self.propose(p2, p3, p4, p5, p6)


class C4RoiHead(nn.Module):
    """Sample a 14x14 window of res4 for each proposal and run res5 on every one: most of a region model's work."""

    def __init__(self, config: ResNetConfig, sizes: Sizes, *, class_agnostic: bool) -> None:
        super().__init__()
        self.res5 = resnet.stage(config, sizes, "res5")
        self.predictor = Predictor(resnet.channels(sizes, "res5"), sizes, class_agnostic=class_agnostic)

    def forward(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (1, 1024, H, W), (R, 4) -> region features (R, 2048) and the predictor's."""
        windows = roi_align(features, proposals, resnet.STRIDE["res4"], side=14)  # (R, 1024, 14, 14)
        regions = self.res5(windows).mean(dim=(2, 3))  # (R, 2048)
        return regions, *self.predictor(regions)


class FpnRoiHead(nn.Module):
    """Sample a 7x7 window of the level that fits each proposal, and run two linear layers on every one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width(MLP_CHANNELS)
        self.first = nn.Linear(sizes.width(FPN_CHANNELS) * 7 * 7, width)
        self.second = nn.Linear(width, width)
        self.predictor = Predictor(width, sizes, class_agnostic=False)

    def forward(  # noqa: PLR0917 a graph's inputs, in order
        self,
        p2: Tensor,
        p3: Tensor,
        p4: Tensor,
        p5: Tensor,
        proposals_p2: Tensor,
        proposals_p3: Tensor,
        proposals_p4: Tensor,
        proposals_p5: Tensor,
    ) -> tuple[Tensor, ...]:
        """Shapes: levels (1, 256, H, W), the proposals of each (R of a level, 4) -> (R, 1024), predictions."""
        levels = zip((p2, p3, p4, p5), (proposals_p2, proposals_p3, proposals_p4, proposals_p5), strict=True)
        strides = LEVELS.values()
        windows = torch.cat(
            [
                roi_align(level, boxes, stride, side=7)
                for (level, boxes), stride in zip(levels, strides, strict=False)  # p6 is for proposals only
            ]
        )  # (R, 256, 7, 7)
        regions = torch.relu(self.second(torch.relu(self.first(windows.flatten(1)))))  # (R, 1024)
        return regions, *self.predictor(regions)


class Predictor(nn.Module):
    """Predict each region's class, exact box and attributes."""

    def __init__(self, channels: int, sizes: Sizes, *, class_agnostic: bool) -> None:
        super().__init__()
        classes, embedded, hidden = sizes.width(CLASSES), sizes.width(256), sizes.width(512)
        self.classes = nn.Linear(channels, classes + 1)  # the last is the background
        self.deltas = nn.Linear(channels, 4 if class_agnostic else 4 * classes)
        self.class_embedding = nn.Parameter(torch.empty(classes + 1, embedded))
        self.attribute_hidden = nn.Linear(channels + embedded, hidden)
        self.attributes = nn.Linear(hidden, sizes.width(ATTRIBUTES))

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (R, C) -> class probabilities (R, classes + 1), box deltas, attribute logits (R, attributes)."""
        logits = self.classes(regions)
        named = nn.functional.embedding(logits.argmax(dim=1), self.class_embedding)  # (R, 256)
        attributes = self.attributes(torch.relu(self.attribute_hidden(torch.cat([regions, named], dim=1))))
        return torch.softmax(logits, dim=1), self.deltas(regions), attributes


def anchors(grid: tuple[int, int], stride: int, sizes_px: tuple[int, ...]) -> Tensor:
    """Place boxes of every size and aspect ratio on every cell.

    Shapes: (rows * columns * anchors of a cell, 4), x1 y1 x2 y2 px.
    """
    rows, columns = grid
    shapes = [(size / ratio**0.5, size * ratio**0.5) for size in sizes_px for ratio in ASPECT_RATIOS]
    halves = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes])  # (A, 4)
    y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (cells, 1, 4)
    return (centres + halves).reshape(-1, 4).float()


def refine(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Shift and scale boxes.

    Shapes: (N, 4) each, x1 y1 x2 y2 and dx dy log-dw log-dh -> (N, 4).
    """
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    size = opposite - corner
    centre = corner + size / 2 + deltas[:, :2] * size
    half = size * deltas[:, 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=1)


def roi_align(features: Tensor, boxes: Tensor, stride: int, *, side: int) -> Tensor:
    """Sample a square window of each box, as ONNX's own operator does.

    Shapes: (1, C, H, W), (R, 4) -> (R, C, side, side).
    Source: He et al. 2017; detectron2 ROIAlignV2.
    """
    attributes: dict[str, int | float | str] = {
        "output_height": side,
        "output_width": side,
        "sampling_ratio": SAMPLING_RATIO,
        "spatial_scale": 1 / stride,
        "mode": "avg",
        "coordinate_transformation_mode": "half_pixel",
    }
    indices = torch.zeros(boxes.shape[0], dtype=torch.long)
    return torch.onnx.ops.symbolic(
        "RoiAlign",
        (features, boxes, indices),
        attributes,
        dtype=features.dtype,
        shape=(boxes.shape[0], features.shape[1], side, side),
        version=16,
    )
