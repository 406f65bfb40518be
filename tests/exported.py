"""Graphs that are made for tests: a checkpoint's in both forms, the shipped artifact's in int8."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export import checkpoint, graph, int8, parity, to_onnx
from models.batch import Feeds, collate
from models.manifest import describe_file, load_artifact, read_manifest
from server.settings import SHAPES


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it was written from."""

    loaded: checkpoint.Checkpoint
    model: graph.Fused
    three_parts: dict[str, Path]
    fused: dict[str, Path]


def export_both_forms(folder: Path, loaded: checkpoint.Checkpoint) -> Exported:
    """Write a checkpoint's graphs as three parts and as one."""
    model = graph.build(loaded.config, loaded.state)
    parts = to_onnx.three_parts(model, loaded.config)
    fused = to_onnx.whole(model, loaded.config)
    for part in (*parts, fused):
        to_onnx.write(part, folder / f"{part.name}.onnx")
    return Exported(
        loaded,
        model,
        {part.name: folder / f"{part.name}.onnx" for part in parts},
        {fused.name: folder / f"{fused.name}.onnx"},
    )


def padded_and_spoilt(loaded: checkpoint.Checkpoint) -> tuple[Feeds, Feeds]:
    """Make a batch with padding after texts and after pictures, and the same with other values where it is masked."""
    samples = next(batch for batch in parity.cases(loaded.config, 64) if len(batch) == 3)
    feeds = collate([sample.features(loaded.config) for sample in samples])
    length = feeds.input_ids.shape[1]
    text, image = feeds.mask[:, :length], feeds.mask[:, length + 1 :]
    assert not text.all()
    assert not image.all()
    spoilt = Feeds(
        np.where(text, feeds.input_ids, 7),
        np.where(image[..., None], feeds.patches, 255).astype(np.uint8),
        np.where(image, feeds.position_ids, 9),
        feeds.mask,
    )
    return feeds, spoilt


def with_int8(folder: Path) -> Path:
    """Copy the shipped artifact and offer int8 beside fp32."""
    shutil.copytree(SHAPES, folder)
    manifest = read_manifest(folder)
    graphs = int8.quantise(load_artifact(SHAPES).graphs, folder / "int8")
    files = {part: describe_file(folder, f"int8/{path.name}") for part, path in graphs.items()}
    added = dataclasses.replace(manifest.precisions["fp32"], graphs=files, gate={"status": "not gated"})
    dataclasses.replace(manifest, precisions={**manifest.precisions, "int8": added}).write(folder)
    return folder
