"""The fourteen designs that ViLT is compared with: which part runs in which stage, on what shapes.

Token counts and picture sizes are Table 6's; backbone, RoI head and NMS are Table 7's (Kim, Son, Kim 2021). Where the
paper has no row: X-LXMERT has LXMERT's text and its own 8x8 grid, CLIP its own 77 tokens, VSE++ and SCAN the 40 that
the paper takes where a length is not known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx
from torch import nn

from export.claims import detector, dual, grid, nms, resnet, transformer, two_stream
from export.claims.resnet import RESNET50, RESNET101, RESNET152, RESNEXT152, ResNet, ResNetConfig
from export.claims.sizes import Sizes

Shape = tuple[int, ...]
STAGES = (
    "visual_backbone",
    "region_proposal",
    "roi_head",
    "nms",
    "visual_embedding",
    "text_embedding",
    "interaction",
    "head",
)
REGION_PX = (800, 1333)  # rows, columns of the resized picture
VSE_PX = CLIP_PX = (224, 224)
GRID_SIDE = 8  # X-LXMERT's
LEVEL_PROPOSALS = {"p2": 250, "p3": 300, "p4": 300, "p5": 150}  # which level serves how many of the 1,000
LENGTH = {1: "text and picture tokens are free"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One graph of one stage. Steps that name the same graph share its file, and its weights."""

    stage: str
    graph: str
    build: Callable[[], nn.Module | onnx.ModelProto]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    free: dict[str, tuple[int, ...]] = field(default_factory=dict)  # axes that vary among designs, by input


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A published structure, as steps in the order in which they run."""

    name: str
    title: str
    family: str
    image_px: tuple[int, int]
    visual_tokens: int
    text_tokens: int
    steps: tuple[Step, ...]


def designs(sizes: Sizes) -> list[Design]:
    """List every design but ViLT, which is an artifact."""
    region, streams, cells = "region features", "region features, two streams", "grid features"
    shallow = "shallow interaction"
    size_and_area, corners = transformer.SIZE_AND_AREA, transformer.CORNERS
    image = REGION_PX
    return [
        Design(
            name="uniter",
            title="UNITER",
            family=region,
            image_px=image,
            visual_tokens=36,
            text_tokens=60,
            steps=(*_c4(sizes, 36), *_regions("uniter", sizes, 36, size_and_area), *_single_stream(sizes, 36, 60)),
        ),
        Design(
            name="oscar",
            title="OSCAR",
            family=region,
            image_px=image,
            visual_tokens=50,
            text_tokens=35,
            steps=(
                *_c4(sizes, 50),
                *_regions("oscar", sizes, 50, transformer.SIZE, joined=True),
                *_single_stream(sizes, 50, 35),
            ),
        ),
        Design(
            name="vinvl",
            title="VinVL",
            family=region,
            image_px=image,
            visual_tokens=50,
            text_tokens=35,
            steps=(
                *_c4(sizes, 50, RESNEXT152, class_agnostic=True),
                *_regions("oscar", sizes, 50, transformer.SIZE, joined=True),
                *_single_stream(sizes, 50, 35),
            ),
        ),
        Design(
            name="visualbert",
            title="VisualBERT",
            family=region,
            image_px=image,
            visual_tokens=36,
            text_tokens=128,
            steps=(*_fpn(sizes, 36), *_regions("visualbert", sizes, 36, (), fpn=True), *_single_stream(sizes, 36, 128)),
        ),
        Design(
            name="unicoder-vl",
            title="Unicoder-VL",
            family=region,
            image_px=image,
            visual_tokens=100,
            text_tokens=40,
            steps=(
                *_fpn(sizes, 100),
                *_regions("unicoder", sizes, 100, transformer.AREA, fpn=True),
                *_single_stream(sizes, 100, 40),
            ),
        ),
        Design(
            name="imagebert",
            title="ImageBERT",
            family=region,
            image_px=image,
            visual_tokens=100,
            text_tokens=44,
            steps=(
                *_fpn(sizes, 100),
                *_regions("unicoder", sizes, 100, transformer.AREA, fpn=True),
                *_single_stream(sizes, 100, 44),
            ),
        ),
        Design(
            name="vilbert",
            title="ViLBERT",
            family=streams,
            image_px=image,
            visual_tokens=36,
            text_tokens=36,
            steps=(
                *_c4(sizes, 36),
                *_regions("vilbert", sizes, 36, transformer.AREA, width=two_stream.VILBERT_WIDTH),
                *_vilbert(sizes, 36, 36),
            ),
        ),
        Design(
            name="lxmert",
            title="LXMERT",
            family=streams,
            image_px=image,
            visual_tokens=36,
            text_tokens=20,
            steps=(*_c4(sizes, 36), *_regions("lxmert", sizes, 36, corners), *_lxmert(sizes, 36, 20)),
        ),
        Design(
            name="pixel-bert-r50",
            title="Pixel-BERT-R50",
            family=cells,
            image_px=image,
            visual_tokens=260,
            text_tokens=40,
            steps=_pixel_bert("resnet50", RESNET50, sizes, image, 260),
        ),
        Design(
            name="pixel-bert-x152",
            title="Pixel-BERT-X152",
            family=cells,
            image_px=(600, 1000),
            visual_tokens=146,
            text_tokens=40,
            steps=_pixel_bert("resnext152", RESNEXT152, sizes, (600, 1000), 146),
        ),
        Design(
            name="x-lxmert",
            title="X-LXMERT",
            family=cells,
            image_px=image,
            visual_tokens=GRID_SIDE**2,
            text_tokens=20,
            steps=(*_fixed_grid(sizes), *_lxmert(sizes, GRID_SIDE**2, 20)),
        ),
        Design(
            name="clip",
            title="CLIP ViT-B/32",
            family=shallow,
            image_px=CLIP_PX,
            visual_tokens=50,
            text_tokens=77,
            steps=_clip(sizes),
        ),
        Design(
            name="vse++",
            title="VSE++",
            family=shallow,
            image_px=VSE_PX,
            visual_tokens=1,
            text_tokens=40,
            steps=_vse(sizes),
        ),
        Design(
            name="scan",
            title="SCAN",
            family=shallow,
            image_px=image,
            visual_tokens=36,
            text_tokens=40,
            steps=(*_c4(sizes, 36), *_scan(sizes)),
        ),
    ]


def _cells(image_px: tuple[int, int], stride: int) -> tuple[int, int]:
    """Count the rows and columns of a feature map: every halving rounds up."""
    return math.ceil(image_px[0] / stride), math.ceil(image_px[1] / stride)


def _pixels(image_px: tuple[int, int]) -> Shape:
    return (1, 3, *image_px)


def _c4(sizes: Sizes, kept: int, config: ResNetConfig = RESNET101, *, class_agnostic: bool = False) -> tuple[Step, ...]:
    """Detect with a C4 head: res5 runs on every proposal."""
    backbone, channels = _c4_backbone(sizes, config), resnet.channels(sizes, "res4")
    cells = {resnet.STRIDE["res4"]: _cells(REGION_PX, resnet.STRIDE["res4"])}
    anchors_px = {resnet.STRIDE["res4"]: detector.C4_ANCHORS_PX}
    name = backbone.graph.removesuffix("_res4")
    return (
        backbone,
        Step(
            stage="region_proposal",
            graph="c4_region_proposal",
            build=lambda: detector.C4RegionProposal(channels, cells, anchors_px),
            inputs={"res4": backbone_shape(sizes, REGION_PX, "res4")},
            outputs=("refined_boxes", "refined_scores"),
        ),
        _proposal_nms(detector.CANDIDATES),
        Step(
            stage="roi_head",
            graph=f"{name}_c4_roi_head",
            build=lambda: detector.C4RoiHead(config, sizes, class_agnostic=class_agnostic),
            inputs={"res4": backbone_shape(sizes, REGION_PX, "res4"), "proposals": (detector.PROPOSALS, 4)},
            outputs=("region_features", "class_probabilities", "box_deltas", "attributes"),
        ),
        _nms(sizes, kept, class_agnostic=class_agnostic),
    )


def _c4_backbone(sizes: Sizes, config: ResNetConfig) -> Step:
    name = "resnet101" if config is RESNET101 else "resnext152"
    return Step(
        stage="visual_backbone",
        graph=f"{name}_res4",
        build=lambda: ResNet(config, sizes, last="res4"),
        inputs={"pixel_values": _pixels(REGION_PX)},
        outputs=("res4",),
    )


def backbone_shape(sizes: Sizes, image_px: tuple[int, int], stage: str) -> Shape:
    """Size the feature map of a stage."""
    return (1, resnet.channels(sizes, stage), *_cells(image_px, resnet.STRIDE[stage]))


def _fpn(sizes: Sizes, kept: int) -> tuple[Step, ...]:
    """Detect with a feature pyramid: two linear layers run on every proposal."""
    width = sizes.width(detector.FPN_CHANNELS)
    cells = {stride: _cells(REGION_PX, stride) for stride in detector.LEVELS.values()}
    anchors_px = {stride: (8 * stride,) for stride in detector.LEVELS.values()}  # 32 px on p2 to 512 on p6
    levels: dict[str, Shape] = {name: (1, width, *cells[stride]) for name, stride in detector.LEVELS.items()}
    per_cell = len(detector.ASPECT_RATIOS)
    candidates = sum(min(detector.CANDIDATES, per_cell * math.prod(grid)) for grid in cells.values())
    by_level: dict[str, Shape] = {f"proposals_{name}": (count, 4) for name, count in LEVEL_PROPOSALS.items()}
    return (
        Step(
            stage="visual_backbone",
            graph="resnext152_fpn",
            build=lambda: detector.FpnBackbone(RESNEXT152, sizes),
            inputs={"pixel_values": _pixels(REGION_PX)},
            outputs=tuple(levels),
        ),
        Step(
            stage="region_proposal",
            graph="fpn_region_proposal",
            build=lambda: detector.FpnRegionProposal(width, cells, anchors_px),
            inputs=levels,
            outputs=("refined_boxes", "refined_scores"),
        ),
        _proposal_nms(candidates),
        Step(
            stage="roi_head",
            graph="fpn_roi_head",
            build=lambda: detector.FpnRoiHead(sizes),
            inputs={**{name: levels[name] for name in LEVEL_PROPOSALS}, **by_level},
            outputs=("region_features", "class_probabilities", "box_deltas", "attributes"),
        ),
        _nms(sizes, kept, class_agnostic=False),
    )


def _proposal_nms(candidates: int) -> Step:
    return Step(
        stage="region_proposal",
        graph="proposal_nms",
        build=lambda: nms.proposals(detector.PROPOSALS),
        inputs={"candidate_boxes": (candidates, 4), "candidate_scores": (candidates,)},
        outputs=("proposal_rows",),
    )


def _nms(sizes: Sizes, kept: int, *, class_agnostic: bool) -> Step:
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


def _regions(
    name: str,
    sizes: Sizes,
    kept: int,
    geometry: tuple[int, ...],
    *,
    joined: bool = False,
    fpn: bool = False,
    width: int = transformer.HIDDEN,
) -> tuple[Step, ...]:
    """Embed the kept regions."""
    channels = sizes.width(detector.MLP_CHANNELS) if fpn else resnet.channels(sizes, "res5")
    return (
        Step(
            stage="visual_embedding",
            graph=f"{name}_regions",
            build=lambda: transformer.RegionEmbedding(channels, sizes.width(width), geometry, joined=joined),
            inputs={
                "region_features": (detector.PROPOSALS, channels),
                "proposals": (detector.PROPOSALS, 4),
                "kept": (kept,),
            },
            outputs=("image",),
        ),
    )


def _text(sizes: Sizes, length: int) -> Step:
    return Step(
        stage="text_embedding",
        graph="bert_text",
        build=lambda: transformer.TextEmbedding(sizes),
        inputs={"input_ids": (1, length)},
        outputs=("text",),
        free={"input_ids": (1,)},
    )


def _tokens(sizes: Sizes, visual: int, length: int, visual_width: int = transformer.HIDDEN) -> dict[str, Shape]:
    return {"text": (1, length, sizes.width(transformer.HIDDEN)), "image": (1, visual, sizes.width(visual_width))}


def _head(sizes: Sizes, num_tokens: int) -> Step:
    return Step(
        stage="head",
        graph="bert_head",
        build=lambda: transformer.Head(sizes),
        inputs={"hidden": (1, num_tokens, sizes.width(transformer.HIDDEN))},
        outputs=("itm_logits",),
        free={"hidden": (1,)},
    )


def _single_stream(sizes: Sizes, visual: int, length: int) -> tuple[Step, ...]:
    """Run one BERT over everything."""
    return (
        _text(sizes, length),
        Step(
            stage="interaction",
            graph="single_stream",
            build=lambda: transformer.SingleStream(sizes),
            inputs=_tokens(sizes, visual, length),
            outputs=("hidden",),
            free={"text": (1,), "image": (1,)},
        ),
        _head(sizes, visual + length),
    )


def _vilbert(sizes: Sizes, visual: int, length: int) -> tuple[Step, ...]:
    width = two_stream.VILBERT_WIDTH
    text, image = _tokens(sizes, visual, length, width).values()
    return (
        _text(sizes, length),
        Step(
            stage="interaction",
            graph="vilbert",
            build=lambda: two_stream.ViLBert(sizes),
            inputs={"text": text, "image": image},
            outputs=("text_hidden", "image_hidden"),
        ),
        Step(
            stage="head",
            graph="vilbert_head",
            build=lambda: two_stream.ViLBertHead(sizes),
            inputs={"text_hidden": text, "image_hidden": image},
            outputs=("itm_logits",),
        ),
    )


def _lxmert(sizes: Sizes, visual: int, length: int) -> tuple[Step, ...]:
    return (
        _text(sizes, length),
        Step(
            stage="interaction",
            graph="lxmert",
            build=lambda: two_stream.Lxmert(sizes),
            inputs=_tokens(sizes, visual, length),
            outputs=("hidden",),
            free={"text": (1,), "image": (1,)},
        ),
        _head(sizes, length),
    )


def _grid_backbone(name: str, config: ResNetConfig, sizes: Sizes, image_px: tuple[int, int]) -> Step:
    return Step(
        stage="visual_backbone",
        graph=f"{name}_res5",
        build=lambda: ResNet(config, sizes),
        inputs={"pixel_values": _pixels(image_px)},
        outputs=("res5",),
    )


def _pixel_bert(
    name: str, config: ResNetConfig, sizes: Sizes, image_px: tuple[int, int], visual: int
) -> tuple[Step, ...]:
    """Take the feature map's cells as tokens."""
    return (
        _grid_backbone(name, config, sizes, image_px),
        Step(
            stage="visual_embedding",
            graph=f"{name}_cells",
            build=lambda: grid.GridEmbedding(sizes, visual),
            inputs={"res5": backbone_shape(sizes, image_px, "res5")},
            outputs=("image",),
        ),
        *_single_stream(sizes, visual, 40),
    )


