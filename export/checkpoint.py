"""Load a ViLT checkpoint, from wherever it comes, as sizes, weights, tokenizer and labels.

Reads Hugging Face folders and hub ids (weights from safetensors, or from `.bin` without executing code in it) and
original `.ckpt` files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import ViltConfig

from export import lightning, weights
from export.graph import GraphConfig, StateDict
from export.sizes import MODALITIES, WORDS, UnsupportedError, read_sizes
from export.tokenizer import read_tokenizer

FILES = (
    *weights.OF_SAFE,
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.txt",
    "added_tokens.json",
    "tokenizer*",
)
POOLER = "vilt.pooler.dense.weight"
OF_A_RUN = {  # settings that change what transformers returns or runs on, and that its classes may not take
    "return_dict",
    "use_return_dict",
    "torchscript",
    "output_attentions",
    "output_hidden_states",
    "attn_implementation",
    "_attn_implementation",
}
UNNAMED = re.compile(r"LABEL_\d+")  # transformers' name for an answer without one


class CheckpointError(Exception):
    """A checkpoint that cannot be exported; the message says what to do about it."""


class DownloadError(CheckpointError):
    """A checkpoint that could not be downloaded; `reason` is short, for callers with advice of their own."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(
            f"{source} is neither a folder here nor a checkpoint that could be downloaded from the hub ({reason}):"
            " check the name, --revision and the network, set HF_ENDPOINT to a mirror, or give the path of a folder"
            " downloaded elsewhere."
        )
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The contents of a checkpoint, in Hugging Face's names."""

    name: str  # of its file or folder, or its hub id
    revision: str | None  # the hub's commit
    raw_config: dict[str, Any]
    config: GraphConfig
    state: StateDict
    tokenizer: Tokenizer
    labels: tuple[str, ...] | None


def load(
    source: str, *, tokenizer: Path | None = None, labels: Path | None = None, revision: str | None = None
) -> Checkpoint:
    """Load a checkpoint from a `.ckpt` file, from a folder or, if it is neither, from the hub.

    Raises: CheckpointError: it is not there, not a ViLT, or lacks something an export needs.
    """
    is_original, is_here = source.endswith(".ckpt"), Path(source).is_dir()
    if revision and (is_original or is_here):
        raise CheckpointError(f"{source} is not on the hub, so it has no revision {revision}: leave --revision out.")
    if is_original:
        return _load_original(Path(source), tokenizer, labels)
    if not is_here:
        _refuse_path(source)
    folder = Path(source) if is_here else _download(source, revision)
    raw_config = _read_config(folder)
    state = _load_state(folder)
    config = _config_of(folder, raw_config, _read_processor(folder), state)
    _try_in_transformers(raw_config)
    return Checkpoint(
        name=folder.resolve().name if is_here else source,
        revision=None if is_here else folder.name,  # the hub's cache names a snapshot by its commit
        raw_config=raw_config,
        config=config,
        state=state,
        tokenizer=_load_tokenizer(folder, tokenizer, len(state[WORDS])),
        labels=_load_labels(raw_config, labels, state),
    )


