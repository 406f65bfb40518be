"""When an artifact folder changes, and what is said where it cannot."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import factories
import onnxruntime
import pytest
import torch

import models
from export import artifact, checkpoint, graph, parity
from export.checkpoint import CheckpointError
from export.output_folder import OutputError, replacing
from models.errors import ArtifactError
from models.manifest import LABELS, MANIFEST, TOKENIZER, load_artifact

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = factories.small_config(**SIZES)
STATE = factories.redrawn_state(CONFIG)
QUESTIONS = factories.only(STATE, "vilt.", "classifier.")
SHAPES = Path(models.__file__).parent / "artifacts" / "shapes"
RANKING = factories.only(STATE, "vilt.", "rank_output.")


def write(output: Path, state: factories.State, *tasks: str, **options: Any) -> None:
    """Export a checkpoint of some weights, which is written beside the output."""
    folder = factories.write_checkpoint(output.parent / "hf", CONFIG, state)
    loaded = checkpoint.load(str(folder))
    artifact.write_artifact(loaded, output, name="x", description="", tasks=tasks, report=lambda _: None, **options)


def contents(folder: Path) -> dict[str, str]:
    """Name every file of a folder, the hidden ones too, with a digest of what it holds."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "artifact"
    write(folder, QUESTIONS)
    return folder


@pytest.fixture
def earlier(exported: Path, tmp_path: Path) -> Path:
    """An artifact that answers questions, for a test to spoil."""
    return shutil.copytree(exported, tmp_path / "artifact")


@pytest.mark.slow
def test_graphs_say_nothing_of_the_machine_that_wrote_them(exported: Path) -> None:
    """The exporter notes the lines of the sources that each node is from; the shipped artifact is free of that, too."""
    for folder in (exported, SHAPES):
        for path in folder.rglob("*.onnx"):
            assert not any(trace in path.read_bytes() for trace in (b"stack_trace", b"graph.py", b"site-packages")), (
                path
            )


@pytest.mark.slow
def test_command_for_a_task_without_a_head_leaves_the_earlier_artifact(earlier: Path, tmp_path: Path) -> None:
    """What is refused removes nothing: a mistyped --task is no reason to be without a model."""
    before = contents(earlier)
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, QUESTIONS)
    command = [sys.executable, "-m", "export", str(folder), "--output", str(earlier), "--task", "rank"]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert "cannot serve rank" in ended.stderr
    assert contents(earlier) == before


@pytest.mark.slow
def test_export_with_the_wheel_for_gpus_says_which_onnxruntime_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another package, `onnxruntime-gpu`, and the only one that has onnxruntime there."""

    def found(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(artifact, "version", found)

    write(tmp_path / "out", QUESTIONS)

    assert load_artifact(tmp_path / "out", "fp32").manifest.tools["onnxruntime"] == onnxruntime.__version__


@pytest.mark.slow
def test_export_that_fails_parity_leaves_the_earlier_artifact(earlier: Path) -> None:
    """Its graphs were written by then, but not over those of the earlier one."""
    before = contents(earlier)

    with pytest.raises(parity.ParityError):
        write(earlier, QUESTIONS | {"classifier.3.bias": torch.full((11,), torch.nan)})

    assert contents(earlier) == before


@pytest.mark.slow
def test_picture_that_turns_out_damaged_costs_the_gate_and_not_the_export(tmp_path: Path) -> None:
    """Its header was whole; by then fp32 is proven, and who asked for int8 has it, not gated, with the reason."""
    whole = factories.encoded(factories.noise(160, 160), "PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "cut.png", "text": "a cat"}))
    state = factories.only(STATE, "vilt.", "itm_score.")

    write(tmp_path / "out", state, "itm", precision="int8", eval_data=tmp_path / "data.jsonl")

    precisions = load_artifact(tmp_path / "out", "int8").manifest.precisions
    why = f"--eval-data: {tmp_path}/cut.png: The PNG image could not be decoded: it is damaged or cut short"
    assert precisions["int8"].gate == {"status": "not gated", "why": why}
    assert precisions["fp32"].parity["max_logit_difference_to_transformers"] <= parity.FP32_TOLERANCE


@pytest.mark.slow
def test_export_over_an_earlier_artifact_replaces_what_the_earlier_wrote_and_nothing_else(earlier: Path) -> None:
    """No labels or graphs of another checkpoint stay behind; a person's notes do."""
    (earlier / "int8").mkdir()
    (earlier / "int8" / "interaction.onnx").write_text("of the earlier checkpoint")
    (earlier / "README.md").write_text("a note")

    write(earlier, RANKING)

    parts = {f"fp32/{part}.onnx" for part in ("text_embedding", "visual_embedding", "interaction")}
    assert set(contents(earlier)) == {MANIFEST, TOKENIZER, "README.md"} | parts
    assert load_artifact(earlier).manifest.heads == {"rank_logits": 1}


@pytest.mark.slow
def test_command_with_an_output_that_cannot_be_written_ends_with_a_sentence(tmp_path: Path) -> None:
    """Here a file is where a folder would have to be."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, QUESTIONS)
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "export", str(folder), "--output", str(tmp_path / "file" / "out")]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "cannot be written to" in ended.stderr.splitlines()[-1]
    assert "Not a directory" in ended.stderr.splitlines()[-1]


def test_output_that_is_a_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The message names the path and the system's reason; the file stays."""
    (tmp_path / "out").write_text("a note")

    with pytest.raises(OutputError, match=r"out \(File exists\): give --output a folder"):
        write(tmp_path / "out", QUESTIONS)

    assert (tmp_path / "out").read_text() == "a note"


