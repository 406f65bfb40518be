"""Original checkpoints give the logits of their Hugging Face twins, and run nothing."""

import os
import random
import re
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import factories
import numpy as np
import pytest
import torch

from export import artifact, checkpoint, graph, lightning, parity

CONFIG = factories.small_config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
STATE = factories.redrawn_state(CONFIG)
BACK = {"vilt.encoder.layer.": "transformer.blocks."} | {new: old for old, new in lightning.PREFIXES.items()}
BLOCK_BACK = {new: old for old, new in lightning.BLOCK_NAMES.items()}


def original_names(state: factories.State) -> factories.State:
    """Name weights as the reference repository does, with query, key and value in one."""
    renamed: factories.State = {}
    for name, value in state.items():
        if found := re.fullmatch(r"vilt\.encoder\.layer\.(\d+)\.attention\.attention\.query\.(\w+)", name):
            three = [state[name.replace("query", which)] for which in ("query", "key", "value")]
            renamed[f"transformer.blocks.{found[1]}.attn.qkv.{found[2]}"] = torch.cat(three)
        elif ".attention.attention." in name:
            continue
        elif found := re.fullmatch(r"vilt\.encoder\.layer\.(\d+)\.(.*)\.(\w+)", name):
            renamed[f"transformer.blocks.{found[1]}.{BLOCK_BACK[found[2]]}.{found[3]}"] = value
        else:
            prefix = max((new for new in BACK if name.startswith(new)), key=len)
            renamed[BACK[prefix] + name.removeprefix(prefix)] = value
    return renamed


class ForeignCallback:
    """Stands for a Lightning callback: a class of a package that is not installed."""

    def __init__(self) -> None:
        self.best_model_path = "result/best.ckpt"


class ForeignConfig(dict[str, Any]):
    """Stands for sacred's read-only dictionary."""


class Malicious:
    """Unpickles to a shell command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {MARK}",)


MARK = "/tmp/vilt-malicious-pickle-ran"  # noqa: S108 it must never be made
for foreign in (ForeignCallback, ForeignConfig):
    foreign.__module__ = "pytorch_lightning.callbacks"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the foreign package exist while its objects are pickled."""
    module = ModuleType("pytorch_lightning.callbacks")
    module.ForeignCallback, module.ForeignConfig = ForeignCallback, ForeignConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", module)


def write(path: Path, **extra: object) -> Path:
    torch.save({"state_dict": original_names(STATE), "epoch": 3, **extra}, path)
    (path.parent / "vocab.txt").write_text("\n".join(factories.TOKENS))
    (path.parent / "labels.json").write_text(str([f"answer {index}" for index in range(11)]).replace("'", '"'))
    return path


@pytest.mark.usefixtures("installed")
def test_ckpt_with_foreign_objects_gives_the_logits_of_its_hugging_face_twin(tmp_path: Path) -> None:
    """Same weights, same logits to the last bit, for every head; foreign classes become nothing."""
    extra = {"callbacks": {ForeignCallback: ForeignCallback()}, "hyper_parameters": ForeignConfig(num_heads=2)}
    path = write(tmp_path / "vilt.ckpt", **extra)
    twin = checkpoint.load(str(factories.write_checkpoint(tmp_path / "hf", CONFIG, STATE)))

    loaded = checkpoint.load(str(path), labels=tmp_path / "labels.json")

    assert loaded.config == twin.config
    feeds = parity.collate([sample.features(twin.config) for sample in next(parity.cases(twin.config, 64))])
    ours, theirs = (parity.torch_runner(graph.build(each.config, each.state))(feeds) for each in (loaded, twin))
    assert set(ours) == {"vqa_logits", "itm_logits", "rank_logits"}
    assert all(np.array_equal(ours[head], theirs[head]) for head in theirs)


def test_malicious_ckpt_does_nothing(tmp_path: Path) -> None:
    """A call into Python is as inert as any other: the weights are read, and nothing is run."""
    path = write(tmp_path / "vilt.ckpt", callbacks=Malicious())

    loaded = checkpoint.load(str(path), labels=tmp_path / "labels.json")

    assert torch.equal(loaded.state["rank_output.bias"], STATE["rank_output.bias"])
    assert not Path(MARK).exists()


