"""Read the weights of a Hugging Face folder: in one file or several, and under the names that transformers gives them.

Pickled files are read without executing code in them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

StateDict = dict[str, Tensor]

INDEX = ".index.json"  # says which of several files holds a weight
SAFE = "model.safetensors"
PICKLED = "pytorch_model.bin"  # used if there are no safetensors
OF_SAFE = (SAFE, SAFE + INDEX, "model-*-of-*.safetensors")  # what to download
OF_PICKLED = (PICKLED, PICKLED + INDEX, "pytorch_model-*-of-*.bin")
WRAPPERS = ("model", "state_dict")  # training loops save weights beside an epoch
PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
OF_ADAPTERS = (".lora_A.", ".base_layer.")
MERGE = "call merge_and_unload() on the PEFT model, then save_pretrained(), and export that folder."


def read_state(folder: Path) -> StateDict:
    """Read the floating-point weights of a folder.

    Raises: ValueError: there are none, a file is missing or damaged, or they are adapters or quantised.
    """
    first = next(
        (folder / name for name in (SAFE, SAFE + INDEX, PICKLED, PICKLED + INDEX) if (folder / name).exists()), None
    )
    if first is None:
        raise ValueError(f"{folder} has neither {SAFE} nor {PICKLED}, nor an index of several.")
    state: dict[str, Any] = {}
    for path in _indexed(first) if first.name.endswith(INDEX) else [first]:
        state |= _plain(_read(path))
    if any(part in name for name in state for part in OF_ADAPTERS):
        raise ValueError(f"The weights of {folder} hold adapters that are not merged: {MERGE}")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    quantised = next((name for name, value in tensors.items() if _is_quantised(name, value)), None)
    if quantised:
        raise ValueError(
            f"{quantised} of {folder} is {str(tensors[quantised].dtype).removeprefix('torch.')}: quantised weights are"
            " not supported; save the model in a floating-point type."
        )
    return {name: value.float() for name, value in tensors.items() if value.is_floating_point()}


def _indexed(index: Path) -> list[Path]:
    """Name the files of an index, which must lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({type(error).__name__}): {error}.") from error
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index} names {missing[0]}, which is missing: download or save the checkpoint again.")
    return [index.parent / name for name in names]


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises its own
        raise ValueError(
            f"The weights of {path} cannot be read ({type(error).__name__}): the file is damaged, or holds more than"
            " weights, which is never executed; download or save it again."
        ) from error


def _plain(saved: object) -> dict[str, Any]:
    """Take weights out of what a training loop put around them, and their names out of what wrapped the model."""
    for wrapper in WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
            saved = saved[wrapper]
    state = {str(name): value for name, value in saved.items()} if isinstance(saved, dict) else {}
    while state and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), "")):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_quantised(name: str, value: Tensor) -> bool:
    return name.endswith("weight") and not value.is_floating_point()