def _refuse_path(source: str) -> None:
    """Refuse what is a path rather than a hub id, and no folder: the hub need not be asked."""
    if Path(source).is_file():
        raise CheckpointError(f"{source} is a file: give its folder, which has config.json beside the weights.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(f"{source} is no hub id, and there is no such folder.")


def _load_original(path: Path, tokenizer: Path | None, labels: Path | None) -> Checkpoint:
    """Load an original `.ckpt`, which carries neither tokenizer nor labels."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        state = lightning.read_state(path)
        state = {name: value.float() for name, value in state.items() if value.is_floating_point()}
        raw_config = lightning.config_of(state)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not a ViLT of the original repository: a weight is missing or unknown, {error}."
        ) from error
    return Checkpoint(
        name=path.name,
        revision=None,
        raw_config=raw_config,
        config=_config_of(path, raw_config, {}, state),
        state=state,
        tokenizer=_load_tokenizer(path.parent, tokenizer, len(state[WORDS])),
        labels=_load_labels(raw_config, labels, state),
    )


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 only a hub id needs it

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
        if not any((folder / name).exists() for name in (weights.SAFE, weights.SAFE + weights.INDEX)):
            snapshot_download(source, revision=folder.name, allow_patterns=list(weights.OF_PICKLED))  # same folder
        return folder
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise DownloadError(f"{source} of {revision}" if revision else source, _root_of(error)) from error


def _root_of(error: BaseException) -> str:
    """Describe an error's root cause in one line: the hub client's own message is a paragraph."""
    while error.__cause__:
        error = error.__cause__
    message = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _load_state(folder: Path) -> StateDict:
    try:
        state = weights.read_state(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if WORDS.removeprefix("vilt.") in state or (WORDS in state and POOLER not in state):
        raise CheckpointError(
            f"{folder} has no head for questions, matching or retrieval: it is another kind of model, such as a plain"
            " ViltModel or ViltForTokenClassification."
        )
    if not {WORDS, MODALITIES} <= set(state):
        raise CheckpointError(f"{folder} holds no ViLT: its weights lack {WORDS} or {MODALITIES}.")
    return state


def _read_config(folder: Path) -> dict[str, Any]:
    """Read what describes the model: not how a program ran it, and in the one form that transformers reads."""
    config = _read_json(folder / "config.json")
    if config is None and (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} is a PEFT adapter without its model: {weights.MERGE}")
    if config is None and (commits := [path.name for path in folder.glob("snapshots/*")]):
        raise CheckpointError(f"{folder} is the hub's cache of a repository: give {folder}/snapshots/{commits[0]}.")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json: it is not a Hugging Face checkpoint folder.")
    config = {name: value for name, value in config.items() if name not in OF_A_RUN}
    for name in ("image_size", "patch_size"):
        sides = config.get(name)
        if isinstance(sides, list):
            if len(sides) != 2 or sides[0] != sides[1]:
                raise CheckpointError(f"{name} is {sides}; only one number, or the same number twice, is supported.")
            config[name] = sides[0]
    if isinstance(config.get("id2label"), list):
        config["id2label"] = dict(enumerate(config["id2label"]))
    return config


def _try_in_transformers(config: dict[str, Any]) -> None:
    """Refuse at once what the comparison with transformers would fail on once the graphs are written."""
    try:
        ViltConfig(**config)
    except Exception as error:  # it raises its own and Python's
        raise CheckpointError(f"transformers does not accept config.json: {' '.join(str(error).split())}") from error


def _read_processor(folder: Path) -> dict[str, Any]:
    """Read the image processor's settings; processor_config.json, where transformers 5 saves them, goes first."""
    nested = (_read_json(folder / "processor_config.json") or {}).get("image_processor")
    return nested or _read_json(folder / "preprocessor_config.json") or {}


def _config_of(where: Path, config: dict[str, Any], processor: dict[str, Any], state: StateDict) -> GraphConfig:
    try:
        return read_sizes(config, processor, state)
    except UnsupportedError as error:
        raise CheckpointError(str(error)) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{where} has a setting of the wrong type or value: {error}.") from error


def _load_tokenizer(folder: Path, override: Path | None, words: int) -> Tokenizer:
    """Find the tokenizer and the settings beside it, and read it."""
    candidates = [override] if override else [folder / "tokenizer.json", folder / "vocab.txt"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise CheckpointError(
            f"No tokenizer at {' or '.join(map(str, candidates))}: give --tokenizer a tokenizer.json or a vocab.txt"
            " (ViLT uses that of bert-base-uncased)."
        )
    configs = (_read_json(where / "tokenizer_config.json") for where in (found.parent, folder))
    settings = next(filter(None, configs), {})
    try:
        return read_tokenizer(found, settings, _read_json(found.parent / "added_tokens.json") or {}, words)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _load_labels(config: dict[str, Any], override: Path | None, state: StateDict) -> tuple[str, ...] | None:
    if "classifier.3.weight" not in state:
        return None
    try:
        named = json.loads(override.read_text(encoding="utf-8-sig")) if override else config.get("id2label", {})
        by_index = dict(enumerate(named)) if isinstance(named, list) else {int(key): named[key] for key in named}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{override or 'id2label'} is neither a JSON list of answers nor an object of index to answer: {error}."
        ) from error
    for label in by_index.values():
        if not isinstance(label, (str, int, float)):
            raise CheckpointError(f"{override or 'id2label'} has the answer {json.dumps(label)}: answers are strings.")
    labels = tuple(str(by_index[index]) for index in sorted(by_index))
    if override is None and all(map(UNNAMED.fullmatch, labels)):
        return None  # an error only if the head is kept
    expected = len(state["classifier.3.weight"])
    if len(labels) != expected:
        raise CheckpointError(f"There are {len(labels)} labels for {expected} answers of the classifier.")
    if max(by_index) >= expected or min(by_index) < 0:
        raise CheckpointError(
            f"The labels are numbered {min(by_index)} to {max(by_index)}; the classifier's answers 0 to {expected - 1}."
        )
    return labels


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object without its nulls, which mean the same as nothing; return None if there is no file."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(), object_hook=_without_nulls)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return found


def _without_nulls(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}
