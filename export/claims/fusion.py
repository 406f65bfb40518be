"""From regions, cells or vectors to the answer: the embeddings, interaction and head of every design."""

import math

from export import to_onnx
from export.claims import detector, dual, grid, resnet, transformer, two_stream
from export.claims.resnet import RESNET152, ResNetConfig
from export.claims.sizes import Sizes
from export.claims.step import Shape, Step, cells, feature_map, pixels, whole_backbone

UNKNOWN_LENGTH = 40  # of texts: what the paper takes where a length is not known
VSE_PX = CLIP_PX = (224, 224)
CLIP_LENGTH = 77  # of all texts: CLIP pads them


def regions(
    sizes: Sizes,
    kept: int,
    *,
    graph: str,
    geometry: tuple[int, ...],
    joined: bool = False,
    fpn: bool = False,
    width: int = transformer.HIDDEN,
) -> tuple[Step, ...]:
    """Embed the kept regions."""
    channels = sizes.width(detector.MLP_CHANNELS) if fpn else resnet.channels(sizes, "res5")
    return (
        Step(
            stage="visual_embedding",
            graph=f"{graph}_regions",
            build=lambda: transformer.RegionEmbedding(channels, sizes.width(width), geometry, joined=joined),
            inputs={
                "region_features": (detector.PROPOSALS, channels),
                "proposals": (detector.PROPOSALS, 4),
                "kept": (kept,),
            },
            outputs=("image",),
        ),
    )


def single_stream(sizes: Sizes, visual: int, length: int) -> tuple[Step, ...]:
    """Run one BERT over everything."""
    return (
        text_embedding(sizes, length),
        Step(
            stage="interaction",
            graph="single_stream",
            opset=to_onnx.OPSET,
            build=lambda: transformer.SingleStream(sizes),
            inputs=token_shapes(sizes, visual, length),
            outputs=("hidden",),
            free={"text": (1,), "image": (1,)},
        ),
        bert_head(sizes, visual + length),
    )


def vilbert(sizes: Sizes, visual: int, length: int) -> tuple[Step, ...]:
    width = two_stream.VILBERT_WIDTH
    text, image = token_shapes(sizes, visual, length, width).values()
    return (
        text_embedding(sizes, length),
        Step(
            stage="interaction",
            graph="vilbert",
            opset=to_onnx.OPSET,
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


def lxmert(sizes: Sizes, visual: int, length: int) -> tuple[Step, ...]:
    return (
        text_embedding(sizes, length),
        Step(
            stage="interaction",
            graph="lxmert",
            opset=to_onnx.OPSET,
            build=lambda: two_stream.Lxmert(sizes),
            inputs=token_shapes(sizes, visual, length),
            outputs=("hidden", "image_hidden"),
            free={"text": (1,), "image": (1,)},
        ),
        bert_head(sizes, length),
    )


def pixel_bert(
    name: str, config: ResNetConfig, sizes: Sizes, image_px: tuple[int, int], visual: int
) -> tuple[Step, ...]:
    """Take the feature map's cells as tokens."""
    return (
        whole_backbone(name, config, sizes, image_px),
        Step(
            stage="visual_embedding",
            graph=f"{name}_cells",
            build=lambda: grid.GridEmbedding(sizes, visual),
            inputs={"res5": feature_map(sizes, image_px, "res5")},
            outputs=("image",),
        ),
        *single_stream(sizes, visual, UNKNOWN_LENGTH),
    )


def clip(sizes: Sizes) -> tuple[Step, ...]:
    num_patches = math.prod(cells(CLIP_PX, dual.CLIP_PATCH_PX))
    joint = sizes.width(dual.CLIP_JOINT)
    return (
        Step(
            stage="visual_embedding",
            graph="clip_patches",
            build=lambda: dual.ClipPatches(sizes, num_patches),
            inputs={"pixel_values": pixels(CLIP_PX)},
            outputs=("tokens",),
        ),
        Step(
            stage="visual_backbone",
            graph="clip_image",
            opset=to_onnx.OPSET,
            build=lambda: dual.ClipImage(sizes),
            inputs={"tokens": (1, 1 + num_patches, sizes.width(dual.CLIP_WIDTH))},
            outputs=("image",),
        ),
        Step(
            stage="text_embedding",
            graph="clip_text",
            opset=to_onnx.OPSET,
            build=lambda: dual.ClipText(sizes, CLIP_LENGTH),
            inputs={"input_ids": (1, CLIP_LENGTH)},
            outputs=("text",),
        ),
        dot_product(joint),
    )


def vse(sizes: Sizes) -> tuple[Step, ...]:
    return (
        whole_backbone("resnet152", RESNET152, sizes, VSE_PX),
        Step(
            stage="visual_embedding",
            graph="vse_image",
            build=lambda: dual.PooledImage(sizes),
            inputs={"res5": feature_map(sizes, VSE_PX, "res5")},
            outputs=("image",),
        ),
        Step(
            stage="text_embedding",
            graph="vse_text",
            build=lambda: dual.RecurrentText(sizes, every_word=False),
            inputs={"input_ids": (1, UNKNOWN_LENGTH)},
            outputs=("text",),
        ),
        dot_product(sizes.width(dual.JOINT)),
    )


def scan(sizes: Sizes) -> tuple[Step, ...]:
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
            inputs={"input_ids": (1, UNKNOWN_LENGTH)},
            outputs=("text",),
        ),
        Step(
            stage="interaction",
            graph="scan_attention",
            build=dual.StackedCrossAttention,
            inputs={"text": (UNKNOWN_LENGTH, joint), "image": (1, 36, joint)},
            outputs=("scores",),
            free={"image": (0,)},
        ),
    )


def text_embedding(sizes: Sizes, length: int) -> Step:
    return Step(
        stage="text_embedding",
        graph="bert_text",
        build=lambda: transformer.TextEmbedding(sizes),
        inputs={"input_ids": (1, length)},
        outputs=("text",),
        free={"input_ids": (1,)},
    )


def token_shapes(sizes: Sizes, visual: int, length: int, visual_width: int = transformer.HIDDEN) -> dict[str, Shape]:
    return {"text": (1, length, sizes.width(transformer.HIDDEN)), "image": (1, visual, sizes.width(visual_width))}


def bert_head(sizes: Sizes, num_tokens: int) -> Step:
    return Step(
        stage="head",
        graph="bert_head",
        build=lambda: transformer.Head(sizes),
        inputs={"hidden": (1, num_tokens, sizes.width(transformer.HIDDEN))},
        outputs=("itm_logits",),
        free={"hidden": (1,)},
    )


def dot_product(joint: int) -> Step:
    return Step(
        stage="interaction",
        graph=f"dot_product_{joint}",
        build=dual.DotProduct,
        inputs={"text": (1, joint), "image": (1, joint)},
        outputs=("scores",),
        free={"image": (0,)},
    )
