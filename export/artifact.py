"""Checkpoint to artifact folder: build the module, write its graphs, check them, write the manifest."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
from torch import nn
from tqdm import tqdm

from export import cuda, fp16, gate, int8, kernels, output_folder, parity, to_onnx
from export.checkpoint import Checkpoint, CheckpointError
from export.graph import Fused, build, heads_of
from models.manifest import CUDA, KERNELS, LABELS, STANDARD, TASKS, TOKENIZER, Manifest, Precision, describe_file
from models.text import TextEncoder

TOOLS = ("torch", "transformers", "onnx", "tokenizers", "pillow")
Report = Callable[[str], None]
Graphs = dict[str, Path]


@dataclass(frozen=True, slots=True)
class LowPrecision:
    """The written graphs of a lower precision, and how far they may be from fp32."""

    name: str
    graphs: Graphs
    limits: gate.Limits
    alternatives: bool  # each of the graphs is the whole model
    runs_alone: bool
    # Run instead of the graphs by the gate, by their names: a CPU does not round as a GPU does.
    simulated: dict[str, parity.Runner] = field(default_factory=dict)


def write_artifact(
    checkpoint: Checkpoint,
    output: Path,
    *,
    name: str,
    description: str,
    tasks: Sequence[str],
    report: Report,
    precision: str = "fp32",
    eval_data: Path | None = None,
    own_kernels: bool = False,
) -> Manifest:
    """Write an artifact folder in fp32 and, if asked to, in a lower precision; `report` is called with each step.

    With `own_kernels` that is fp16, whatever `precision` says.

    Raises: CheckpointError: no head serves the tasks, or our kernels cannot run the model.
        parity.ParityError: the graphs differ from the model. gate.GateError: the evaluation data cannot be used.
        output_folder.OutputError: the folder cannot be written.
        In every case an earlier artifact in the folder stays as it was.
    """
    if own_kernels:
        precision = "fp16"
    model = _build(checkpoint)
    if own_kernels and not kernels.can_run(model):
        raise CheckpointError(f"The kernels cannot run this model: {kernels.SIZES}. Leave --kernels out.")
    keep_heads(model, checkpoint, tasks)
    examples = gate.read(eval_data, model.interaction.heads, checkpoint.config.spec) if eval_data else []
    with output_folder.replacing(output) as folder:
        manifest = _write(checkpoint, model, folder, name=name, description=description, report=report)
        if precision != "fp32":
            report(f"{precision}: writing")
            fp32 = {part: folder / entry.file for part, entry in manifest.precisions["fp32"].graphs.items()}
            lower = LOWER["kernels" if own_kernels else precision](checkpoint, model, fp32, folder / precision)
            manifest = _add(manifest, checkpoint, folder, fp32, lower, examples=examples, report=report)
        report("writing the manifest")
        manifest.write(folder)
        return manifest


def _write(
    checkpoint: Checkpoint, model: Fused, folder: Path, *, name: str, description: str, report: Report
) -> Manifest:
    graphs = {}
    for part in to_onnx.three_parts(model, checkpoint.config):
        report(f"fp32: writing {part.name}")
        graphs[part.name] = f"fp32/{part.name}.onnx"
        to_onnx.write(part, folder / graphs[part.name])
    report("fp32: comparing with torch and transformers")
    found = parity.check(
        checkpoint,
        model,
        {part: folder / file for part, file in graphs.items()},
        progress=lambda batches: tqdm(
            batches, desc="fp32 against torch and transformers", unit="batch", leave=False, disable=None
        ),
    )
    files = [TOKENIZER]
    checkpoint.tokenizer.save(str(folder / TOKENIZER))
    if checkpoint.labels is not None and "vqa_logits" in model.interaction.heads:
        (folder / LABELS).write_text(json.dumps(checkpoint.labels, indent=0, ensure_ascii=False) + "\n")
        files.append(LABELS)
    return Manifest(
        name=name,
        description=description,
        spec=checkpoint.config.spec,
        heads={head: _width(module) for head, module in model.interaction.heads.items()},
        files={file: describe_file(folder, file) for file in files},
        precisions={
            "fp32": Precision(
                graphs={part: describe_file(folder, file) for part, file in graphs.items()},
                opset=to_onnx.OPSET,
                parity=found,
            )
        },
        source=_source(checkpoint, ranks="rank_logits" in model.interaction.heads),
        # onnxruntime may be installed as onnxruntime-gpu
        tools={**{tool: version(tool) for tool in TOOLS}, "onnxruntime": onnxruntime.__version__},
    )


def _int8(_: Checkpoint, __: Fused, fp32: Graphs, folder: Path) -> LowPrecision:
    return LowPrecision("int8", int8.quantise(fp32, folder), gate.INT8, alternatives=False, runs_alone=True)


def _fp16(checkpoint: Checkpoint, model: Fused, _: Graphs, folder: Path, *, name: str, own: Any) -> LowPrecision:
    """Write a graph of standard operators, and one of that name of a module's own."""
    half = fp16.half(model)
    fused = own.fused(half)
    graphs = {one: folder / f"{one}.onnx" for one in (name, STANDARD)}
    to_onnx.write(to_onnx.whole(fused, checkpoint.config), graphs[name], functions=own.FUNCTIONS)
    to_onnx.write(to_onnx.whole(half, checkpoint.config), graphs[STANDARD])
    simulated = {name: parity.torch_runner(own.rounded(fused)), STANDARD: parity.torch_runner(fp16.rounded(half))}
    return LowPrecision("fp16", graphs, gate.FP16, alternatives=True, runs_alone=False, simulated=simulated)


