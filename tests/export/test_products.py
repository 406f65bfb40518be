"""Products alone: that they are all the products of a run, and compute what they do inside it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import int8, int8_choices, products
from models.manifest import PARTS, load_artifact
from server.settings import SHAPES

products_session = products.session


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The shipped artifact's graphs in both precisions."""
    fp32 = load_artifact(SHAPES, "fp32").graphs
    return {"fp32": fp32, "int8": int8.quantise(fp32, tmp_path_factory.mktemp("int8"))}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_products_are_those_of_a_run(graphs: dict[str, dict[str, Path]], precision: str) -> None:
    """Each with the tensors that it reads there; quantising changes their kind and not their number."""
    values = products.inputs(np.random.default_rng(0))
    tokens = values["mask"].shape[1]

    found = [pair for part in PARTS for pair in products.matrix_products(onnx.load(graphs[precision][part]), values)]

    layers = sum(node.op_type == "Attention" for node in onnx.load(graphs[precision]["interaction"]).graph.node)
    assert layers > 0
    between = [pair for pair in found if pair[1].ndim == 4]  # query by key, weights by value
    assert len(between) == 2 * layers
    assert all(left.dtype == np.float32 for left, _ in between)
    assert {left.dtype for left, right in found if right.ndim == 2} == {
        np.dtype(np.uint8 if precision == "int8" else np.float32)
    }
    hidden = found[0][1].shape[1]
    assert found[0][0].shape == (1, tokens - products.TEXT_TOKENS - 1, 3072)
    per_layer = 24 * tokens * hidden**2 + 4 * tokens**2 * hidden  # the last one's is less: the pooled token only
    assert (
        (layers - 1) * per_layer < products.operations(found) < layers * per_layer + 2 * found[0][0].size * hidden * 2
    )


class KeptBinding:
    """A session whose outputs can be read after a run."""

    def __init__(self, graph: bytes, threads: int) -> None:
        self._session = products_session(graph, threads)
        self.bound = self._session.io_binding()

    def io_binding(self) -> Any:
        return self.bound

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


def test_both_compute_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either kind, with a constant and without, both compute each product that they are timed by."""
    rng = np.random.default_rng(0)
    fp32 = rng.standard_normal((2, 3, 4), np.float32), rng.standard_normal((4, 5), np.float32)
    between = rng.standard_normal((1, 2, 3, 4), np.float32), rng.standard_normal((1, 2, 4, 3), np.float32)
    integers = rng.integers(0, 255, (1, 32, 64), dtype=np.uint8), rng.integers(-127, 127, (64, 32), dtype=np.int8)
    pairs = [fp32, between, integers]
    expected = [fp32[0] @ fp32[1], between[0] @ between[1], integers[0].astype(int) @ integers[1].astype(int)]
    halved = (integers[0] // 2).astype(int)[0] @ integers[1].astype(int)  # torch has s8 only
    sessions: list[KeptBinding] = []
    by_torch: list[torch.Tensor] = []

    def keep(graph: bytes, threads: int) -> KeptBinding:
        sessions.append(KeptBinding(graph, threads))
        return sessions[-1]

    def watch(multiply: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            by_torch.append(multiply(left, right))
            return by_torch[-1]

        return watched

    monkeypatch.setattr(products, "session", keep)
    monkeypatch.setattr(torch, "matmul", watch(torch.matmul))
    monkeypatch.setattr(torch, "_int_mm", watch(torch._int_mm))
    products.by_onnxruntime(pairs, 1)()
    products.by_torch(pairs)()

    for found, right in zip(sessions[0].bound.copy_outputs_to_cpu(), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    for product, right in zip(by_torch, [*expected[:2], halved], strict=True):
        np.testing.assert_allclose(product.numpy(), right, rtol=1e-4, atol=1e-5)


def test_one_round_has_quartiles() -> None:
    """It fails no more than thirty would, after all was measured."""
    found_ms = products.measure({"whole": lambda: None}, rounds=1)

    assert found_ms["whole"]["p25"] == found_ms["whole"]["median"] == found_ms["whole"]["p75"]


@pytest.mark.parametrize("command", [products, int8_choices], ids=["products", "int8_choices"])
def test_no_rounds_are_refused_with_a_sentence(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured: no rounds have no median."""
    monkeypatch.setattr("sys.argv", ["command", str(SHAPES), "--rounds", "0"])

    with pytest.raises(SystemExit):
        command.main()

    assert "argument --rounds: 0 is not a number of at least 1" in capsys.readouterr().err
