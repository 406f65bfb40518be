"""Checkpoint to artifact folder: build the module, write its graphs, prove them, write the manifest."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
from torch import nn
from tqdm import tqdm

from export import fp16, gate, int8, parity, to_onnx
from export.checkpoint import Checkpoint, CheckpointError
from export.graph import HEADS, Fused, build, heads_of
from models.manifest import LABELS, MANIFEST, TASKS, TOKENIZER, Manifest, Precision, describe_file
from models.text import TextEncoder

TOOLS = ("torch", "transformers", "onnx", "tokenizers", "pillow")
Report = Callable[[str], None]
Graphs = dict[str, Path]


@dataclass(frozen=True, slots=True)
class Lower:
    """Graphs of a lower precision, as written, and how far they may be from fp32."""

    name: str
    graphs: Graphs
    limits: gate.Limits
    runs_alone: bool
    judged: parity.Runner | None = None  # in the graphs' place, where a CPU does not round as the hardware will


class OutputError(Exception):
    """The artifact folder cannot be written; the message says why."""


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
) -> Manifest:
    """Write an artifact folder of a checkpoint in fp32, and in a lower precision if asked to; `report` hears each step.

    Raises: CheckpointError: no head serves the tasks. parity.ParityError: the graphs are not the model.
        gate.GateError: the evaluation data is of no use. OutputError: the folder cannot be written. Whichever it is,
        an earlier artifact there stays as it was.
    """
    model = _build(checkpoint)
    _keep_heads(model, checkpoint, tasks)
    asked = gate.read(eval_data, model.interaction.heads) if eval_data else []
    with _replacing(output) as folder:
        manifest = _write(checkpoint, model, folder, name=name, description=description, report=report)
        if precision != "fp32":
            report(f"{precision}: writing")
            fp32 = {part: folder / entry.file for part, entry in manifest.precisions["fp32"].graphs.items()}
            lower = LOWER[precision](checkpoint, model, fp32, folder / precision)
            manifest = _add(manifest, checkpoint, folder, lower, asked=asked, report=report)
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
    found = parity.check(checkpoint, model, {part: folder / file for part, file in graphs.items()})
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
        source={
            "checkpoint": Path(checkpoint.source).name if Path(checkpoint.source).exists() else checkpoint.source,
            "architectures": checkpoint.raw_config.get("architectures", []),
            "rank_logits": _rank_origin(checkpoint),
        },
        # onnxruntime may be installed as onnxruntime-gpu
        tools={**{tool: version(tool) for tool in TOOLS}, "onnxruntime": onnxruntime.__version__},
    )


def _int8(_: Checkpoint, __: Fused, fp32: Graphs, folder: Path) -> Lower:
    return Lower("int8", int8.quantise(fp32, folder), gate.INT8, runs_alone=True)


def _fp16(checkpoint: Checkpoint, model: Fused, _: Graphs, folder: Path) -> Lower:
    half = fp16.Half(model)
    whole = to_onnx.whole(half, model.interaction.heads, checkpoint.config)
    graphs = {whole.name: folder / f"{whole.name}.onnx"}
    to_onnx.write(whole, graphs[whole.name])
    judged = parity.torch_runner(fp16.rounded(half))
    return Lower("fp16", graphs, gate.FP16, runs_alone=False, judged=judged)


LOWER = {"int8": _int8, "fp16": _fp16}


def _add(
    manifest: Manifest,
    checkpoint: Checkpoint,
    folder: Path,
    lower: Lower,
    *,
    asked: Sequence[gate.Asked],
    report: Report,
) -> Manifest:
    """Say in the manifest what a lower precision is, and what it costs in answers."""
    fp32 = {part: folder / entry.file for part, entry in manifest.precisions["fp32"].graphs.items()}
    ours, reference = parity.onnx_runner(lower.graphs), parity.onnx_runner(fp32)
    report(f"{lower.name}: comparing with fp32")
    found: dict[str, Any] = gate.NOT_GATED
    if asked:
        found = gate.check(
            reference,
            lower.judged or ours,
            asked,
            heads=manifest.heads,
            spec=manifest.spec,
            encoder=TextEncoder(folder / TOKENIZER, manifest.spec.max_text_tokens),
            labels=checkpoint.labels or (),
            limits=lower.limits,
            progress=lambda rows: tqdm(
                rows, desc=f"{lower.name} against fp32", unit="question", leave=False, disable=None
            ),
        )
    precision = Precision(
        graphs={part: describe_file(folder, f"{lower.name}/{path.name}") for part, path in lower.graphs.items()},
        opset=to_onnx.OPSET,
        parity=parity.compare(checkpoint, ours, reference, with_batches=not lower.runs_alone),
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


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Give a folder to write to, whose files replace an earlier export's once all of them are there.

    Raises: OutputError: the system refuses to write, be it at the start or at the last byte of a full disk.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Inside the output: a rename then crosses no file system, should the output itself be mounted.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output) as staging:
            yield Path(staging)
            _replace(output, Path(staging))
    except OSError as error:
        raise OutputError(
            f"The artifact cannot be written to {output} ({error.strerror or error}): give --output a folder that can"
            " be written to."
        ) from error


def _replace(output: Path, complete: Path) -> None:
    """Remove what an earlier export wrote, and only that; a folder is served by its manifest: first out, last in."""
    for file in (MANIFEST, LABELS):
        (output / file).unlink(missing_ok=True)
    for precision in ("fp32", "int8", "fp16"):
        if (output / precision).exists():
            shutil.rmtree(output / precision)
    for path in sorted(complete.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(output / path.name)


def _keep_heads(model: Fused, checkpoint: Checkpoint, tasks: Sequence[str]) -> None:
    """Drop the heads that no wanted task reads."""
    found = heads_of(checkpoint.state)
    if not found:
        raise CheckpointError(
            "The checkpoint has no head to serve: looked for classifier (VQA), itm_score (matching) and rank_output"
            " (retrieval). A masked-language-model checkpoint answers nothing."
        )
    wanted = {head for task in tasks or TASKS for head in TASKS[task]}
    kept = [head for head in HEADS if head in found and head in wanted]
    unserved = [task for task in tasks if not any(head in found for head in TASKS[task])]
    if unserved or not kept:
        raise CheckpointError(f"The checkpoint has {', '.join(found)}, which cannot serve {', '.join(unserved)}.")
    for head in set(found) - set(kept):
        del model.interaction.heads[head]


def _width(module: nn.Module) -> int:
    return int(list(module.parameters())[-1].shape[0])  # the last bias of a head


def _rank_origin(checkpoint: Checkpoint) -> str | None:
    if "rank_output.weight" in checkpoint.state:
        return "rank_output"
    return "itm_score.fc, row 1 (the true pair)" if "itm_score.fc.weight" in checkpoint.state else None
