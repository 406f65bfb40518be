"""The exported graphs are transformers' ViLT; and a graph that is not is found out."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import factories
import numpy as np
import onnx
import pytest
import torch
from exported import Exported, export_both_forms
from onnx import numpy_helper
from transformers import ViltConfig

from export import checkpoint, graph, parity
from models.batch import Feeds, collate
from models.spec import ViltSpec

State = dict[str, torch.Tensor]


Reference = list[tuple[Feeds, parity.Logits]]


def reference_of(exported: Exported) -> Reference:
    """Run transformers over every batch of parity.cases."""
    oracle, config = parity.TransformersOracle(exported.loaded), exported.loaded.config
    batches = list(parity.cases(config, exported.loaded.raw_config["vocab_size"]))
    return [(collate([sample.features(config) for sample in samples]), oracle.run(samples)) for samples in batches]


@pytest.fixture(scope="module")
def reference(small: Exported) -> Reference:
    return reference_of(small)


def largest_difference(ours: parity.Runner, reference: Reference) -> float:
    """Find the largest |logit difference| over every batch and head."""
    return float(np.max([parity.distance(ours(feeds), expected) for feeds, expected in reference]))


def test_cases_cover_grids_lengths_and_mixed_batches() -> None:
    """Parity is measured on square, wide, tall and extreme grids, lengths 3 to 40, alone and padded."""
    config = dataclasses.replace(_any_config(), spec=ViltSpec())

    batches = list(parity.cases(config, 64))

    grids = {sample.features(config).image.grid for samples in batches for sample in samples}
    lengths = {len(sample.input_ids) for samples in batches for sample in samples}
    assert len(grids) >= 10
    assert {(12, 12), (12, 16), (16, 12), (2, 19), (19, 2)} <= grids
    assert {3, 40} <= lengths
    assert sum(len(samples) == 1 for samples in batches) >= 10
    assert max(map(len, batches)) >= 4


def test_reference_is_the_same_each_time_and_draws_no_one_elses_numbers(small: Exported) -> None:
    """transformers draws patches at random, so that sums come out in another order."""
    oracle, samples = parity.TransformersOracle(small.loaded), list(parity.cases(small.loaded.config, 64))[-1]
    torch.manual_seed(1)
    first, drawn = oracle.run(samples), torch.rand(1)
    torch.manual_seed(2)
    second = oracle.run(samples)
    torch.manual_seed(1)

    assert all(np.array_equal(first[head], second[head]) for head in first)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("form", ["three_parts", "fused"])
def test_graphs_of_a_small_checkpoint_agree_with_transformers(small: Exported, reference: Reference, form: str) -> None:
    """Both forms give every head's logits as transformers does, over grids, lengths and mixed batches."""
    run = parity.onnx_runner(getattr(small, form))

    assert set(run(reference[0][0])) == set(reference[0][1]) == {"vqa_logits", "itm_logits", "rank_logits"}
    assert largest_difference(run, reference) <= parity.FP32_TOLERANCE


@pytest.mark.slow
def test_graphs_of_a_full_size_checkpoint_agree_with_transformers(tmp_path: Path) -> None:
    """ViLT-B/32 with 3,129 answers and every parameter redrawn: both forms, once."""
    config = ViltConfig(id2label={index: str(index) for index in range(3129)})
    state = factories.only(factories.redrawn_state(config), "vilt.", "classifier.")
    folder = factories.write_checkpoint(tmp_path / "hf", config, state)
    exported = export_both_forms(tmp_path, checkpoint.load(str(folder)))

    reference = reference_of(exported)
    found = {form: largest_difference(parity.onnx_runner(getattr(exported, form)), reference) for form in FORMS}

    print(f"full size, max |logit difference|: {found}")  # noqa: T201 the figure to quote
    assert max(found.values()) <= parity.FP32_TOLERANCE


FORMS = ("three_parts", "fused")
LAYERS = {"middle layer": "vilt.encoder.layer.1.", "last layer": "vilt.encoder.layer.2."}  # the last pools only
TEXT, IMAGE = "vilt.embeddings.text_embeddings.", "vilt.embeddings."
IN_A_LAYER = {  # all but the key's bias, which adds the same to every score of a query: softmax cancels it
    "query": "attention.attention.query.bias",
    "value": "attention.attention.value.bias",
    "attention output": "attention.output.dense.bias",
    "intermediate": "intermediate.dense.bias",
    "output": "output.dense.bias",
    "layer norm before": "layernorm_before.bias",
    "layer norm after": "layernorm_after.bias",
}
BIASES = {
    **{f"{where} {name}": layer + bias for where, layer in LAYERS.items() for name, bias in IN_A_LAYER.items()},
    "final layer norm": "vilt.layernorm.bias",
    "text layer norm": f"{TEXT}LayerNorm.bias",
    "pooler": "vilt.pooler.dense.bias",
    "patch projection": f"{IMAGE}patch_embeddings.projection.bias",
    "classifier 0": "classifier.0.bias",
    "classifier norm": "classifier.1.bias",
    "classifier 3": "classifier.3.bias",
    "matching": "itm_score.fc.bias",
    "ranking": "rank_output.bias",
}


