"""What int8 of each kind of product gains, and costs: time at full size, answers of a trained model.

    vilt-export /tmp/vilt --output /tmp/vqa                       # any weights: time does not depend on them
    python -m export.shapes.heldout --output runs/heldout
    python -m export.int8_choices /tmp/vqa --eval-data runs/heldout/data.jsonl --output runs/int8-choices.json

One kind is quantised and the rest left in fp32; then all of them, and what could be done otherwise. Times are of whole
inferences in turns; answers are those of the artifact `--trained` beside its own in fp32, one at a time.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from tqdm import tqdm

from export import gate, int8, parity
from export.products import PARTS, inputs, measure, run, session
from loadtest.stamp import stamp
from models.manifest import Artifact, load_artifact

TRAINED = Path(__file__).parents[1] / "models" / "artifacts" / "shapes"
KINDS = QKV, OUT, UP, DOWN, HEADS = (
    *("query, key, value", "attention's output", "feed-forward, up", "feed-forward, down"),
    "pooler and heads",
)
MOVING = {"Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze"}  # nodes that compute nothing


@dataclass(frozen=True, slots=True)
class Choice:
    """Which products run on integers, and how their weights are rounded."""

    name: str
    kinds: tuple[str, ...] = ()
    patches: bool = False
    per_channel: bool = True


CHOICES = (
    Choice("none"),
    Choice("visual embedding", patches=True),
    *(Choice(kind, (kind,)) for kind in KINDS),
    Choice("all with a weight: kept", KINDS, patches=True),
    Choice("the same, one scale a matrix", KINDS, patches=True, per_channel=False),
    *(
        Choice(f"all but {kind}", tuple(other for other in KINDS if other != kind), patches=True)
        for kind in (DOWN, HEADS)
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a choice takes and what it changes."""

    choice: str
    ms: dict[str, float]
    megabytes: float
    agreement: float
    accuracy: float | None
    max_score_difference: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder written by vilt-export: its graphs are timed")
    parser.add_argument(
        "--trained", type=Path, default=TRAINED, metavar="DIR", help="artifact that answers (default: shapes)"
    )
    parser.add_argument("--eval-data", type=Path, required=True, metavar="FILE", help="what it is asked: JSON lines")
    parser.add_argument("--questions", type=int, default=2000, help="at most, evenly taken (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args()
    described = stamp()
    timed, trained = load_artifact(options.artifact, "fp32"), load_artifact(options.trained, "fp32")
    heads = {*trained.manifest.heads} - {"rank_logits"}  # a rank is many runs
    asked = gate.read(options.eval_data, heads, trained.manifest.spec)
    asked = asked[:: max(1, len(asked) // options.questions)][: options.questions]
    found = weigh(timed, trained, asked, rounds=options.rounds, threads=options.threads)
    print(table(found))
    if options.output:
        result = {
            **described,
            "timed": {"name": timed.manifest.name, "threads": options.threads, "rounds": options.rounds},
            "answers": {"name": trained.manifest.name, "questions": len(asked)},
            "choices": [asdict(one) for one in found],
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def weigh(timed: Artifact, trained: Artifact, asked: Sequence[gate.Asked], *, rounds: int, threads: int) -> list[Found]:
    """Time every choice on one artifact's graphs, in turns, and ask the other's."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, str(number)) for number in range(len(CHOICES))]
        graphs = [write(timed.graphs, folder, choice) for folder, choice in zip(folders, CHOICES, strict=True)]
        sizes = [sum(graphs[number][part].stat().st_size for part in PARTS) / 1e6 for number in range(len(CHOICES))]
        values = inputs(np.random.default_rng(0))
        calls: dict[str, Callable[[], None]] = {}
        for choice, some in zip(CHOICES, graphs, strict=True):
            calls[choice.name] = _inference([session(some[part].read_bytes(), threads) for part in PARTS], values)
        times = measure(calls, rounds)
        calls.clear()
        judged = [
            judge(trained, write(trained.graphs, folder / "trained", choice), asked, choice.name)
            for folder, choice in zip(folders, CHOICES, strict=True)
        ]
    return [
        Found(choice.name, times[choice.name], size, one["agreement"], one["accuracy"], one["max_score_difference"])
        for choice, size, one in zip(CHOICES, sizes, judged, strict=True)
    ]


def write(fp32: dict[str, Path], folder: Path, choice: Choice) -> dict[str, Path]:
    """Write an artifact's graphs with a choice's products on integers; those without any stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs = dict(fp32)
    if choice.patches:
        graphs["visual_embedding"] = folder / "visual_embedding.onnx"
        onnx.save(int8.with_integer_patches(onnx.load(fp32["visual_embedding"])), graphs["visual_embedding"])
    if choice.kinds:
        interaction = onnx.load(fp32["interaction"])
        kinds = kinds_of(interaction)
        graphs["interaction"] = folder / "interaction.onnx"
        int8.quantise_products(
            interaction,
            graphs["interaction"],
            nodes=[name for name, kind in kinds.items() if kind in choice.kinds],
            per_channel=choice.per_channel,
        )
    return graphs


def kinds_of(model: ModelProto) -> dict[str, str]:
    """Say of each product with a weight of `interaction`, by its node's name, what it is for."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in shapes]
    return {node.name: _kind(node, makers, shapes) for node in products}


def _kind(node: NodeProto, makers: dict[str, NodeProto], shapes: dict[str, tuple[int, ...]]) -> str:
    if node.op_type == "Gemm":
        return HEADS
    maker, (rows, columns) = makers[node.input[0]], shapes[node.input[1]]
    while maker.op_type in MOVING:
        maker = makers[maker.input[0]]
    match maker.op_type:
        case "Gelu":
            return DOWN
        case "LayerNormalization":
            return UP if columns > 3 * rows else QKV
        case _:
            return OUT


def judge(trained: Artifact, graphs: dict[str, Path], asked: Sequence[gate.Asked], label: str) -> dict[str, Any]:
    """Ask fp32 and a choice the same; the gate's own comparison."""
    return gate.check(
        parity.onnx_runner(trained.graphs),
        parity.onnx_runner(graphs),
        asked,
        heads=trained.manifest.heads,
        spec=trained.manifest.spec,
        encoder=trained.text_encoder,
        labels=trained.labels,
        limits=gate.INT8,
        progress=lambda some: tqdm(some, desc=label, unit="question", disable=None, leave=False),
    )


def table(found: list[Found]) -> str:
    """Say it in Markdown, as the documentation has it; times as ratios to fp32's, the first."""
    columns = "int8", "ms", "of fp32's", "MB", "answers as in fp32", "right", "largest difference of a score"
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for one in found:
        accuracy = "" if one.accuracy is None else f"{100 * one.accuracy:.2f} %"
        lines.append(
            f"| {one.choice} | {one.ms['median']:.1f} ({one.ms['p25']:.1f} to {one.ms['p75']:.1f})"
            f" | {one.ms['median'] / found[0].ms['median']:.2f} | {one.megabytes:.0f}"
            f" | {100 * one.agreement:.2f} % | {accuracy} | {one.max_score_difference:.3f} |"
        )
    return "\n".join(lines)


def _inference(sessions: list[Any], values: dict[str, Any]) -> Callable[[], None]:
    return lambda: run(sessions, dict(values))


if __name__ == "__main__":
    main()