LOWER = {
    "int8": _int8,
    "fp16": partial(_fp16, name=CUDA, own=cuda),
    "kernels": partial(_fp16, name=KERNELS, own=kernels),
}


def _add(
    manifest: Manifest,
    checkpoint: Checkpoint,
    folder: Path,
    fp32: Graphs,
    lower: LowPrecision,
    *,
    examples: Sequence[gate.Example],
    report: Report,
) -> Manifest:
    """Add a lower precision to the manifest, with its distance from fp32 and the gate's verdict."""
    parts = [{name: path} for name, path in lower.graphs.items()] if lower.alternatives else [lower.graphs]
    ours, reference = [*map(parity.onnx_runner, parts)], parity.onnx_runner(fp32)
    report(f"{lower.name}: comparing with fp32")
    compared = max(
        (parity.compare(checkpoint, one, reference, with_batches=not lower.runs_alone) for one in ours),
        key=lambda found: found["max_logit_difference_to_fp32"],
    )
    for one in lower.simulated.values():  # on a CPU the graphs' products run in fp32 and cannot overflow
        furthest = parity.compare(checkpoint, one, reference)["max_logit_difference_to_fp32"]
        key = "max_logit_difference_to_fp32_as_rounded"
        compared[key] = max(furthest, compared.get(key, 0.0))

    def judged(graph: str, run: parity.Runner) -> dict[str, Any]:
        verdict = gate.check(
            reference,
            run,
            examples,
            heads=manifest.heads,
            spec=manifest.spec,
            encoder=TextEncoder(folder / TOKENIZER, manifest.spec.max_text_tokens),
            labels=checkpoint.labels or (),
            limits=lower.limits,
            progress=lambda rows: tqdm(rows, desc=f"{graph} against fp32", unit="example", leave=False, disable=None),
        )
        return {**verdict, "graph": graph} if lower.alternatives else verdict

    found: dict[str, Any] = gate.NOT_GATED
    if examples:
        runs = lower.simulated or {lower.name: ours[0]}
        try:
            verdicts = [judged(graph, run) for graph, run in runs.items()]
            found = next((one for one in verdicts if one["status"] != "passed"), verdicts[0])
        except gate.GateError as error:  # one bad picture must not lose the whole export
            found = {"status": "not gated", "why": str(error).rstrip(".")}
    precision = Precision(
        graphs={part: describe_file(folder, f"{lower.name}/{path.name}") for part, path in lower.graphs.items()},
        opset=to_onnx.OPSET,
        parity=compared,
        gate=found,
    )
    return replace(manifest, precisions={**manifest.precisions, lower.name: precision})


def _build(checkpoint: Checkpoint) -> Fused:
    try:
        return build(checkpoint.config, checkpoint.state)
    except KeyError as error:
        raise CheckpointError(f"The checkpoint lacks the weight {error}.") from error
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint's weights do not fit its config.json: {error}.") from error


def keep_heads(model: Fused, checkpoint: Checkpoint, tasks: Sequence[str]) -> None:
    """Drop the heads that none of the tasks needs; what ranks also matches, so it keeps the matching head, too.

    Raises: CheckpointError: no head serves one of the tasks, or the VQA head is kept and its answers have no names.
    """
    found = heads_of(checkpoint.state)
    if not found:
        raise CheckpointError(
            "The checkpoint has no head to serve: looked for classifier (VQA), itm_score (matching) and rank_output"
            " (retrieval). A masked-language-model checkpoint answers nothing."
        )
    unserved = [task for task in tasks if not any(head in found for head in TASKS[task])]
    if unserved:
        raise CheckpointError(f"The checkpoint has {', '.join(found)}, which cannot serve {', '.join(unserved)}.")
    kept = {next(head for head in TASKS[task] if head in found) for task in tasks} or set(found)
    if "rank_logits" in kept:
        kept.add("itm_logits")
    if "vqa_logits" in kept and checkpoint.labels is None:
        raise CheckpointError(
            "The checkpoint names no answers: give --labels a JSON list, or object of index to answer."
        )
    for head in set(found) - kept:
        del model.interaction.heads[head]


def _width(module: nn.Module) -> int:
    return int(list(module.parameters())[-1].shape[0])  # the last bias of a head


def _source(checkpoint: Checkpoint, *, ranks: bool) -> dict[str, Any]:
    """Describe the checkpoint that an artifact was made from."""
    own = "rank_output.weight" in checkpoint.state
    return {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "architectures": checkpoint.raw_config.get("architectures", []),
        "rank_logits": None if not ranks else "rank_output" if own else "itm_score.fc, row 1 (the true pair)",
    }
