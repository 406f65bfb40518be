"""Checkpoint to artifact folder: build the module, write its graphs, prove them, write the manifest."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import nn

from export import parity, to_onnx
from export.checkpoint import Checkpoint, CheckpointError
from export.graph import HEADS, Fused, build, heads_of
from models.manifest import LABELS, MANIFEST, TASKS, TOKENIZER, Manifest, Precision, describe_file

TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "pillow")
Report = Callable[[str], None]


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
) -> Manifest:
    """Write an artifact folder of a checkpoint in fp32; `report` is told each step.

    Raises: CheckpointError: no head serves the tasks. parity.ParityError: the graphs are not the model.
        OutputError: the folder cannot be written. Whichever it is, an earlier artifact there stays as it was.
    """
    model = _build(checkpoint)
    _keep_heads(model, checkpoint, tasks)
    with _replacing(output) as folder:
        return _write(checkpoint, model, folder, name=name, description=description, report=report)


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
    report("writing the manifest")
    manifest = Manifest(
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
        tools={tool: version(tool) for tool in TOOLS},
    )
    manifest.write(folder)
    return manifest


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
