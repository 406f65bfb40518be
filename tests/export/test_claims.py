"""The structures that ViLT is compared with are what their descriptions say."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import to_onnx
from export.claims import detector, nms, resnet, transformer, two_stream, write
from export.claims.count import count_macs, count_parameters, skeleton
from export.claims.designs import Design, designs
from export.claims.grid import GridEmbedding
from export.claims.sizes import FULL, REDUCED, Sizes
from export.claims.weights import draw
from loadtest.claims import plan

ALL = designs(FULL)
MILLION = 1e6


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)


@pytest.mark.parametrize("design", ALL, ids=lambda design: design.name)
def test_design_has_stages_that_are_named_and_tensors_that_something_makes(design: Design) -> None:
    """Steps run in an order in which every input is there, or is drawn."""
    drawn = {"pixel_values", "input_ids", "class_scores", "score_threshold", "candidate_boxes", "candidate_scores"}
    drawn |= {"proposals", "grid_boxes", *(f"proposals_{level}" for level in detector.LEVELS)}
    made: dict[str, None] = {}

    for step in design.steps:
        assert step.stage in plan.STAGES
        assert set(step.inputs) <= drawn | set(made)
        made |= dict.fromkeys(step.outputs)


@pytest.mark.parametrize(
    ("config", "published"),
    [(resnet.RESNET50, 25), (resnet.RESNET101, 44), (resnet.RESNEXT152, 60)],
    ids=["R50", "R101", "X152"],
)
def test_backbone_holds_what_table_7_says(config: resnet.ResNetConfig, published: float) -> None:
    """25, 44 and 60 million, with the classifier of 2,048 x 1,000 that no detector keeps."""
    with torch.device("meta"):
        found = parameters(resnet.ResNet(config, FULL))

    assert (found + 2_049_000) / MILLION == pytest.approx(published, rel=0.03)


@pytest.mark.slow
def test_graph_holds_every_parameter_of_its_module(tmp_path: Path) -> None:
    """Nothing that a design has is optimised away because its answer does not hang on it."""
    steps = {step.graph: step for design in designs(REDUCED) for step in design.steps}

    for name, step in steps.items():
        built = step.build()
        if isinstance(built, nn.Module):
            found, _ = write.graph(step, tmp_path / f"{name}.onnx")
            assert found.parameters + found.dictionary_parameters == pytest.approx(parameters(built), abs=8), name


def test_transformers_hold_what_their_papers_say() -> None:
    """BERT-base's layers, but for a bias of keys and values; LXMERT's 19 and 5 across; ViLBERT's two streams."""
    with torch.device("meta"):
        single, lxmert = parameters(transformer.SingleStream(FULL)), parameters(two_stream.Lxmert(FULL))
        vilbert = parameters(two_stream.ViLBert(FULL))

    layer = single // 12
    attention = 4 * 768 * 768 + 2 * 768 + 2 * 768  # neither keys nor values have a bias here
    assert single / MILLION == pytest.approx(85.05, rel=1e-3)
    assert lxmert == 24 * layer + 5 * attention  # a cross layer has a layer for each modality
    assert vilbert / MILLION == pytest.approx(207, rel=0.02)


@pytest.mark.parametrize(
    ("num_tokens", "side"),
    [(260, (25, 42)), (146, (19, 32))],
    ids=["800x1333", "600x1000"],
)
def test_grid_embedding_gives_the_papers_tokens(num_tokens: int, side: tuple[int, int]) -> None:
    """The halved feature map has at least as many cells as Table 6 counts tokens."""
    module = draw(GridEmbedding(REDUCED, num_tokens))

    found = module(torch.randn(1, resnet.channels(REDUCED, "res5"), *side))

    assert found.shape == (1, num_tokens, REDUCED.width(transformer.HIDDEN))


def test_weights_keep_activations_ordinary_through_152_layers() -> None:
    """Neither zeros nor denormals nor infinities, which would change how long arithmetic takes."""
    narrow = resnet.ResNet(resnet.RESNEXT152, type(FULL)(divisor=16))

    found = draw(narrow)(torch.randn(1, 3, 64, 64))

    assert 1e-2 < float(found.std()) < 1e3
    assert (found > 0).float().mean() > 0.2


def test_anchors_lie_on_the_cells_and_have_the_sizes() -> None:
    """A row a cell and a shape; every shape covers its size's square."""
    found = detector.anchors((2, 3), 16, (32, 64))

    width, height = (found[:, 2] - found[:, 0]), (found[:, 3] - found[:, 1])
    centres = (found[:, :2] + found[:, 2:]) / 2
    assert found.shape == (2 * 3 * 2 * 3, 4)
    assert (width * height).sqrt().round(decimals=3).unique().tolist() == [32.0, 64.0]
    assert torch.allclose(centres[-1], torch.tensor([32.0, 16.0]))