def _fixed_grid(sizes: Sizes) -> tuple[Step, ...]:
    """Run the C4 head on the cells of a fixed 8x8 grid: no proposals, no suppression.

    Source: Cho et al. 2020, section 4.1.
    """
    channels = resnet.channels(sizes, "res5")
    return (
        _c4_backbone(sizes, RESNET101),
        Step(
            stage="roi_head",
            graph="resnet101_grid_roi_head",
            build=lambda: detector.C4RoiHead(RESNET101, sizes, class_agnostic=False),
            inputs={"res4": backbone_shape(sizes, REGION_PX, "res4"), "grid_boxes": (GRID_SIDE**2, 4)},
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


def _clip(sizes: Sizes) -> tuple[Step, ...]:
    num_patches = math.prod(_cells(CLIP_PX, dual.CLIP_PATCH_PX))
    joint = sizes.width(dual.CLIP_JOINT)
    return (
        Step(
            stage="visual_embedding",
            graph="clip_patches",
            build=lambda: dual.ClipPatches(sizes, num_patches),
            inputs={"pixel_values": _pixels(CLIP_PX)},
            outputs=("tokens",),
        ),
        Step(
            stage="visual_backbone",
            graph="clip_image",
            build=lambda: dual.ClipImage(sizes),
            inputs={"tokens": (1, 1 + num_patches, sizes.width(dual.CLIP_WIDTH))},
            outputs=("image",),
        ),
        Step(
            stage="text_embedding",
            graph="clip_text",
            build=lambda: dual.ClipText(sizes, 77),
            inputs={"input_ids": (1, 77)},
            outputs=("text",),
        ),
        _dot_product(joint),
    )


def _vse(sizes: Sizes) -> tuple[Step, ...]:
    return (
        _grid_backbone("resnet152", RESNET152, sizes, VSE_PX),
        Step(
            stage="visual_embedding",
            graph="vse_image",
            build=lambda: dual.PooledImage(sizes),
            inputs={"res5": backbone_shape(sizes, VSE_PX, "res5")},
            outputs=("image",),
        ),
        Step(
            stage="text_embedding",
            graph="vse_text",
            build=lambda: dual.RecurrentText(sizes, every_word=False),
            inputs={"input_ids": (1, 40)},
            outputs=("text",),
        ),
        _dot_product(sizes.width(dual.JOINT)),
    )


def _dot_product(joint: int) -> Step:
    return Step(
        stage="interaction",
        graph=f"dot_product_{joint}",
        build=dual.DotProduct,
        inputs={"text": (1, joint), "image": (1, joint)},
        outputs=("scores",),
        free={"image": (0,)},
    )


def _scan(sizes: Sizes) -> tuple[Step, ...]:
    joint = sizes.width(dual.JOINT)
    return (
        Step(
            stage="visual_embedding",
            graph="scan_regions",
            build=lambda: dual.RegionVectors(sizes),
            inputs={"region_features": (detector.PROPOSALS, resnet.channels(sizes, "res5")), "kept": (36,)},
            outputs=("image",),
        ),
        Step(
            stage="text_embedding",
            graph="scan_text",
            build=lambda: dual.RecurrentText(sizes, every_word=True),
            inputs={"input_ids": (1, 40)},
            outputs=("text",),
        ),
        Step(
            stage="interaction",
            graph="scan_attention",
            build=dual.StackedCrossAttention,
            inputs={"text": (40, joint), "image": (1, 36, joint)},
            outputs=("scores",),
            free={"image": (0,)},
        ),
    )
