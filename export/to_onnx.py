"""Write the torch module to ONNX files: tensor names, dynamic axes, one file per graph."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import Dim

from export.graph import Fused, GraphConfig

OPSET = 23  # the first with Attention


@dataclass(frozen=True, slots=True)
class Part:
    """One graph to write: its module, inputs by name with their dynamic axes, and output names."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, Any]]
    outputs: list[str]


def three_parts(model: Fused, config: GraphConfig) -> list[Part]:
    """Cut the model into the parts that the paper times: text embedding, visual embedding, interaction."""
    ids, patches, position_ids, mask = example_feeds(config).values()
    text, image = model.text_embedding(ids), model.visual_embedding(patches, position_ids)
    seen = {"patches": patches, "position_ids": position_ids}
    joined = {"text": text, "image": image, "mask": mask}
    return [
        _part("text_embedding", model.text_embedding, {"input_ids": ids}, ["text"]),
        _part("visual_embedding", model.visual_embedding, seen, ["image"]),
        _part("interaction", model.interaction, joined, list(model.interaction.heads)),
    ]


def whole(model: Fused, config: GraphConfig) -> Part:
    """Take a model as one graph."""
    return _part("model", model, example_feeds(config), list(model.interaction.heads))


def _part(name: str, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> Part:
    """Leave batch, text length and number of patches free: the first two axes of every input."""
    return Part(name, module, inputs, {key: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for key in inputs}, outputs)


def example_feeds(config: GraphConfig) -> dict[str, Tensor]:
    """Make inputs to trace with; sizes are above 1 and all different, so that no axis is taken for a constant."""
    batch, length, num_patches = 2, 5, 7
    return {
        "input_ids": torch.ones(batch, length, dtype=torch.long),
        "patches": torch.zeros(batch, num_patches, config.spec.patch_values, dtype=torch.uint8),
        "position_ids": torch.ones(batch, num_patches, dtype=torch.long),
        "mask": torch.ones(batch, length + 1 + num_patches, dtype=torch.bool),
    }


def write(part: Part, path: Path, opset: int = OPSET, functions: Sequence[onnx.FunctionProto] = ()) -> None:
    """Write one graph to one self-contained file, with what operators of our own are made of, and check it.

    Raises: onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        program = torch.onnx.export(
            part.module,
            args=tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=part.outputs,
            dynamic_shapes=tuple(part.dynamic.values()),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        ClearMetadataAndDocStringPass()(program.model)  # they contain paths of this machine
        for function in map(onnx_ir.from_proto, functions):
            program.model.functions[function.identifier()] = function
        _leave_out_unused(program.model.graph)
        program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))


def _leave_out_unused(graph: Any) -> None:
    """Unname what nothing reads of onnxruntime's own operators: a kernel may not have an optional output."""
    for output in (one for node in graph if node.domain == "com.microsoft" for one in node.outputs[1:]):
        if not output.uses():
            output.name = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress messages; ours are shown instead."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
