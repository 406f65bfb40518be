"""What quantising each kind of matrix product gains in time and costs in answers.

    vilt-export /tmp/vilt --output /tmp/vqa                       # any weights: time does not depend on them
    python -m export.shapes.heldout --output runs/heldout
    python -m export.int8_choices /tmp/vqa --eval-data runs/heldout/data.jsonl --output runs/int8-choices.json

First one kind is quantised and the rest left in fp32, then all of them, then the alternatives. Times are of whole
inferences at full size, in turns; answers are those of a trained artifact (`--trained`), compared with its own in fp32.
"""

import argparse
import json
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
from export.products import add_timing, inputs, measure, run, session
from loadtest.arguments import at_least
from loadtest.stamp import stamp
from models.manifest import PARTS, Artifact, load_artifact

TRAINED = Path(__file__).parents[1] / "models" / "artifacts" / "shapes"
KINDS = QKV, OUT, UP, DOWN, HEADS = (
    *("query, key, value", "attention's output", "feed-forward, up", "feed-forward, down"),
    "pooler and heads",
)
MOVING = {"Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze"}  # nodes that only move data


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
    """How long a choice takes and how its answers compare with fp32's."""

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
        "--trained",
        type=Path,
        default=TRAINED,
        metavar="DIR",
        help="trained artifact whose answers are compared (default: shapes)",
    )
    parser.add_argument(
        "--eval-data", type=Path, required=True, metavar="FILE", help="examples to ask it, as for vilt-export"
    )
    parser.add_argument(
        "--questions",
        type=at_least(1),
        default=2000,
        help="ask at most so many of the examples, evenly spaced (default %(default)s)",
    )
    add_timing(parser, rounds=20)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args()
    described = stamp()
    timed, trained = load_artifact(options.artifact, "fp32"), load_artifact(options.trained, "fp32")
    heads = {*trained.manifest.heads} - {"rank_logits"}  # a rank is many runs
    examples = gate.read(options.eval_data, heads, trained.manifest.spec)
    examples = examples[:: max(1, len(examples) // options.questions)][: options.questions]
    found = measure_choices(timed, trained, examples, rounds=options.rounds, threads=options.threads)
    print(table(found))
    if options.output:
        result = {
            **described,
            "timed": {"name": timed.manifest.name, "threads": options.threads, "rounds": options.rounds},
            "answers": {"name": trained.manifest.name, "questions": len(examples)},
            "choices": [asdict(one) for one in found],
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def measure_choices(
    timed: Artifact, trained: Artifact, examples: Sequence[gate.Example], *, rounds: int, threads: int
) -> list[Found]:
    """Time every choice on one artifact's graphs, in turns, and compare the answers of the other's."""
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
            judge(trained, write(trained.graphs, folder / "trained", choice), examples, choice.name)
            for folder, choice in zip(folders, CHOICES, strict=True)
        ]
    return [
        Found(choice.name, times[choice.name], size, one["agreement"], one["accuracy"], one["max_score_difference"])
        for choice, size, one in zip(CHOICES, sizes, judged, strict=True)
    ]


def write(fp32: dict[str, Path], folder: Path, choice: Choice) -> dict[str, Path]:
    """Write an artifact's graphs with a choice's products on integers; graphs without any stay where they are."""
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
    """Return the kind of each product with a weight in `interaction`, by its node's name."""
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


def judge(trained: Artifact, graphs: dict[str, Path], examples: Sequence[gate.Example], label: str) -> dict[str, Any]:
    """Compare the answers of a choice with fp32's, as the gate does."""
    return gate.check(
        parity.onnx_runner(trained.graphs),
        parity.onnx_runner(graphs),
        examples,
        heads=trained.manifest.heads,
        spec=trained.manifest.spec,
        encoder=trained.text_encoder,
        labels=trained.labels,
        limits=gate.INT8,
        progress=lambda some: tqdm(some, desc=label, unit="example", disable=None, leave=False),
    )


def table(found: list[Found]) -> str:
    """Format the results in Markdown, as in the documentation; the first choice is fp32."""
    columns = "int8", "ms", "of fp32's", "MB", "answers as in fp32", "correct", "largest score difference"
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