def _swap(first: str, second: str) -> Callable[[State], None]:
    def corrupt(state: State) -> None:
        state[first], state[second] = state[second], state[first]

    return corrupt


def _zero(name: str) -> Callable[[State], None]:
    def corrupt(state: State) -> None:
        state[name] = torch.zeros_like(state[name])

    return corrupt


def _flip(name: str, *axes: int) -> Callable[[State], None]:
    def corrupt(state: State) -> None:
        state[name] = state[name].flip(axes)

    return corrupt


def _shift_positions(state: State) -> None:
    positions = state[f"{IMAGE}position_embeddings"]
    state[f"{IMAGE}position_embeddings"] = torch.cat([positions[:, :1], positions[:, 1:].roll(1, 1)], dim=1)


def _transpose_positions(state: State) -> None:
    positions = state[f"{IMAGE}position_embeddings"]
    grid = positions[:, 1:].unflatten(1, (12, 12)).transpose(1, 2).flatten(1, 2)
    state[f"{IMAGE}position_embeddings"] = torch.cat([positions[:, :1], grid], dim=1)


def _transpose_patches(state: State) -> None:
    name = f"{IMAGE}patch_embeddings.projection.weight"
    state[name] = state[name].transpose(2, 3)


def _swap_in_a_layer(layer: str, first: str, second: str) -> Callable[[State], None]:
    attention = f"{layer}attention.attention."
    return _swap(f"{attention}{first}.weight", f"{attention}{second}.weight")


_swap_modalities = _flip(f"{IMAGE}token_type_embeddings.weight", 0)
CORRUPTIONS = {
    "positions shifted": _shift_positions,
    "positions transposed": _transpose_positions,
    "text positions reversed": _flip(f"{TEXT}position_embeddings.weight", 0),
    "modality rows swapped": _swap_modalities,
    "patch rows and columns swapped": _transpose_patches,
    "red and blue swapped": _flip(f"{IMAGE}patch_embeddings.projection.weight", 1),
    **{f"{where} query and key swapped": _swap_in_a_layer(name, "query", "key") for where, name in LAYERS.items()},
    **{f"{where} key and value swapped": _swap_in_a_layer(name, "key", "value") for where, name in LAYERS.items()},
    "true and false pair swapped": _flip("itm_score.fc.weight", 0),
    "cls token lost": _zero(f"{IMAGE}cls_token"),
    "token type lost": _zero(f"{TEXT}token_type_embeddings.weight"),
    **{f"{name} bias lost": _zero(parameter) for name, parameter in BIASES.items()},
}


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
def test_parity_of_a_corrupted_checkpoint_fails(small: Exported, reference: Reference, corruption: str) -> None:
    """Any one map gone wrong is visible in the logits: the tolerance is tight enough to mean something."""
    state = dict(small.loaded.state)
    CORRUPTIONS[corruption](state)

    wrong = parity.torch_runner(graph.build(small.loaded.config, state))

    assert largest_difference(wrong, reference[::4]) > parity.FP32_TOLERANCE


def test_parity_of_the_torch_module_holds(small: Exported, reference: Reference) -> None:
    """The control of the corruptions: what is not corrupted passes."""
    assert largest_difference(parity.torch_runner(small.model), reference) <= parity.FP32_TOLERANCE


@pytest.mark.parametrize("part", ["text", "image"])
def test_parity_with_padding_unmasked_fails(small: Exported, reference: Reference, part: str) -> None:
    """Attending to padding is visible: the mask is tested, not merely present."""
    run = parity.torch_runner(small.model)

    def unmasked(feeds: Feeds) -> parity.Logits:
        mask, length = feeds.mask.copy(), feeds.input_ids.shape[1]
        region = np.s_[:, :length] if part == "text" else np.s_[:, length:]
        mask[region] = True
        return run(dataclasses.replace(feeds, mask=mask))

    assert largest_difference(unmasked, reference) > parity.FP32_TOLERANCE


@pytest.mark.slow
def test_check_of_a_wrong_graph_raises_with_the_numbers(small: Exported) -> None:
    """vilt-export ends with the difference that it found, not with a wrong artifact."""
    state = dict(small.loaded.state)
    _swap_modalities(state)
    other = dataclasses.replace(small.loaded, state=state)

    with pytest.raises(parity.ParityError, match=r"differ from the model: .*e.* with 1e-04 allowed"):
        parity.check(other, graph.build(other.config, state), small.three_parts)