@pytest.mark.slow
def test_command_that_is_terminated_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Graphs of full size are a gigabyte, and a job's end is a SIGTERM."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, QUESTIONS)
    command = [sys.executable, "-m", "export", str(folder), "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as export:
        while not list((tmp_path / "out").glob(".export-*")) and export.poll() is None:
            time.sleep(0.05)
        export.terminate()

    assert export.returncode == 143
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Nobody holds the folder's lock then; what others put there stays."""
    (tmp_path / ".export-left").mkdir()
    (tmp_path / ".export-left" / "model.onnx").write_text("half a graph")
    (tmp_path / "README.md").write_text("a note")

    with replacing(tmp_path) as staging:
        (staging / MANIFEST).write_text("{}")

    assert set(contents(tmp_path)) == {MANIFEST, "README.md"}


@pytest.mark.parametrize(
    "name", [MANIFEST, LABELS, TOKENIZER, "fp32/weights.bin", "int8/weights.bin", "fp16/weights.bin"]
)
def test_files_of_our_names_that_are_no_export_s_are_refused_and_stay(tmp_path: Path, name: str) -> None:
    """A web extension has a manifest.json, a checkpoint a tokenizer.json; the refusal comes before any graph."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    before = contents(tmp_path)

    there, _, _ = name.partition("/")
    sentence = f"has {there} and no manifest.json of an earlier export"
    with pytest.raises(OutputError, match=sentence), replacing(tmp_path):
        pytest.fail("It would have been written to.")

    assert contents(tmp_path) == before


def test_full_disk_is_a_sentence_that_says_to_free_space(tmp_path: Path) -> None:
    """Graphs of full size are a gigabyte."""
    sentence = r"No space left on device\): free space there, or give --output"
    with pytest.raises(OutputError, match=sentence), replacing(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert list(tmp_path.iterdir()) == []


def test_second_export_to_a_folder_is_refused_while_one_writes_there(tmp_path: Path) -> None:
    """Neither the first one's files nor an artifact of both come of it."""
    with replacing(tmp_path) as first:
        (first / MANIFEST).write_text("{}")
        with pytest.raises(OutputError, match="Another export writes to"), replacing(tmp_path):
            pass

    assert set(contents(tmp_path)) == {MANIFEST}


@pytest.mark.parametrize(
    ("prefixes", "tasks", "heads"),
    [
        (["itm_score."], ["rank"], {"itm_logits", "rank_logits"}),
        (["itm_score.", "rank_output."], ["rank"], {"itm_logits", "rank_logits"}),
        (["itm_score.", "rank_output."], ["itm"], {"itm_logits"}),
        (["rank_output."], ["itm"], {"rank_logits"}),
        (["classifier.", "itm_score."], ["vqa"], {"vqa_logits"}),
        (["classifier.", "itm_score."], [], {"vqa_logits", "itm_logits", "rank_logits"}),
    ],
)
def test_tasks_keep_the_heads_that_answer_them(
    tmp_path: Path, prefixes: list[str], tasks: list[str], heads: set[str]
) -> None:
    """A matching head, trained by softmax over two, is not left to one of its rows: what ranks also matches."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", *prefixes))
    loaded = checkpoint.load(str(folder))
    model = graph.build(loaded.config, loaded.state)

    artifact.keep_heads(model, loaded, tasks)

    assert set(model.interaction.heads) == heads


@pytest.mark.parametrize(
    "id2label", [None, {str(index): f"LABEL_{index}" for index in range(11)}], ids=["none", "transformers' own"]
)
def test_answers_without_names_are_refused_only_where_they_are_served(
    tmp_path: Path, id2label: dict[str, str] | None
) -> None:
    """A head that is dropped needs none."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "classifier.", "itm_score."))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": id2label}))
    loaded = checkpoint.load(str(folder))

    artifact.keep_heads(graph.build(loaded.config, loaded.state), loaded, ["rank"])
    with pytest.raises(CheckpointError, match="names no answers: give --labels a JSON list, or object of index to"):
        artifact.keep_heads(graph.build(loaded.config, loaded.state), loaded, [])


def _unlist(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["files"][name]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        (folder / name).unlink()

    return change


def _answer(text: str) -> Callable[[Path], object]:
    """Replace the answers, with the digest that the manifest then needs."""

    def change(folder: Path) -> None:
        (folder / LABELS).write_text(text)
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][LABELS]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return change


EDITS = {
    "answers unlisted": (_unlist(LABELS), "does not list labels.json"),
    "tokenizer unlisted": (_unlist(TOKENIZER), "does not list tokenizer.json"),
    "answers that are no JSON": (_answer("yes, no"), "not a JSON list of answers"),
    "answers that are no list": (_answer("11"), "not a JSON list of answers"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "sentence"), EDITS.values(), ids=EDITS)
def test_load_of_an_artifact_edited_by_hand_raises_one_sentence(
    earlier: Path, edit: Callable[[Path], object], sentence: str
) -> None:
    """A manifest may promise a head without the files that it needs: no traceback then."""
    edit(earlier)

    with pytest.raises(ArtifactError, match=sentence) as caught:
        load_artifact(earlier)

    assert "\n" not in str(caught.value)
