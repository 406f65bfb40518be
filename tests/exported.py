"""Graphs that are made for tests: a checkpoint's in both forms, the shipped artifact's in int8."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from export import checkpoint, graph, int8, to_onnx
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


def with_int8(folder: Path) -> Path:
    """Copy the shipped artifact and offer int8 beside fp32."""
    shutil.copytree(SHAPES, folder)
    manifest = read_manifest(folder)
    graphs = int8.quantise(load_artifact(SHAPES).graphs, folder / "int8")
    files = {part: describe_file(folder, f"int8/{path.name}") for part, path in graphs.items()}
    added = dataclasses.replace(manifest.precisions["fp32"], graphs=files, gate={"status": "not gated"})
    dataclasses.replace(manifest, precisions={**manifest.precisions, "int8": added}).write(folder)
    return folder
