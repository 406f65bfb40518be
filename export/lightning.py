"""Read original `.ckpt` files of dandelin/ViLT without executing code in them, and rename weights to Hugging Face's.

A Lightning checkpoint pickles whole objects beside its weights: callbacks, paths, random states. Everything in a file
that does not rebuild a tensor becomes an inert stand-in: it is neither imported nor called, not even `os.system`.
"""

import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from export.graph import count_layers

StateDict = dict[str, Tensor]

REBUILDING = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
}  # storages are left to torch's reader

# Source: transformers convert_vilt_original_to_pytorch.py, whose conversion drops the matching head.
BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(.*)")
BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
PREFIXES = {
    "text_embeddings.": "vilt.embeddings.text_embeddings.",
    "transformer.cls_token": "vilt.embeddings.cls_token",
    "transformer.pos_embed": "vilt.embeddings.position_embeddings",
    "transformer.patch_embed.proj.": "vilt.embeddings.patch_embeddings.projection.",
    "token_type_embeddings.": "vilt.embeddings.token_type_embeddings.",  # modality; BERT's is under text_embeddings
    "transformer.norm.": "vilt.layernorm.",
    "pooler.dense.": "vilt.pooler.dense.",
    "vqa_classifier.": "classifier.",
    "rank_output.": "rank_output.",
    "itm_score.": "itm_score.",
    "mlm_score.": "mlm_score.",
}


def read_state(path: Path) -> StateDict:
    """Read the weights of a `.ckpt`, in Hugging Face's names.

    Raises: ValueError: it holds no ViLT, or something else in a weight's place.
    """
    reader: Any = SimpleNamespace(__name__=__name__, Unpickler=_InertUnpickler, load=_load)
    try:
        saved = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # a damaged file makes pickle and torch raise anything
        raise ValueError(f"{path} is not a checkpoint: {str(error).rstrip('.')}.") from error
    state = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or "transformer.pos_embed" not in state:
        raise ValueError(f"{path} holds no ViLT: it has no state_dict with transformer.pos_embed.")
    return rename(state)


def rename(state: StateDict) -> StateDict:
    """Turn the original names into Hugging Face's and split each qkv into its three.

    Raises: ValueError: a weight is no tensor.
    """
    renamed: StateDict = {}
    for name, value in state.items():
        block = BLOCK.fullmatch(name)
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if (block or prefix) and not isinstance(value, Tensor):
            raise ValueError(f"{name} is not a plain tensor: save the checkpoint with plain tensors.")
        if block:
            renamed |= _rename_block(block[1], block[2], value)
        elif prefix:
            renamed[PREFIXES[prefix] + name.removeprefix(prefix)] = value
    return renamed


def config_of(state: StateDict) -> dict[str, Any]:
    """Derive a model's sizes from its weights; the original configuration is not needed."""
    words = state["vilt.embeddings.text_embeddings.word_embeddings.weight"]
    patch_px = state["vilt.embeddings.patch_embeddings.projection.weight"].shape[-1]
    positions = state["vilt.embeddings.position_embeddings"].shape[1] - 1  # without the cls token's
    return {
        "model_type": "vilt",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": count_layers(state),
        "num_attention_heads": words.shape[1] // 64,  # as in every ViT that the original builds
        "intermediate_size": state["vilt.encoder.layer.0.intermediate.dense.bias"].shape[0],
        "max_position_embeddings": state["vilt.embeddings.text_embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state["vilt.embeddings.text_embeddings.token_type_embeddings.weight"].shape[0],
        "modality_type_vocab_size": state["vilt.embeddings.token_type_embeddings.weight"].shape[0],
        "patch_size": patch_px,
        "image_size": round(positions**0.5) * patch_px,
        "num_labels": state["classifier.3.bias"].shape[0] if "classifier.3.bias" in state else 2,
    }


def _rename_block(index: str, name: str, value: Tensor) -> StateDict:
    layer = f"vilt.encoder.layer.{index}."
    part, kind = name.rsplit(".", 1)
    if part == "attn.qkv":
        thirds = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {f"{layer}attention.attention.{which}.{kind}": third for which, third in thirds}
    return {f"{layer}{BLOCK_NAMES[part]}.{kind}": value}


class _StandIn:
    """Stands in for everything that is not a tensor: accepts any call and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "_StandIn":
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in REBUILDING else _StandIn


def _load(file: Any, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()
