"""The fourteen designs that ViLT is compared with: which part runs in which stage, on what shapes.

Token counts and picture sizes are Table 6's; backbone, RoI head and NMS are Table 7's (Kim, Son, Kim 2021). Where the
paper has no row: X-LXMERT has LXMERT's text and its own 8x8 grid, CLIP its own 77 tokens, VSE++ and SCAN the 40 that
the paper takes where a length is not known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from export.claims import detection, fusion, two_stream
from export.claims.detection import GRID_SIDE, REGION_PX, c4, fpn
from export.claims.fusion import regions
from export.claims.resnet import RESNET50, RESNEXT152, ResNetConfig
from export.claims.sizes import Sizes
from export.claims.step import Step
from export.claims.transformer import AREA, CORNERS, SIZE, SIZE_AND_AREA

REGIONS, STREAMS, CELLS = "region features", "region features, two streams", "grid features"
SHALLOW = "shallow interaction"


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
    vinvl_c4 = partial(c4, config=RESNEXT152, class_agnostic=True)
    uniter = partial(regions, graph="uniter", geometry=SIZE_AND_AREA)
    oscar = partial(regions, graph="oscar", geometry=SIZE, joined=True)
    visualbert = partial(regions, graph="visualbert", geometry=(), fpn=True)
    unicoder = partial(regions, graph="unicoder", geometry=AREA, fpn=True)
    vilbert = partial(regions, graph="vilbert", geometry=AREA, width=two_stream.VILBERT_WIDTH)
    lxmert = partial(regions, graph="lxmert", geometry=CORNERS)
    return [
        _of_regions(sizes, "UNITER", (36, 60), c4, uniter),
        _of_regions(sizes, "OSCAR", (50, 35), c4, oscar),
        _of_regions(sizes, "VinVL", (50, 35), vinvl_c4, oscar),
        _of_regions(sizes, "VisualBERT", (36, 128), fpn, visualbert),
        _of_regions(sizes, "Unicoder-VL", (100, 40), fpn, unicoder),
        _of_regions(sizes, "ImageBERT", (100, 44), fpn, unicoder),
        _of_regions(sizes, "ViLBERT", (36, 36), c4, vilbert, interact=fusion.vilbert, family=STREAMS),
        _of_regions(sizes, "LXMERT", (36, 20), c4, lxmert, interact=fusion.lxmert, family=STREAMS),
        _of_cells(sizes, "Pixel-BERT-R50", 260, "resnet50", RESNET50, image_px=REGION_PX),
        _of_cells(sizes, "Pixel-BERT-X152", 146, "resnext152", RESNEXT152, image_px=(600, 1000)),
        Design(
            name="x-lxmert",
            title="X-LXMERT",
            family=CELLS,
            image_px=REGION_PX,
            visual_tokens=GRID_SIDE**2,
            text_tokens=20,
            steps=(*detection.fixed_grid(sizes), *fusion.lxmert(sizes, GRID_SIDE**2, 20)),
        ),
        Design(
            name="clip",
            title="CLIP ViT-B/32",
            family=SHALLOW,
            image_px=fusion.CLIP_PX,
            visual_tokens=50,
            text_tokens=fusion.CLIP_LENGTH,
            steps=fusion.clip(sizes),
        ),
        Design(
            name="vse++",
            title="VSE++",
            family=SHALLOW,
            image_px=fusion.VSE_PX,
            visual_tokens=1,
            text_tokens=fusion.UNKNOWN_LENGTH,
            steps=fusion.vse(sizes),
        ),
        Design(
            name="scan",
            title="SCAN",
            family=SHALLOW,
            image_px=REGION_PX,
            visual_tokens=36,
            text_tokens=fusion.UNKNOWN_LENGTH,
            steps=(*c4(sizes, 36), *fusion.scan(sizes)),
        ),
    ]


def _of_regions(
    sizes: Sizes,
    title: str,
    tokens: tuple[int, int],
    detect: Callable[[Sizes, int], tuple[Step, ...]],
    embed: Callable[[Sizes, int], tuple[Step, ...]],
    *,
    interact: Callable[[Sizes, int, int], tuple[Step, ...]] = fusion.single_stream,
    family: str = REGIONS,
) -> Design:
    """Detect regions, embed those that NMS keeps, and run them with the text through transformers."""
    visual, text = tokens
    return Design(
        name=title.lower(),
        title=title,
        family=family,
        image_px=REGION_PX,
        visual_tokens=visual,
        text_tokens=text,
        steps=(*detect(sizes, visual), *embed(sizes, visual), *interact(sizes, visual, text)),
    )


def _of_cells(
    sizes: Sizes, title: str, visual: int, backbone: str, config: ResNetConfig, *, image_px: tuple[int, int]
) -> Design:
    """Take the cells of a backbone's feature map as tokens."""
    return Design(
        name=title.lower(),
        title=title,
        family=CELLS,
        image_px=image_px,
        visual_tokens=visual,
        text_tokens=fusion.UNKNOWN_LENGTH,
        steps=fusion.pixel_bert(backbone, config, sizes, image_px, visual),
    )
