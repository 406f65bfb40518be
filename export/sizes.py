"""The sizes of a model and its image processor, from their settings: the defaults and limits of transformers."""

from typing import Any

from export.graph import GraphConfig, StateDict, count_layers
from models.spec import ViltSpec

WORDS = "vilt.embeddings.text_embeddings.word_embeddings.weight"
MODALITIES = "vilt.embeddings.token_type_embeddings.weight"
FIRST_OF_CLASSIFIER = "classifier.0.weight"


class UnsupportedError(Exception):
    """The graph does not implement a setting; the message says which."""


def read_sizes(config: dict[str, Any], processor: dict[str, Any], state: StateDict) -> GraphConfig:
    """Read the sizes, and refuse what the graph does not implement.

    Raises: UnsupportedError: that; TypeError, ValueError, AttributeError, ArithmeticError: a setting makes no sense.
    """
    for name, supported in {"model_type": "vilt", "hidden_act": "gelu", "num_channels": 3}.items():
        if config.get(name, supported) != supported:
            raise UnsupportedError(f"{name} is {config[name]!r}; only {supported!r} is supported.")
    num_layers, held = config.get("num_hidden_layers", 12), count_layers(state)
    if held > num_layers:  # fewer are refused by name, where the graph is built
        raise UnsupportedError(
            f"The weights hold {held} layers, config.json says {num_layers}: set its num_hidden_layers to what was"
            " trained."
        )
    if len(state[MODALITIES]) != 2:
        raise UnsupportedError("This checkpoint compares two images (NLVR2); only one image a text is supported.")
    width = len(state[WORDS][0])
    if FIRST_OF_CLASSIFIER in state and state[FIRST_OF_CLASSIFIER].shape != (2 * width, width):
        rows, *columns = state[FIRST_OF_CLASSIFIER].shape
        raise UnsupportedError(
            f"{FIRST_OF_CLASSIFIER} has {rows} rows of {columns} where question answering has {2 * width} of [{width}]:"
            " this classifier is another, such as ViltForImagesAndTextClassification's, and not supported."
        )
    if config.get("max_image_length", -1) > 0:
        raise UnsupportedError("max_image_length is positive: the reference then drops patches at random.")
    patch_px = config.get("patch_size", 32)
    _refuse_another_processing(processor, patch_px)
    # transformers' processor does not look into config.json; where there is none, pictures are as large as in training
    size = processor.get("size", 384 if processor else config.get("image_size", 384))
    shortest_edge_px = size.get("shortest_edge") if isinstance(size, dict) else size
    if not isinstance(shortest_edge_px, int):
        raise UnsupportedError(f"The image processor's size is {size}; it must have a shortest_edge, in pixels.")
    if shortest_edge_px < 2 * patch_px:
        raise UnsupportedError(
            f"The image processor resizes to {shortest_edge_px} pixels: fewer than two patches of {patch_px}."
        )
    hidden_size, heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    if hidden_size % heads:
        raise UnsupportedError(f"hidden_size {hidden_size} cannot be shared among {heads} attention heads.")
    return GraphConfig(
        spec=ViltSpec(
            shortest_edge_px=shortest_edge_px,
            patch_px=patch_px,
            max_text_tokens=config.get("max_position_embeddings", 40),
        ),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_attention_heads=heads,
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        image_mean=_of_channels(processor.get("image_mean", 0.5)),
        image_std=_of_channels(processor.get("image_std", 0.5)),
        rescale_factor=processor.get("rescale_factor", 1 / 255),
    )


def _refuse_another_processing(processor: dict[str, Any], patch_px: int) -> None:
    """Refuse settings with which transformers would make other pixels of a picture than the server does."""
    kind = processor.get("image_processor_type", processor.get("feature_extractor_type", "Vilt"))
    if not str(kind).startswith("Vilt"):
        raise UnsupportedError(f"The image processor is {kind}; only ViltImageProcessor is supported.")
    if processor.get("resample", 3) != 3:
        raise UnsupportedError("The image processor does not resize with bicubic filtering (resample 3).")
    settings = {"size_divisor": 32, **processor} if processor else {}  # transformers' default, whatever the patch size
    always = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    for name, supported in {**always, "do_center_crop": False, "size_divisor": patch_px}.items():
        if settings.get(name, supported) != supported:
            raise UnsupportedError(f"The image processor has {name} {settings[name]!r}; it must be {supported!r}.")


def _of_channels(value: float | list[float]) -> tuple[float, float, float]:
    """Read one value for each channel, or one for all, as transformers does."""
    red, green, blue = value if isinstance(value, list) else [value] * 3
    return float(red), float(green), float(blue)