def test_refining_boxes_by_nothing_leaves_them_and_by_log_two_doubles_them() -> None:
    """Deltas shift by shares of the size and scale by powers of e."""
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    twice = torch.tensor([[0.5, 0.0, math.log(2), math.log(2)]])

    assert torch.allclose(detector.refine(boxes, torch.zeros(1, 4)), boxes)
    assert torch.allclose(detector.refine(boxes, twice), torch.tensor([[10.0, 0.0, 50.0, 80.0]]))


def detected() -> dict[str, np.ndarray]:
    """Two boxes on one spot, of different classes, and one elsewhere."""
    return {
        "proposals": np.array([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]], np.float32),
        "class_scores": np.array([[0.9, 0.0], [0.0, 0.8], [0.1, 0.2]], np.float32),
        "score_threshold": np.array([0.05], np.float32),
    }


def test_nms_per_class_keeps_overlapping_boxes_of_different_classes() -> None:
    """The second box is suppressed in no class of its own."""
    (kept,) = run(nms.per_class(2), **detected())

    assert kept.tolist() == [0, 1]


def test_nms_over_all_classes_keeps_one_of_overlapping_boxes() -> None:
    """The second box falls to the first, whatever their classes."""
    (kept,) = run(nms.class_agnostic(2), **detected())

    assert kept.tolist() == [0, 2]


def test_nms_of_proposals_keeps_the_best_up_to_the_limit() -> None:
    """Best first, near copies left out."""
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10.5], [90, 90, 99, 99]], np.float32)
    scores = np.array([0.1, 0.9, 0.8, -3.0], np.float32)

    (rows,) = run(nms.proposals(2), candidate_boxes=boxes, candidate_scores=scores)

    assert rows.tolist() == [1, 2]


def test_count_of_a_convolution_and_a_product_is_arithmetic(tmp_path: Path) -> None:
    """Output elements times what each adds up; weights and biases; free axes take the shapes given."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolve = nn.Conv2d(4, 8, 3, padding=1, groups=2)
            self.project = nn.Linear(8, 5)
            self.words = nn.Parameter(torch.empty(11, 5))

        def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            pooled = self.convolve(pixels).flatten(2).transpose(1, 2)
            return self.project(pooled) + nn.functional.embedding(ids, self.words)

    inputs = {"pixels": torch.zeros(1, 4, 6, 7), "ids": torch.zeros(1, 42, dtype=torch.long)}
    part = to_onnx.Part("small", draw(Small()), inputs, {name: {} for name in inputs}, ["out"])
    to_onnx.write(part, tmp_path / "small.onnx")

    model = onnx.load(tmp_path / "small.onnx")
    weights, macs = count_parameters(model), count_macs(skeleton(model), {"pixels": (1, 4, 6, 7), "ids": (1, 42)})

    assert macs.convolution_macs == 8 * 6 * 7 * 2 * 9
    assert macs.product_macs == 42 * 8 * 5
    assert weights.parameters == 8 * 2 * 9 + 8 + 8 * 5 + 5
    assert weights.dictionary_parameters == 11 * 5


def test_count_of_attention_is_two_products(tmp_path: Path) -> None:
    """Every query by every key, and every weight by a value, over the whole width."""

    class Attend(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return transformer.attend(query, key, key, heads=2)

    inputs = {"query": torch.zeros(1, 5, 8), "key": torch.zeros(1, 7, 8)}
    part = to_onnx.Part("small", Attend(), inputs, {name: {} for name in inputs}, ["out"])
    to_onnx.write(part, tmp_path / "small.onnx")

    macs = count_macs(onnx.load(tmp_path / "small.onnx"), {"query": (1, 5, 8), "key": (1, 7, 8)})

    assert macs.product_macs == 2 * 5 * 7 * 8


def test_graphs_that_are_written_are_those_that_are_read() -> None:
    """`vilt-bench claims` has export write them and imports nothing of it."""
    assert (write.PLAN, write.FORMAT_VERSION) == (plan.PLAN, plan.FORMAT_VERSION)


@pytest.mark.parametrize(("version", "sizes"), [(write.FORMAT_VERSION - 1, REDUCED), (write.FORMAT_VERSION, FULL)])
def test_graphs_that_were_written_otherwise_are_not_mixed_with_new_ones(
    tmp_path: Path, version: int, sizes: Sizes
) -> None:
    """Files that are there are kept, so designs would be timed beside others that attend in another way."""
    written = tmp_path / write.PLAN
    written.write_text(json.dumps({"format_version": version, "sizes": asdict(sizes)}))
    before = written.read_text()

    with pytest.raises(ValueError, match="give --output another folder"):
        write.write(tmp_path, REDUCED, [], lambda _: None)

    assert written.read_text() == before
