"""Write designs to a folder: one ONNX file per graph, and the plan `claims.json`: steps, parameters and MACs."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.export import Dim

from export import to_onnx
from export.claims import vilt
from export.claims.count import Weights, count_macs, count_parameters, skeleton
from export.claims.designs import Design, designs
from export.claims.sizes import Sizes
from export.claims.step import Step
from export.claims.weights import draw

PLAN = "claims.json"
FORMAT_VERSION = 3
TOOLS = ("torch", "onnx", "onnxscript")
INTEGERS = ("input_ids", "kept")  # every other tensor is float32
Report = Callable[[str], None]


def write(output: Path, sizes: Sizes, names: Iterable[str], report: Report) -> None:
    """Write the named designs' graphs, ViLT's artifact included, and the plan; graphs that are there already are kept.

    Raises: ValueError: the folder holds graphs of other sizes or of another version.
    """
    output.mkdir(parents=True, exist_ok=True)
    if (output / PLAN).exists():
        there = json.loads((output / PLAN).read_text())
        if (there["format_version"], there["sizes"]) != (FORMAT_VERSION, asdict(sizes)):
            raise ValueError(f"{output} holds graphs of other sizes or another version: give --output another folder")
    wanted = set(names)
    plans = []
    graphs: dict[str, tuple[Weights, onnx.ModelProto]] = {}
    for design in designs(sizes):
        if design.name in wanted:
            steps = []
            for step in design.steps:
                if step.graph not in graphs:
                    report(f"{design.title}: {step.graph}")
                    graphs[step.graph] = graph(step, output / f"{step.graph}.onnx")
                weights, light = graphs[step.graph]
                described = {"stage": step.stage, "graph": f"{step.graph}.onnx"}
                steps.append({**described, **asdict(weights), **asdict(count_macs(light, step.inputs))})
            plans.append(_plan(design, steps, sizes))
    if vilt.NAME in wanted:
        report("ViLT: artifact")
        plans.append(vilt.write(output, sizes))
    tools = {name: version(name) for name in TOOLS}
    plan = {"format_version": FORMAT_VERSION, "sizes": asdict(sizes), "tools": tools, "designs": plans}
    (output / PLAN).write_text(json.dumps(plan, indent=1) + "\n")


def graph(step: Step, path: Path) -> tuple[Weights, onnx.ModelProto]:
    """Write a graph unless it is there; return its parameters, and the graph without its weights' values."""
    if not path.exists():
        unfinished = path.with_suffix(".part")
        built = step.build()
        if isinstance(built, onnx.ModelProto):
            onnx.save(built, unfinished)
        else:
            to_onnx.write(_part(step, draw(built)), unfinished, step.opset)
        unfinished.rename(path)
    model = onnx.load(path)
    return count_parameters(model), skeleton(model)


def _part(step: Step, module: torch.nn.Module) -> to_onnx.Part:
    dynamic = {name: dict.fromkeys(step.free.get(name, ()), Dim.DYNAMIC) for name in step.inputs}
    inputs = {name: _example(name, shape, step.free.get(name, ())) for name, shape in step.inputs.items()}
    return to_onnx.Part(step.graph, module, inputs, dynamic, list(step.outputs))


def _example(name: str, shape: tuple[int, ...], free: tuple[int, ...]) -> Tensor:
    """Make an input to trace with; a free axis must not be 1, which would be taken for a constant."""
    traced = [max(size, 2 + axis) if axis in free else size for axis, size in enumerate(shape)]
    return torch.zeros(traced, dtype=torch.long if name in INTEGERS else torch.float32)


def _plan(design: Design, steps: list[dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    made = {name for step in design.steps for name in step.outputs}
    sources = {
        name: {"shape": shape, "dtype": "int64" if name in INTEGERS else "float32"}
        for step in design.steps
        for name, shape in step.inputs.items()
        if name not in made
    }
    if "input_ids" in sources:
        sources["input_ids"]["below"] = sizes.width(vilt.SMALLEST_VOCABULARY)
    return {
        "name": design.name,
        "title": design.title,
        "family": design.family,
        "image_px": design.image_px,
        "visual_tokens": design.visual_tokens,
        "text_tokens": design.text_tokens,
        "sources": sources,
        "steps": steps,
    }