ORDINARY = {
    "numpy scalar": np.float64(0.5),
    "path": Path("result"),
    "duration": timedelta(hours=1),
    "type": Any,
    "partial": partial(sorted, reverse=True),
    "default of a partial": defaultdict(partial(list, ()), {"loss": [1.0]}),
    "bound method": [1].count,
    "states of generators": {"numpy": np.random.default_rng(0).bit_generator.state, "python": random.getstate()},
    "legacy state of numpy": np.random.RandomState(0).get_state(),
    "state of torch": torch.get_rng_state(),
    "flags": re.compile("a", re.IGNORECASE),
    "namespace": Namespace(lr=1e-4),
    "counter": Counter("ab"),
    "set": {frozenset("ab")},
    "module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("value", ORDINARY.values(), ids=ORDINARY)
def test_ckpt_with_what_lightning_saves_beside_weights_is_read(tmp_path: Path, value: object) -> None:
    """Hyperparameters, callbacks and random states are of no use here, whatever they are."""
    path = write(tmp_path / "vilt.ckpt", hyper_parameters={"x": value}, callbacks=[value])

    loaded = checkpoint.load(str(path), labels=tmp_path / "labels.json")

    assert torch.equal(loaded.state["rank_output.bias"], STATE["rank_output.bias"])


def test_ckpt_of_parameters_with_attributes_is_read(tmp_path: Path) -> None:
    """As training code saves them that marks its parameters."""
    path = write(tmp_path / "vilt.ckpt")
    saved = torch.load(path)
    weight = torch.nn.Parameter(saved["state_dict"]["rank_output.bias"])
    weight.no_decay = True
    torch.save(saved | {"state_dict": saved["state_dict"] | {"rank_output.bias": weight}}, path)

    loaded = checkpoint.load(str(path), labels=tmp_path / "labels.json")

    assert torch.equal(loaded.state["rank_output.bias"], STATE["rank_output.bias"])


@pytest.mark.parametrize("name", ["rank_output.bias", "transformer.blocks.0.attn.qkv.bias"])
def test_ckpt_with_something_else_in_a_weights_place_names_it(tmp_path: Path, name: str) -> None:
    """Such as a tensor of a package of its own."""
    path = write(tmp_path / "vilt.ckpt")
    saved = torch.load(path)
    torch.save(saved | {"state_dict": saved["state_dict"] | {name: Path("weights")}}, path)

    with pytest.raises(checkpoint.CheckpointError, match=f"{name} is not a plain tensor"):
        checkpoint.load(str(path), labels=tmp_path / "labels.json")


def test_ckpt_without_tokenizer_asks_for_it(tmp_path: Path) -> None:
    """The file carries none: the message names the flag."""
    path = write(tmp_path / "vilt.ckpt")
    (tmp_path / "vocab.txt").unlink()

    with pytest.raises(checkpoint.CheckpointError, match="give --tokenizer"):
        checkpoint.load(str(path))


def test_ckpt_without_labels_asks_for_them_where_its_answers_are_served(tmp_path: Path) -> None:
    """The file carries none."""
    loaded = checkpoint.load(str(write(tmp_path / "vilt.ckpt")))

    with pytest.raises(checkpoint.CheckpointError, match="give --labels"):
        artifact.keep_heads(graph.build(loaded.config, loaded.state), loaded, [])


@pytest.mark.parametrize("content", [b"", b"not a pickle", None], ids=["empty", "noise", "no ViLT"])
def test_ckpt_of_something_else_is_refused_with_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    """A file that is no checkpoint is said to be none."""
    path = tmp_path / "vilt.ckpt"
    if content is None:
        torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)
    else:
        path.write_bytes(content)

    with pytest.raises(checkpoint.CheckpointError, match=r"is not a checkpoint|holds no ViLT"):
        checkpoint.load(str(path))
