"""An artifact is served as its manifest says, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import ArtifactError
from models.manifest import CUDA, MANIFEST, PARTS, load_artifact, read_manifest
from server.settings import SHAPES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(SHAPES, tmp_path / "shapes", ignore=shutil.ignore_patterns("*.md", "*.png"))


def _edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _flip_a_byte(folder: Path) -> None:
    path = folder / "fp32" / "interaction.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "has no manifest.json"),
    "not JSON": (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
    "a list": (lambda folder: (folder / MANIFEST).write_text("[]"), "format version None"),
    "another version": (lambda folder: _edit(folder, format_version=99), "format version 99"),
    "a field too many": (lambda folder: _edit(folder, surprise=1), "not a manifest"),
    "no such file": (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "a flipped bit": (_flip_a_byte, "damaged: fp32/interaction.onnx"),
    "another label count": (lambda folder: _edit(folder, heads={"vqa_logits": 7}), "29 labels for 7 logits"),
}


def test_load_of_a_sound_artifact_gives_labels_graphs_and_tasks(folder: Path) -> None:
    """Everything that the server needs comes from the folder."""
    artifact = load_artifact(folder)

    assert artifact.precision == "fp32"
    assert len(artifact.labels) == artifact.manifest.heads["vqa_logits"]
    assert set(artifact.graphs) == {"text_embedding", "visual_embedding", "interaction"}
    assert artifact.manifest.tasks == ("vqa", "itm", "rank")


def _with_int8(folder: Path, status: str) -> None:
    """Offer fp32's own graphs as int8, with that outcome of the gate."""
    manifest = read_manifest(folder)
    int8 = replace(manifest.precisions["fp32"], gate={"status": status})
    replace(manifest, precisions={**manifest.precisions, "int8": int8}).write(folder)


@pytest.mark.parametrize(
    ("status", "has_vnni", "precision"),
    [("passed", True, "int8"), ("passed", False, "fp32"), ("failed", True, "fp32"), ("not gated", True, "fp32")],
)
def test_auto_is_int8_only_where_it_has_passed_and_the_processor_is_made_for_it(
    folder: Path, status: str, has_vnni: bool, precision: str
) -> None:
    """Nobody gets other answers without having asked for them."""
    _with_int8(folder, status)

    assert load_artifact(folder, has_vnni=has_vnni).precision == precision
    assert load_artifact(folder, "fp32", has_vnni=has_vnni).precision == "fp32"


def test_int8_that_is_asked_for_is_served_whatever_the_gate_said(folder: Path) -> None:
    """Whoever asks for it knows that; a processor that is not made for it computes the same."""
    _with_int8(folder, "not gated")

    for has_vnni in (True, False):
        assert load_artifact(folder, "int8", has_vnni=has_vnni).precision == "int8"


def _with_fp16(folder: Path, status: str) -> None:
    """Offer one of fp32's graphs as the one in half precision, with that outcome of the gate."""
    manifest = read_manifest(folder)
    fp32 = manifest.precisions["fp32"]
    fp16 = replace(fp32, graphs={"cuda": fp32.graphs["interaction"]}, gate={"status": status})
    replace(manifest, precisions={**manifest.precisions, "fp16": fp16}).write(folder)


def test_gpu_serves_half_precision_that_has_passed_unasked_and_other_only_if_asked(folder: Path) -> None:
    """On a CPU nothing changes."""
    _with_fp16(folder, "passed")
    assert load_artifact(folder, on_gpu=True).precision == "fp16"
    assert load_artifact(folder).precision == "fp32"

    _with_fp16(folder, "failed")
    assert load_artifact(folder, "fp16", on_gpu=True).precision == "fp16"
    with pytest.raises(ArtifactError, match="has not passed its gate"):
        load_artifact(folder, on_gpu=True)


def test_provider_opens_the_graph_that_is_its_own(folder: Path) -> None:
    """The three parts, or one of the two in half precision; an artifact of an earlier version has neither."""
    assert [*load_artifact(folder).opened()] == [*PARTS]

    _with_fp16(folder, "passed")
    half = load_artifact(folder, "fp16", on_gpu=True)
    assert [*half.opened(CUDA)] == [CUDA]
    with pytest.raises(ArtifactError, match="lacks the graph standard in fp16; it has cuda: export it again"):
        half.opened()


@pytest.mark.parametrize(("precision", "sentence"), [("fp32", "not those in fp32"), ("auto", "no precision fp16")])
def test_gpu_without_half_precision_is_refused(folder: Path, precision: str, sentence: str) -> None:
    """It is never served by something else in its place."""
    with pytest.raises(ArtifactError, match=sentence):
        load_artifact(folder, precision, on_gpu=True)


def test_manifest_written_and_read_is_the_same(folder: Path) -> None:
    """Nothing is lost between the export and the server."""
    manifest = read_manifest(folder)

    manifest.write(folder)

    assert read_manifest(folder) == manifest


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_load_of_a_damaged_artifact_raises_one_sentence(
    folder: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    """Whatever is wrong is said in a line, with the file that it is about."""
    damage(folder)

    with pytest.raises(ArtifactError, match=sentence) as caught:
        load_artifact(folder)

    assert "\n" not in str(caught.value)


def test_graphs_that_are_not_to_be_opened_are_not_read(folder: Path) -> None:
    """Whoever leaves them to another process need not hash hundreds of megabytes; all else is verified."""
    whole = load_artifact(folder)
    for graph in whole.graphs.values():
        graph.unlink()

    assert load_artifact(folder, opens_graphs=False).identity == whole.identity

    (folder / "labels.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"damaged: labels\.json"):
        load_artifact(folder, opens_graphs=False)


def test_load_of_a_missing_precision_says_what_there_is(folder: Path) -> None:
    """The message names the precisions that the artifact has."""
    with pytest.raises(ArtifactError, match="no precision int8; it has fp32"):
        load_artifact(folder, "int8")
