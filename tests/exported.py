"""A checkpoint with its graphs in both forms."""

from dataclasses import dataclass
from pathlib import Path

from export import checkpoint, graph, to_onnx


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
