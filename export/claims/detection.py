"""From the picture to regions: the steps of a C4 detector, of one with a feature pyramid, and of a fixed grid."""

import math

from export.claims import detector, nms, resnet, transformer
from export.claims.resnet import RESNET101, RESNEXT152, ResNet, ResNetConfig
from export.claims.sizes import Sizes
from export.claims.step import Shape, Step, cells, feature_map, pixels

REGION_PX = (800, 1333)  # rows, columns of the resized picture
GRID_SIDE = 8  # X-LXMERT's
LEVEL_PROPOSALS = {"p2": 250, "p3": 300, "p4": 300, "p5": 150}  # which level serves how many of the 1,000


def c4(sizes: Sizes, kept: int, config: ResNetConfig = RESNET101, *, class_agnostic: bool = False) -> tuple[Step, ...]:
    """Detect with a C4 head: res5 runs on every proposal."""
    backbone, channels = c4_backbone(sizes, config), resnet.channels(sizes, "res4")
    grids = {resnet.STRIDE["res4"]: cells(REGION_PX, resnet.STRIDE["res4"])}
    anchors_px = {resnet.STRIDE["res4"]: detector.C4_ANCHORS_PX}
    name = backbone.graph.removesuffix("_res4")
    return (
        backbone,
        Step(
            stage="region_proposal",
            graph="c4_region_proposal",
            build=lambda: detector.C4RegionProposal(channels, grids, anchors_px),
            inputs={"res4": feature_map(sizes, REGION_PX, "res4")},
            outputs=("refined_boxes", "refined_scores"),
        ),
        proposal_nms(detector.CANDIDATES),
        Step(
            stage="roi_head",
            graph=f"{name}_c4_roi_head",
            build=lambda: detector.C4RoiHead(config, sizes, class_agnostic=class_agnostic),
            inputs={"res4": feature_map(sizes, REGION_PX, "res4"), "proposals": (detector.PROPOSALS, 4)},
            outputs=("region_features", "class_probabilities", "box_deltas", "attributes"),
        ),
        suppression(sizes, kept, class_agnostic=class_agnostic),
    )


def fpn(sizes: Sizes, kept: int) -> tuple[Step, ...]:
    """Detect with a feature pyramid: two linear layers run on every proposal."""
    width = sizes.width(detector.FPN_CHANNELS)
    grids = {stride: cells(REGION_PX, stride) for stride in detector.LEVELS.values()}
    anchors_px = {stride: (8 * stride,) for stride in detector.LEVELS.values()}  # 32 px on p2 to 512 on p6
    levels: dict[str, Shape] = {name: (1, width, *grids[stride]) for name, stride in detector.LEVELS.items()}
    per_cell = len(detector.ASPECT_RATIOS)
    candidates = sum(min(detector.CANDIDATES, per_cell * math.prod(grid)) for grid in grids.values())
    by_level: dict[str, Shape] = {f"proposals_{name}": (count, 4) for name, count in LEVEL_PROPOSALS.items()}
    return (
        Step(
            stage="visual_backbone",
            graph="resnext152_fpn",
            build=lambda: detector.FpnBackbone(RESNEXT152, sizes),
            inputs={"pixel_values": pixels(REGION_PX)},
            outputs=tuple(levels),
        ),
        Step(
            stage="region_proposal",
            graph="fpn_region_proposal",
            build=lambda: detector.FpnRegionProposal(width, grids, anchors_px),
            inputs=levels,
            outputs=("refined_boxes", "refined_scores"),
        ),
        proposal_nms(candidates),
        Step(
            stage="roi_head",
            graph="fpn_roi_head",
            build=lambda: detector.FpnRoiHead(sizes),
            inputs={**{name: levels[name] for name in LEVEL_PROPOSALS}, **by_level},
            outputs=("region_features", "class_probabilities", "box_deltas", "attributes"),
        ),
        suppression(sizes, kept, class_agnostic=False),
    )


def fixed_grid(sizes: Sizes) -> tuple[Step, ...]:
    """Run the C4 head on the cells of a fixed 8x8 grid: no proposals, no suppression.

    Source: Cho et al. 2020, section 4.1.
    """
    channels = resnet.channels(sizes, "res5")
    return (
        c4_backbone(sizes, RESNET101),
        Step(
            stage="roi_head",
            graph="resnet101_grid_roi_head",
            build=lambda: detector.C4RoiHead(RESNET101, sizes, class_agnostic=False),
            inputs={"res4": feature_map(sizes, REGION_PX, "res4"), "grid_boxes": (GRID_SIDE**2, 4)},
            outputs=("region_features", "class_probabilities", "box_deltas", "attributes"),
        ),
        Step(
            stage="visual_embedding",
            graph="x-lxmert_regions",
            build=lambda: transformer.RegionEmbedding(
                channels, sizes.width(transformer.HIDDEN), transformer.CORNERS, joined=False
            ),
            inputs={"region_features": (GRID_SIDE**2, channels), "grid_boxes": (GRID_SIDE**2, 4)},
            outputs=("image",),
        ),
    )


def c4_backbone(sizes: Sizes, config: ResNetConfig) -> Step:
    name = "resnet101" if config is RESNET101 else "resnext152"
    return Step(
        stage="visual_backbone",
        graph=f"{name}_res4",
        build=lambda: ResNet(config, sizes, last="res4"),
        inputs={"pixel_values": pixels(REGION_PX)},
        outputs=("res4",),
    )


def proposal_nms(candidates: int) -> Step:
    return Step(
        stage="region_proposal",
        graph="proposal_nms",
        build=lambda: nms.proposals(detector.PROPOSALS),
        inputs={"candidate_boxes": (candidates, 4), "candidate_scores": (candidates,)},
        outputs=("proposal_rows",),
    )


def suppression(sizes: Sizes, kept: int, *, class_agnostic: bool) -> Step:
    return Step(
        stage="nms",
        graph=f"class_agnostic_nms_{kept}" if class_agnostic else f"per_class_nms_{kept}",
        build=lambda: nms.class_agnostic(kept) if class_agnostic else nms.per_class(kept),
        inputs={
            "proposals": (detector.PROPOSALS, 4),
            "class_scores": (detector.PROPOSALS, sizes.width(detector.CLASSES)),
            "score_threshold": (1,),
        },
        outputs=("kept",),
    )