@pytest.mark.slow
def test_check_of_a_graph_that_gives_no_number_raises(small: Exported) -> None:
    """NaN is no small difference: comparisons with it are false, and must not read as agreement."""
    wrong = graph.build(small.loaded.config, small.loaded.state | {"rank_output.bias": torch.tensor([torch.nan])})

    with pytest.raises(parity.ParityError, match="nan"):
        parity.check(small.loaded, wrong, small.three_parts)


@pytest.mark.slow
def test_check_of_a_checkpoint_that_gives_no_number_blames_the_checkpoint(small: Exported) -> None:
    """Not the export, whose graphs agree with it."""
    state = small.loaded.state | {"rank_output.bias": torch.tensor([torch.nan])}
    damaged = dataclasses.replace(small.loaded, state=state)

    with pytest.raises(parity.ParityError, match="checkpoint's own logits"):
        parity.check(damaged, graph.build(damaged.config, state), small.three_parts)


@pytest.mark.parametrize("form", FORMS)
def test_answers_of_a_pair_are_the_same_alone_and_in_any_batch(small: Exported, form: str) -> None:
    """Batch mates and padding change no score by more than rounding, and no top answer."""
    run = parity.onnx_runner(getattr(small, form))
    config = small.loaded.config
    pairs = [samples[0].features(config) for samples in parity.cases(config, 64) if len(samples) == 1]
    alone = np.concatenate([parity.scores(run(collate([pair]))) for pair in pairs])

    for size in (2, 5, len(pairs)):
        for first in range(0, len(pairs), size):
            together = parity.scores(run(collate(pairs[first : first + size])))
            for found, expected in zip(together, alone[first : first + size], strict=True):
                assert found == pytest.approx(expected, abs=parity.BATCH_TOLERANCE)
                answers, expected_answers = found[:-2], expected[:-2]
                same_answer = np.argmax(answers) == np.argmax(expected_answers)
                assert same_answer or np.ptp(np.sort(expected_answers)[-2:]) <= parity.BATCH_TOLERANCE


@pytest.mark.slow
def test_check_records_how_far_rows_in_a_batch_are_from_the_same_rows_alone(small: Exported) -> None:
    """Other shapes round differently, so it is not exactly zero."""
    found = parity.check(small.loaded, small.model, small.three_parts)

    assert 0 < found["max_score_difference_to_alone"] < found["tolerance_to_alone"] / 100


@pytest.mark.slow
def test_check_shows_every_batch_that_it_has_compared(small: Exported) -> None:
    """All of them take a minute at full size."""
    compared: list[list[parity.Sample]] = []

    def progress(batches: list[list[parity.Sample]]) -> Iterator[list[parity.Sample]]:
        for batch in batches:
            yield batch
            compared.append(batch)

    found = parity.check(small.loaded, small.model, small.three_parts, progress=progress)

    assert len(compared) == found["batches"]


@pytest.mark.slow
def test_check_of_a_graph_whose_mask_does_nothing_raises_with_the_distance_from_alone(
    small: Exported, tmp_path: Path
) -> None:
    """Rows that see padding, theirs or of the picture before, answer otherwise than alone."""
    model = onnx.load(small.three_parts["interaction"])
    (masked,) = [tensor for tensor in model.graph.initializer if numpy_helper.to_array(tensor).min() == graph.MASKED]
    masked.CopyFrom(numpy_helper.from_array(np.zeros(masked.dims, np.float32), masked.name))
    onnx.save(model, tmp_path / "interaction.onnx")
    leaking = small.three_parts | {"interaction": tmp_path / "interaction.onnx"}

    with pytest.raises(parity.ParityError) as raised:
        parity.check(small.loaded, small.model, leaking)

    (from_alone,) = re.findall(r"scores in a batch by (\S+) from those alone", str(raised.value))
    assert float(from_alone) > parity.BATCH_TOLERANCE


def test_rank_logits_of_a_matching_checkpoint_are_its_true_pair_row(small: Exported) -> None:
    """Without a ranking head, the matching head's second row ranks; Source: dandelin/ViLT vilt_module.py."""
    state = {name: value for name, value in small.loaded.state.items() if not name.startswith("rank_output")}
    run = parity.torch_runner(graph.build(small.loaded.config, state))
    samples = next(parity.cases(small.loaded.config, 64))

    logits = run(collate([sample.features(small.loaded.config) for sample in samples]))

    # Not to the last bit: a product with one column is summed in another order than one with two, on some processors.
    np.testing.assert_allclose(logits["rank_logits"][:, 0], logits["itm_logits"][:, 1], rtol=1e-6)


def _any_config() -> graph.GraphConfig:
    return graph.GraphConfig(spec=ViltSpec(), hidden_size=48, num_layers=3, num_attention_heads=4, layer_norm_eps=1e-12)
