"""Checkpoint to artifact folder: build the module, write its graphs, prove them, write the manifest."""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import nn

from export import parity, to_onnx
from export.checkpoint import Checkpoint, CheckpointError
from export.graph import HEADS, Fused, build, heads_of
from models.manifest import LABELS, MANIFEST, TASKS, TOKENIZER, Manifest, Precision, describe_file

TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "pillow")
Report = Callable[[str], None]


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
    """
    model = _build(checkpoint)
    _keep_heads(model, checkpoint, tasks)
    output.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for part in to_onnx.three_parts(model, checkpoint.config):
        report(f"fp32: writing {part.name}")
        graphs[part.name] = f"fp32/{part.name}.onnx"
        to_onnx.write(part, output / graphs[part.name])
    report("fp32: comparing with torch and transformers")
    found = parity.check(checkpoint, model, {part: output / file for part, file in graphs.items()})
    files = [TOKENIZER]
    checkpoint.tokenizer.save(str(output / TOKENIZER))
    if checkpoint.labels is not None and "vqa_logits" in model.interaction.heads:
        (output / LABELS).write_text(json.dumps(checkpoint.labels, indent=0, ensure_ascii=False) + "\n")
        files.append(LABELS)
    report("writing the manifest")
    manifest = Manifest(
        name=name,
        description=description,
        spec=checkpoint.config.spec,
        heads={head: _width(module) for head, module in model.interaction.heads.items()},
        files={file: describe_file(output, file) for file in files},
        precisions={
            "fp32": Precision(
                graphs={part: describe_file(output, file) for part, file in graphs.items()},
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
    manifest.write(output)
    return manifest


def _build(checkpoint: Checkpoint) -> Fused:
    try:
        return build(checkpoint.config, checkpoint.state)
    except KeyError as error:
        raise CheckpointError(f"The checkpoint lacks the weight {error}.") from error
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint's weights do not fit its config.json: {error}.") from error


def clear(output: Path) -> None:
    """Remove what an earlier export left: a folder without a manifest is not served, should this export fail."""
    (output / MANIFEST).unlink(missing_ok=True)
    for folder in ("fp32", "int8", "fp16"):
        shutil.rmtree(output / folder, ignore_errors=True)


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
