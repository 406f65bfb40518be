"""What a checkpoint may look like, what it may lack, and the command that turns it into an artifact."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch

from export import checkpoint, graph, parity
from export.checkpoint import CheckpointError
from models.manifest import load_artifact
from models.spec import ViltSpec

CONFIG = factories.small_config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
STATE = factories.redrawn_state(CONFIG)
ALL_LAYERS = ("vilt.",)
KINDS = {  # weights by name, and the heads that they give
    "question answering": (factories.only(STATE, "vilt.", "classifier."), ["vqa_logits"]),
    "retrieval": (factories.only(STATE, "vilt.", "rank_output."), ["rank_logits"]),
    "pre-training": (
        factories.only(STATE, "vilt.", "itm_score.") | {"mlm_score.bias": torch.zeros(64)},
        ["itm_logits", "rank_logits"],
    ),
    "every head": (STATE, ["vqa_logits", "itm_logits", "rank_logits"]),
}
Change = Callable[[Path], object]


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_any_kind_gives_its_heads(tmp_path: Path, kind: str, pickled: bool) -> None:
    """Heads are found by their keys, whichever class saved them and in whichever file."""
    state, heads = KINDS[kind]
    folder = factories.write_checkpoint(tmp_path, CONFIG, state, pickled=pickled)

    loaded = checkpoint.load(str(folder))

    assert list(graph.heads_of(loaded.state)) == heads
    assert (loaded.labels is None) == ("vqa_logits" not in heads)
    assert loaded.config.spec == ViltSpec()


def test_pretraining_checkpoint_agrees_with_transformers_trunk(tmp_path: Path) -> None:
    """transformers has no class for it, so the oracle is its trunk with the matching head on top."""
    state, _ = KINDS["pre-training"]
    loaded = checkpoint.load(str(factories.write_checkpoint(tmp_path, CONFIG, state)))
    oracle, ours = parity.TransformersOracle(loaded), parity.torch_runner(graph.build(loaded.config, loaded.state))
    samples = next(parity.cases(loaded.config, 64))

    found = ours(parity.collate([sample.features(loaded.config) for sample in samples]))

    assert found["itm_logits"] == pytest.approx(oracle.run(samples)["itm_logits"], abs=parity.FP32_TOLERANCE)


def _edit(name: str, **changes: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


FAULTS: dict[str, tuple[Change, str]] = {
    "no configuration": (_without("config.json"), "no config.json"),
    "no weights": (_without("model.safetensors"), "neither model.safetensors nor pytorch_model.bin"),
    "no tokenizer": (_without("vocab.txt"), "give --tokenizer a tokenizer.json or a vocab.txt"),
    "no labels": (_edit("config.json", id2label=None), "give --labels a JSON list"),
    "too few labels": (_edit("config.json", id2label={"0": "yes"}), "1 labels for 11 answers"),
    "another model": (_edit("config.json", model_type="vit"), "model_type is 'vit'"),
    "another activation": (_edit("config.json", hidden_act="relu"), "hidden_act is 'relu'"),
    "random patches": (_edit("config.json", max_image_length=200), "drops patches at random"),
    "another size": (_edit("preprocessor_config.json", size={"shortest_edge": 224}), "resizes to 224"),
    "another filter": (_edit("preprocessor_config.json", resample=2), "bicubic"),
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_checkpoint_with_a_fault_is_refused_with_a_sentence(tmp_path: Path, fault: Change, sentence: str) -> None:
    """What cannot be exported faithfully is not exported; the sentence says what to do."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "classifier."))
    fault(folder)

    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(str(folder))


def test_checkpoint_for_two_images_is_refused(tmp_path: Path) -> None:
    """NLVR2 has a third modality row."""
    name = "vilt.embeddings.token_type_embeddings.weight"
    state = STATE | {name: torch.zeros(3, 16)}

    with pytest.raises(CheckpointError, match="two images"):
        checkpoint.load(str(factories.write_checkpoint(tmp_path, CONFIG, state)))


def test_labels_and_tokenizer_can_be_given_apart(tmp_path: Path) -> None:
    """What a folder lacks may lie elsewhere."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, factories.only(STATE, "vilt.", "classifier."))
    _edit("config.json", id2label=None)(folder)
    vocabulary = (folder / "vocab.txt").rename(tmp_path / "vocab.txt")
    (tmp_path / "labels.json").write_text(json.dumps([f"it is {index}" for index in range(11)]))

    loaded = checkpoint.load(str(folder), tokenizer=vocabulary, labels=tmp_path / "labels.json")

    assert loaded.labels is not None
    assert loaded.labels[3] == "it is 3"
    assert loaded.tokenizer.encode("what cats").tokens == ["[CLS]", "what", "cat", "##s", "[SEP]"]


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_command_writes_an_artifact_that_loads_and_says_how_exact_it_is(tmp_path: Path) -> None:
    """Checkpoint in, verified artifact out; only the wanted task's head is kept."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, STATE)

    ended = export(str(folder), "--output", str(tmp_path / "small"), "--task", "vqa", "--description", "for a test")

    assert ended.returncode == 0, ended.stderr
    assert "max |logit difference| to transformers" in ended.stdout
    manifest = load_artifact(tmp_path / "small").manifest
    assert (manifest.name, manifest.tasks, manifest.description) == ("small", ("vqa",), "for a test")
    assert manifest.precisions["fp32"].parity["max_logit_difference_to_transformers"] <= parity.FP32_TOLERANCE


@pytest.mark.parametrize(
    ("heads", "task", "sentence"),
    [(("vilt.",), [], "no head to serve"), (("vilt.", "classifier."), ["--task", "rank"], "cannot serve rank")],
    ids=["no head", "another head"],
)
def test_command_without_a_head_to_serve_ends_with_a_sentence(
    tmp_path: Path, heads: tuple[str, ...], task: list[str], sentence: str
) -> None:
    """A checkpoint that answers nothing makes no artifact."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, factories.only(STATE, *heads))

    ended = export(str(folder), "--output", str(tmp_path / "out"), *task)

    assert ended.returncode != 0
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_command_with_an_unknown_checkpoint_says_what_to_check(tmp_path: Path) -> None:
    """A hub id without a network, or a folder that is not there, is a sentence."""
    environment_without_hub = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "export", "no-one/no-such-vilt", "--output", str(tmp_path / "out")]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"HF_ENDPOINT": environment_without_hub, "HF_HOME": str(tmp_path), "PATH": ""},
    )

    assert ended.returncode != 0
    assert "check the name and the network" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_shipped_graphs_are_the_shipped_checkpoint() -> None:
    """The artifact in the repository is what its own checkpoint exports to."""
    root = Path(__file__).parents[2]
    loaded = checkpoint.load(str(root / "export" / "shapes" / "checkpoint"))
    artifact = load_artifact(root / "models" / "artifacts" / "shapes")

    found = parity.check(loaded, graph.build(loaded.config, loaded.state), artifact.graphs)

    assert found["max_logit_difference_to_transformers"] <= parity.FP32_TOLERANCE
    assert dataclasses.asdict(artifact.manifest.spec) == dataclasses.asdict(loaded.config.spec)
