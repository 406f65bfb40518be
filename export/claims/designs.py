"""The fourteen designs that ViLT is compared with: which part runs in which stage, on what shapes.

Token counts and picture sizes are Table 6's; backbone, RoI head and NMS are Table 7's (Kim, Son, Kim 2021). Where the
paper has no row: X-LXMERT has LXMERT's text and its own 8x8 grid, CLIP its own 77 tokens, VSE++ and SCAN the 40 that
the paper takes where a length is not known.
"""

from dataclasses import dataclass

from export.claims import detection, fusion, transformer, two_stream
from export.claims.detection import GRID_SIDE, REGION_PX
from export.claims.resnet import RESNET50, RESNEXT152
from export.claims.sizes import Sizes
from export.claims.step import Step


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
            steps=(
                *detection.c4(sizes, 36),
                *fusion.regions("uniter", sizes, 36, size_and_area),
                *fusion.single_stream(sizes, 36, 60),
            ),
        ),
        Design(
            name="oscar",
            title="OSCAR",
            family=region,
            image_px=image,
            visual_tokens=50,
            text_tokens=35,
            steps=(
                *detection.c4(sizes, 50),
                *fusion.regions("oscar", sizes, 50, transformer.SIZE, joined=True),
                *fusion.single_stream(sizes, 50, 35),
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
                *detection.c4(sizes, 50, RESNEXT152, class_agnostic=True),
                *fusion.regions("oscar", sizes, 50, transformer.SIZE, joined=True),
                *fusion.single_stream(sizes, 50, 35),
            ),
        ),
        Design(
            name="visualbert",
            title="VisualBERT",
            family=region,
            image_px=image,
            visual_tokens=36,
            text_tokens=128,
            steps=(
                *detection.fpn(sizes, 36),
                *fusion.regions("visualbert", sizes, 36, (), fpn=True),
                *fusion.single_stream(sizes, 36, 128),
            ),
        ),
        Design(
            name="unicoder-vl",
            title="Unicoder-VL",
            family=region,
            image_px=image,
            visual_tokens=100,
            text_tokens=40,
            steps=(
                *detection.fpn(sizes, 100),
                *fusion.regions("unicoder", sizes, 100, transformer.AREA, fpn=True),
                *fusion.single_stream(sizes, 100, 40),
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
                *detection.fpn(sizes, 100),
                *fusion.regions("unicoder", sizes, 100, transformer.AREA, fpn=True),
                *fusion.single_stream(sizes, 100, 44),
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
                *detection.c4(sizes, 36),
                *fusion.regions("vilbert", sizes, 36, transformer.AREA, width=two_stream.VILBERT_WIDTH),
                *fusion.vilbert(sizes, 36, 36),
            ),
        ),
        Design(
            name="lxmert",
            title="LXMERT",
            family=streams,
            image_px=image,
            visual_tokens=36,
            text_tokens=20,
            steps=(
                *detection.c4(sizes, 36),
                *fusion.regions("lxmert", sizes, 36, corners),
                *fusion.lxmert(sizes, 36, 20),
            ),
        ),
        Design(
            name="pixel-bert-r50",
            title="Pixel-BERT-R50",
            family=cells,
            image_px=image,
            visual_tokens=260,
            text_tokens=40,
            steps=fusion.pixel_bert("resnet50", RESNET50, sizes, image, 260),
        ),
        Design(
            name="pixel-bert-x152",
            title="Pixel-BERT-X152",
            family=cells,
            image_px=(600, 1000),
            visual_tokens=146,
            text_tokens=40,
            steps=fusion.pixel_bert("resnext152", RESNEXT152, sizes, (600, 1000), 146),
        ),
        Design(
            name="x-lxmert",
            title="X-LXMERT",
            family=cells,
            image_px=image,
            visual_tokens=GRID_SIDE**2,
            text_tokens=20,
            steps=(*detection.fixed_grid(sizes), *fusion.lxmert(sizes, GRID_SIDE**2, 20)),
        ),
        Design(
            name="clip",
            title="CLIP ViT-B/32",
            family=shallow,
            image_px=fusion.CLIP_PX,
            visual_tokens=50,
            text_tokens=fusion.CLIP_LENGTH,
            steps=fusion.clip(sizes),
        ),
        Design(
            name="vse++",
            title="VSE++",
            family=shallow,
            image_px=fusion.VSE_PX,
            visual_tokens=1,
            text_tokens=40,
            steps=fusion.vse(sizes),
        ),
        Design(
            name="scan",
            title="SCAN",
            family=shallow,
            image_px=image,
            visual_tokens=36,
            text_tokens=40,
            steps=(*detection.c4(sizes, 36), *fusion.scan(sizes)),
        ),
    ]
