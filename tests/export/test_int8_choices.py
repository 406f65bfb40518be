"""Choices of int8: that each quantises what its name says, and that one that is kept is what vilt-export writes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import int8, int8_choices, parity
from export.int8_choices import CHOICES, HEADS, KINDS, QKV
from export.products import inputs
from export.shapes import heldout
from models.batch import Feeds
from models.manifest import load_artifact
from server.settings import SHAPES

ROOT = Path(__file__).parents[2]


def test_every_product_of_the_graph_is_of_one_kind() -> None:
    """Three in each layer for query, key and value; attention's own are in a node that stays fp32."""
    graph = onnx.load(load_artifact(SHAPES, "fp32").graphs["interaction"])

    kinds = Counter(int8_choices.kinds_of(graph).values())

    layers = sum(node.op_type == "Attention" for node in graph.graph.node)
    assert set(kinds) == set(KINDS)
    assert kinds[QKV] == 3 * layers
    assert all(kinds[kind] == layers for kind in KINDS if kind not in (QKV, HEADS))
    assert kinds[HEADS] >= 2  # the pooler and a head


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_choice_quantises_the_products_of_its_kinds(tmp_path: Path, choice: int8_choices.Choice) -> None:
    """No others, whatever their operator."""
    fp32 = load_artifact(SHAPES, "fp32").graphs
    kinds = Counter(int8_choices.kinds_of(onnx.load(fp32["interaction"])).values())

    graphs = int8_choices.write(fp32, tmp_path, choice)

    operators = Counter(node.op_type for node in onnx.load(graphs["interaction"]).graph.node)
    assert operators["MatMulInteger"] == sum(kinds[kind] for kind in choice.kinds)
    assert (graphs["visual_embedding"] != fp32["visual_embedding"]) == choice.patches


def test_kept_choice_is_what_is_exported(tmp_path: Path) -> None:
    """Or the table would say nothing of the artifacts."""
    fp32 = load_artifact(SHAPES, "fp32").graphs
    (kept,) = (choice for choice in CHOICES if choice.name.endswith("kept"))
    feeds = Feeds(**inputs(np.random.default_rng(0)))

    exported = parity.onnx_runner(int8.quantise(fp32, tmp_path / "exported"))
    chosen = parity.onnx_runner(int8_choices.write(fp32, tmp_path / "chosen", kept))

    ours, theirs = exported(feeds), chosen(feeds)
    assert all(np.array_equal(ours[head], theirs[head]) for head in ours)


@pytest.mark.slow
def test_command_writes_a_table(tmp_path: Path) -> None:
    """A row for each choice; fp32 agrees with itself."""
    held = tmp_path / "held"
    small = ["--scenes", "4", "--questions", "8", "--ranks", "0"]
    subprocess.run([sys.executable, "-m", heldout.__name__, "--output", str(held), *small], check=True, cwd=ROOT)
    data, output = held / "data.jsonl", tmp_path / "choices.json"

    command = [sys.executable, "-m", int8_choices.__name__, str(SHAPES), "--rounds", "2", "--questions", "8"]
    said = subprocess.run(
        [*command, "--eval-data", str(data), "--output", str(output)],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip

    result = json.loads(output.read_text())
    assert [row["choice"] for row in result["choices"]] == [choice.name for choice in CHOICES]
    assert result["choices"][0]["agreement"] == 1.0
    assert result["choices"][0]["max_score_difference"] == 0.0
    assert all(row["ms"]["median"] > 0 for row in result["choices"])
    assert result["command"].startswith("python -m export.int8_choices ")
    assert result["answers"]["questions"] == 8
    assert len(said.stdout.splitlines()) == 2 + len(CHOICES)
