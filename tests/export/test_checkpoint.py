"""What a checkpoint may look like, what it may lack, and the command that turns it into an artifact."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import factories
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, ViltForImageAndTextRetrieval, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from export import artifact, checkpoint, graph, parity, random_checkpoint
from export.checkpoint import CheckpointError, DownloadError
from models.batch import Features, collate
from models.image import to_patches
from models.manifest import load_artifact
from models.spec import ViltSpec
from models.text import TextEncoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = factories.small_config(**SIZES)
STATE = factories.redrawn_state(CONFIG)
MLM = {"mlm_score.bias": torch.zeros(64), "mlm_score.decoder.weight": torch.zeros(64, 16)}
KINDS = {  # weights by name, and the heads that they give
    "question answering": (factories.only(STATE, "vilt.", "classifier."), ["vqa_logits"]),
    "retrieval": (factories.only(STATE, "vilt.", "rank_output."), ["rank_logits"]),
    "pre-training": (
        factories.only(STATE, "vilt.", "itm_score.") | MLM,
        ["itm_logits", "rank_logits"],
    ),
    "every head": (STATE, ["vqa_logits", "itm_logits", "rank_logits"]),
}
Change = Callable[[Path], object]


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_any_kind_gives_its_heads(tmp_path: Path, kind: str, pickled: bool) -> None:
    """Heads are found by their keys, whichever class saved them and in whichever file."""
    state, heads = KINDS[kind]
    folder = factories.write_checkpoint(tmp_path, CONFIG, state, pickled=pickled)

    loaded = checkpoint.load(str(folder))

    assert list(graph.heads_of(loaded.state)) == heads
    assert (loaded.labels is None) == ("vqa_logits" not in heads)
    assert loaded.config.spec == ViltSpec()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_weights_in_several_files_are_read_as_one(tmp_path: Path, pickled: bool) -> None:
    """Large checkpoints are saved so, with an index beside them."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    sharded(folder, pickled=pickled)

    loaded = checkpoint.load(str(folder))

    assert set(loaded.state) == set(STATE)
    assert all(torch.equal(loaded.state[name], value) for name, value in STATE.items())


def sharded(folder: Path, *, pickled: bool) -> None:
    """Put a folder's weights into two files."""
    (folder / "model.safetensors").unlink()
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    weight_map = {name: f"{stem}-0000{1 + index % 2}-of-00002.{suffix}" for index, name in enumerate(STATE)}
    for shard in set(weight_map.values()):
        part = {name: value.contiguous() for name, value in STATE.items() if weight_map[name] == shard}
        (torch.save if pickled else save_file)(part, folder / shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


SAVED = {
    "compiled": {f"_orig_mod.{name}": value for name, value in STATE.items()},
    "distributed": {f"module.{name}": value for name, value in STATE.items()},
    "both": {f"module._orig_mod.{name}": value for name, value in STATE.items()},
    "in a loop": {"model": STATE, "epoch": 3},
    "in another loop": {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
    "beside an epoch": STATE | {"epoch": 3},
}


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
def test_weights_that_a_training_loop_wrapped_are_taken_out(tmp_path: Path, saved: dict[str, Any]) -> None:
    """The names that torch.compile and DistributedDataParallel add, and what is saved beside weights."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    (folder / "model.safetensors").unlink()
    torch.save(saved, folder / "pytorch_model.bin")

    assert set(checkpoint.load(str(folder)).state) == set(STATE)


def test_pretraining_checkpoint_agrees_with_transformers_trunk(tmp_path: Path) -> None:
    """transformers has no class for it, so the oracle is its trunk, the matching head on top, its row 1 to rank."""
    state, _ = KINDS["pre-training"]
    folder = factories.write_checkpoint(tmp_path, CONFIG, state)
    _edit("config.json", architectures=["ViltForPreTraining"])(folder)
    loaded = checkpoint.load(str(folder))
    samples = next(parity.cases(loaded.config, 64))

    expected = parity.TransformersOracle(loaded).run(samples)
    found = parity.torch_runner(graph.build(loaded.config, loaded.state))(
        collate([sample.features(loaded.config) for sample in samples])
    )

    assert np.array_equal(expected["rank_logits"][:, 0], expected["itm_logits"][:, 1])
    assert parity.distance(found, expected) <= parity.FP32_TOLERANCE


@pytest.mark.parametrize("shortest_edge_px", [384, 288])
@pytest.mark.parametrize(
    ("model_class", "head"),
    [(ViltForQuestionAnswering, "vqa_logits"), (ViltForImageAndTextRetrieval, "rank_logits")],
    ids=["question answering", "retrieval"],
)
def test_folder_saved_by_transformers_answers_as_its_own_processor_and_class(
    tmp_path: Path, model_class: type, head: str, shortest_edge_px: int
) -> None:
    """From a picture and a text to logits, with size, mean and deviation of the folder's own: nothing is assumed."""
    theirs = model_class(CONFIG).eval()
    theirs.load_state_dict(STATE, strict=False)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(factories.TOKENS) + "\n")
    size = {"shortest_edge": shortest_edge_px}
    images = ViltImageProcessorPil(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.25, 0.2])
    processor = ViltProcessor(images, BertTokenizer(str(tmp_path / "vocab.txt")))
    processor.save_pretrained(tmp_path)
    picture, text = factories.noise(500, 375), "What color is the cat?"
    with torch.inference_mode():
        expected = theirs(**processor(picture, text, return_tensors="pt")).logits.numpy()

    loaded = checkpoint.load(str(tmp_path))
    loaded.tokenizer.save(str(tmp_path / "saved.json"))
    tokens = TextEncoder(tmp_path / "saved.json", loaded.config.spec.max_text_tokens).encode(text)
    feeds = collate([Features(to_patches(picture, loaded.config.spec), tokens)])
    found = parity.torch_runner(graph.build(loaded.config, loaded.state))(feeds)

    assert parity.distance(found, {head: expected}) <= parity.FP32_TOLERANCE


@pytest.mark.parametrize(
    ("size", "shortest_edge_px"),
    [({"shortest_edge": 160}, 160), (64, 64), (None, 384)],
    ids=["larger", "smaller", "not said"],
)
def test_checkpoint_for_pictures_of_another_size_than_its_positions_agrees_with_transformers(
    tmp_path: Path, size: object, shortest_edge_px: int
) -> None:
    """As fine-tuning at another resolution leaves it: the processor says the size, and positions are interpolated."""
    config = factories.small_config(**SIZES, image_size=96)
    folder = factories.write_checkpoint(tmp_path, config, factories.redrawn_state(config))
    _edit("preprocessor_config.json", size=size)(folder)

    loaded = checkpoint.load(str(folder))
    ours = parity.torch_runner(graph.build(loaded.config, loaded.state))
    oracle = parity.TransformersOracle(loaded)

    assert loaded.config.spec == ViltSpec(shortest_edge_px=shortest_edge_px)
    for samples in parity.cases(loaded.config, 64):
        found = ours(collate([sample.features(loaded.config) for sample in samples]))
        assert parity.distance(found, oracle.run(samples)) <= parity.FP32_TOLERANCE


def test_layer_norm_epsilons_are_the_checkpoint_s(tmp_path: Path) -> None:
    """One from the configuration, torch's own in the classifier: large beside the variance here, so that they show."""
    config = factories.small_config(**SIZES, layer_norm_eps=0.3)
    faint = {name: 1e-3 * STATE[name] for name in ("classifier.0.weight", "classifier.0.bias")}
    loaded = checkpoint.load(str(factories.write_checkpoint(tmp_path, config, STATE | faint)))
    samples = next(parity.cases(loaded.config, 64))

    feeds = collate([sample.features(loaded.config) for sample in samples])
    found = parity.torch_runner(graph.build(loaded.config, loaded.state))(feeds)

    assert parity.distance(found, parity.TransformersOracle(loaded).run(samples)) <= parity.FP32_TOLERANCE


TEXTS = {
    "question": "What color is the cat's 2nd toy?!",
    "accents": "Où est l'été? naïve Ångström İstanbul",
    "accents of words that are known": "été Café CAT Ångström",
    "no spaces": "猫はどこですか 猫は 강아지",
    "special tokens": "is [MASK] a [SEP] or a [CLS]? [unused5]",
    "long word": "a" * 150 + " cat",
    "controls": "what\tcolor\nis\u00a0the\u200bcat \ufffd",
    "emoji": "is the 🐈 happy 👩‍👩‍👧?",
}


SETTINGS: dict[str, dict[str, Any]] = {
    "uncased": {"do_lower_case": True},
    "cased": {"do_lower_case": False},
    "uncased with accents": {"strip_accents": False},
    "cased without accents": {"do_lower_case": False, "strip_accents": True},
    "Chinese words whole": {"tokenize_chinese_chars": False},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_tokenizer_of_a_vocabulary_gives_transformers_ids(tmp_path: Path, settings: dict[str, Any]) -> None:
    """vocab.txt alone is enough: BERT's rules are those of transformers' own tokenizer."""
    words = random_checkpoint.vocabulary()
    of_settings = ["été", "Café", "CAT", "cafe", "猫", "は", "##は", "Angstrom", "ångström"]
    words[-len(of_settings) :] = of_settings
    vocabulary = "\n".join(words) + "\n"
    (tmp_path / "vocab.txt").write_text(vocabulary)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), **settings)
    config = factories.small_config(**SIZES, vocab_size=random_checkpoint.VOCABULARY)
    folder = factories.write_checkpoint(tmp_path, config, factories.redrawn_state(config))
    (tmp_path / "vocab.txt").write_text(vocabulary)

    ours = checkpoint.load(str(folder)).tokenizer

    for name, text in TEXTS.items():
        assert ours.encode(text).ids == theirs(text)["input_ids"], name


def test_special_tokens_of_a_vocabulary_are_those_that_its_settings_name(tmp_path: Path) -> None:
    """As words, or as the objects that older versions of transformers saved."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "rank_output."))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "<unk>", "<s>", "</s>", "[MASK]", *factories.TOKENS[5:]]))
    named = {"unk_token": "<unk>", "cls_token": {"content": "<s>", "__type": "AddedToken"}, "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))

    tokens = checkpoint.load(str(folder)).tokenizer.encode("what dog").tokens

    assert tokens == ["<s>", "what", "<unk>", "</s>"]


@pytest.mark.parametrize("described", [False, True], ids=["numbered", "described"])
def test_words_added_to_a_vocabulary_are_words(tmp_path: Path, described: bool) -> None:
    """Each has a row of its own in the embeddings, which stays unused if its letters are read instead."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "rank_output."))
    (folder / "added_tokens.json").write_text(json.dumps({"color is": 14, "zebrafish": 13}))
    if described:
        how = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True, "special": False}
        words = {"13": {"content": "zebrafish", **how}, "14": {"content": "color is", **how}}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": words}))
    theirs = BertTokenizer.from_pretrained(folder)

    ours = checkpoint.load(str(folder)).tokenizer

    for text in ("What color is the Zebrafish?", "zebrafishes", "[MASK] cats"):
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    assert {13, 14} <= set(ours.encode("What color is the zebrafish?").ids)


def test_tokenizer_json_is_taken_before_a_vocabulary(tmp_path: Path) -> None:
    """It says more than vocab.txt does: here, that capitals count."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)

    tokens = checkpoint.load(str(folder)).tokenizer.encode("Cat cat").tokens

    assert tokens == ["[CLS]", "[UNK]", "cat", "[SEP]"]


def test_tokenizer_that_its_settings_contradict_is_refused(tmp_path: Path) -> None:
    """transformers goes by the settings, other readers by tokenizer.json: what was meant is not known."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    checkpoint.load(str(folder))
    _edit("tokenizer_config.json", do_lower_case=False)(folder)

    with pytest.raises(CheckpointError, match=r"has lowercase True, tokenizer_config.json do_lower_case False"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokenizer_that_keeps_the_end_of_a_text_is_refused(tmp_path: Path, side: str) -> None:
    """Long texts are cut at their right here; a tokenizer.json may say otherwise itself."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    own = checkpoint.load(str(folder)).tokenizer
    own.enable_truncation(8, direction=side)
    own.save(str(folder / "tokenizer.json"))

    with pytest.raises(CheckpointError, match="truncation_side is left") if side == "left" else nullcontext():
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    ("beside_it", "tokens"),
    [({"do_lower_case": False}, ["[UNK]", "cat"]), (None, ["cat", "cat"])],
    ids=["settings beside it", "no settings beside it"],
)
def test_vocabulary_given_is_read_with_the_settings_beside_it(
    tmp_path: Path, beside_it: dict[str, bool] | None, tokens: list[str]
) -> None:
    """The checkpoint's own settings describe its own vocabulary; they count only where there are no others."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, factories.only(STATE, "vilt.", "rank_output."))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    given = tmp_path / "given" / "vocab.txt"
    given.parent.mkdir()
    given.write_text((folder / "vocab.txt").read_text())
    if beside_it:
        (given.parent / "tokenizer_config.json").write_text(json.dumps(beside_it))

    loaded = checkpoint.load(str(folder), tokenizer=given)

    assert loaded.tokenizer.encode("Cat cat").tokens == ["[CLS]", *tokens, "[SEP]"]


def _edit(name: str, **changes: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def _damage(name: str, content: str = "{") -> Change:
    return lambda folder: (folder / name).write_text(content)


class Malicious:
    """Unpickles to a shell command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 1",)


def _pickle(weights: object) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")

    return change


WORD = "vilt.embeddings.text_embeddings.word_embeddings.weight"
QUERY = "vilt.encoder.layer.0.attention.attention.query.weight"


def _index(weight_map: object) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


FAULTS: dict[str, tuple[Change, str]] = {
    "no configuration": (_without("config.json"), "no config.json"),
    "damaged configuration": (_damage("config.json"), "is not JSON"),
    "configuration of another kind": (_damage("config.json", "[]"), "is not a JSON object"),
    "no weights": (_without("model.safetensors"), "neither model.safetensors nor pytorch_model.bin"),
    "a shard that is missing": (
        _index({WORD: "model-00001-of-00002.safetensors"}),
        "00001-of-00002.*, which is missing",
    ),
    "a shard elsewhere": (_index({WORD: "../model.safetensors"}), "'../model.safetensors', which is no file beside it"),
    "an index of nothing": (_index(["model.safetensors"]), "is not an index of weights"),
    "an adapter alone": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        r"PEFT adapter .* merge_and_unload\(\) .* save_pretrained\(\)",
    ),
    "adapters that are not merged": (
        _pickle({name.replace(".query.", ".query.base_layer."): value for name, value in STATE.items()}),
        r"adapters that are not merged: call merge_and_unload\(\)",
    ),
    "weights in int8": (
        _pickle(STATE | {QUERY: torch.zeros(16, 16, dtype=torch.int8)}),
        f"{QUERY} of .* is int8: quantised weights are not supported",
    ),
    "a trunk alone": (
        _pickle({name.removeprefix("vilt."): value for name, value in STATE.items() if name.startswith("vilt.")}),
        "no head for questions, matching or retrieval",
    ),
    "classes of words": (
        _pickle({name: value for name, value in STATE.items() if "pooler" not in name}),
        "no head for questions, matching or retrieval: .* ViltForTokenClassification",
    ),
    "damaged weights": (_damage("model.safetensors"), "cannot be read .* download or save it again"),
    "weights that run code": (_pickle({"vilt.": Malicious()}), "cannot be read .* never executed"),
    "weights of another model": (_pickle({"weight": torch.zeros(1)}), "holds no ViLT"),
    "no tokenizer": (_without("vocab.txt"), "give --tokenizer a tokenizer.json or a vocab.txt"),
    "damaged tokenizer": (_damage("tokenizer.json"), "is not a tokenizer"),
    "vocabulary of another kind": (_damage("vocab.txt", "hello\n"), "is not a tokenizer"),
    "vocabulary without the word for unknown ones": (
        lambda folder: (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"})),
        "is not a tokenizer: unk_token not found",
    ),
    "added words that do not follow the vocabulary": (
        lambda folder: (folder / "added_tokens.json").write_text(json.dumps({"dog": 20})),
        "'dog' is number 20 .* give --tokenizer the tokenizer.json",
    ),
    "vocabulary of another model": (
        _damage("vocab.txt", "\n".join([*factories.TOKENS, *map(str, range(64))])),
        "more tokens than the 64 of the model",
    ),
    "too few labels": (_edit("config.json", id2label={"0": "yes"}), "1 labels for 11 answers"),
    "labels that count from 1": (
        _edit("config.json", id2label={str(index): f"it is {index}" for index in range(1, 12)}),
        "numbered 1 to 11; the classifier's answers 0 to 10",
    ),
    "more layers than configured": (
        _edit("config.json", num_hidden_layers=1),
        "The weights hold 2 layers, config.json says 1",
    ),
    "another model": (_edit("config.json", model_type="vit"), "model_type is 'vit'"),
    "another activation": (_edit("config.json", hidden_act="relu"), "hidden_act is 'relu'"),
    "random patches": (_edit("config.json", max_image_length=200), "drops patches at random"),
    "a size of one patch": (_edit("preprocessor_config.json", size=63), "resizes to 63 pixels: fewer than two patches"),
    "a height and a width": (
        _edit("preprocessor_config.json", size={"height": 64, "width": 64}),
        r"size is {'height': 64, 'width': 64}; it must have a shortest_edge",
    ),
    "another filter": (_edit("preprocessor_config.json", resample=2), "bicubic"),
    "another divisor": (_edit("preprocessor_config.json", size_divisor=16), "size_divisor 16; it must be 32"),
    "a divisor left out, which is 32": (_edit("config.json", patch_size=16), "size_divisor 32; it must be 16"),
    "a mean for two channels": (_edit("preprocessor_config.json", image_mean=[0.5, 0.5]), "wrong type or value"),
    "a deviation that is a word": (_edit("preprocessor_config.json", image_std="a half"), "wrong type or value"),
    "a width that is a word": (_edit("config.json", hidden_size="16"), "wrong type or value"),
    "heads that do not divide the width": (_edit("config.json", num_attention_heads=3), "among 3 attention heads"),
    "no heads": (_edit("config.json", num_attention_heads=0), "wrong type or value"),
    "another classifier": (
        _pickle(STATE | {"classifier.0.weight": torch.zeros(16, 16)}),
        "classifier.0.weight has 16 rows .* such as ViltForImagesAndTextClassification's",
    ),
    "pictures that are cropped": (_edit("preprocessor_config.json", do_center_crop=True), "do_center_crop True"),
    "another image processor": (
        _edit("preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "image processor is CLIPImageProcessor; only ViltImageProcessor",
    ),
    "another feature extractor": (
        _edit("preprocessor_config.json", feature_extractor_type="ViTFeatureExtractor"),
        "image processor is ViTFeatureExtractor",
    ),
    "texts cut at their start": (
        _damage("tokenizer_config.json", '{"truncation_side": "left"}'),
        "truncation_side is left",
    ),
    "another classifier of as many rows": (
        _pickle(STATE | {"classifier.0.weight": torch.zeros(32, 32)}),
        "classifier.0.weight has 32 rows .* such as ViltForImagesAndTextClassification's",
    ),
    "a height and a width of a patch": (
        _edit("config.json", patch_size=[32, 16]),
        r"patch_size is \[32, 16\]; only one",
    ),
    "a configuration that transformers refuses": (
        _edit("config.json", initializer_range="small"),
        "transformers does not accept config.json: .*initializer_range",
    ),
    "pixels as they are": (_edit("preprocessor_config.json", do_normalize=False), "do_normalize False"),
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_checkpoint_with_a_fault_is_refused_with_a_sentence(tmp_path: Path, fault: Change, sentence: str) -> None:
    """What cannot be exported faithfully is not exported; the sentence says what to do."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "classifier."))
    fault(folder)

    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config.json", "processor_config.json"])
def test_settings_that_are_null_or_one_for_all_channels_are_read_as_transformers_reads_them(
    tmp_path: Path, nested: bool
) -> None:
    """Its own files have both, and its own classes run with what is left."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "rank_output."))
    _edit("config.json", max_image_length=None, layer_norm_eps=None)(folder)
    _edit("preprocessor_config.json", image_mean=0.4, image_std=None, rescale_factor=None, resample=None)(folder)
    if nested:
        alone = folder / "preprocessor_config.json"
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
        alone.unlink()

    loaded = checkpoint.load(str(folder))

    assert loaded.config.image_mean == (0.4, 0.4, 0.4)
    assert loaded.config.image_std == (0.5, 0.5, 0.5)
    assert loaded.config.rescale_factor == 1 / 255
    assert "rank_logits" in parity.TransformersOracle(loaded).run(next(parity.cases(loaded.config, 64)))


def test_settings_inside_processor_config_are_read_before_those_of_their_own_file(tmp_path: Path) -> None:
    """As transformers 5 does, which leaves an older preprocessor_config.json beside what it saves."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "rank_output."))
    processor = {"image_processor": {"size": {"shortest_edge": 288}, "image_mean": [0.2, 0.2, 0.2]}}
    (folder / "processor_config.json").write_text(json.dumps(processor))

    config = checkpoint.load(str(folder)).config

    assert (config.spec.shortest_edge_px, config.image_mean) == (288, (0.2, 0.2, 0.2))


def test_configuration_of_another_form_is_compared_with_transformers_all_the_same(tmp_path: Path) -> None:
    """How a program ran a model is no part of it; sides that are equal are one, and a list of answers is in order."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, factories.only(STATE, "vilt.", "classifier."))
    ran = {"return_dict": False, "use_return_dict": True, "torchscript": True, "attn_implementation": "none"}
    answers = [f"it is {index}" for index in range(11)]
    _edit("config.json", **ran, id2label=answers, image_size=[384, 384], patch_size=[32, 32])(folder)

    loaded = checkpoint.load(str(folder))

    assert loaded.labels == tuple(answers)
    samples = next(parity.cases(loaded.config, 64))
    found = parity.torch_runner(graph.build(loaded.config, loaded.state))(
        collate([sample.features(loaded.config) for sample in samples])
    )
    assert parity.distance(found, parity.TransformersOracle(loaded).run(samples)) <= parity.FP32_TOLERANCE


def test_checkpoint_for_two_images_is_refused(tmp_path: Path) -> None:
    """NLVR2 has a third modality row."""
    name = "vilt.embeddings.token_type_embeddings.weight"
    state = STATE | {name: torch.zeros(3, 16)}

    with pytest.raises(CheckpointError, match="two images"):
        checkpoint.load(str(factories.write_checkpoint(tmp_path, CONFIG, state)))


@pytest.mark.parametrize(
    "content",
    [None, "yes\nno", '"yes"', '{"yes": 0}', "[" * 100_000],
    ids=["no file", "lines", "a string", "answer to index", "nested too deep"],
)
def test_labels_of_another_form_are_refused_with_a_sentence(tmp_path: Path, content: str | None) -> None:
    """The message names the two forms that are read."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    if content is not None:
        (tmp_path / "labels.json").write_text(content)

    with pytest.raises(CheckpointError, match="neither a JSON list of answers nor an object of index to answer"):
        checkpoint.load(str(folder), labels=tmp_path / "labels.json")


@pytest.mark.parametrize("answer", ["null", '{"answer": "no"}', '["no"]'])
def test_answers_that_are_no_strings_are_refused(tmp_path: Path, answer: str) -> None:
    """They would be served as Python writes them."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)
    (tmp_path / "labels.json").write_text(f"[{', '.join([answer] * 11)}]")

    with pytest.raises(CheckpointError, match=f"has the answer {re.escape(answer)}: answers are strings"):
        checkpoint.load(str(folder), labels=tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 3}, "lacks the weight 'vilt.encoder.layer.2"),
        ({"patch_size": 16}, "do not fit its config.json"),
    ],
    ids=["a layer too few", "another patch size"],
)
def test_artifact_of_weights_that_do_not_fit_is_refused(tmp_path: Path, change: dict[str, int], sentence: str) -> None:
    """Weights and configuration that contradict each other are not exported."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, STATE)
    _edit("config.json", **change)(folder)
    _edit("preprocessor_config.json", size_divisor=change.get("patch_size", 32))(folder)

    with pytest.raises(CheckpointError, match=sentence):
        artifact.write_artifact(
            checkpoint.load(str(folder)), tmp_path / "out", name="x", description="", tasks=[], report=print
        )


@pytest.mark.parametrize(
    "labels",
    [[f"it is {index}" for index in range(11)], {str(index): f"it is {index}" for index in range(10, -1, -1)}],
    ids=["list", "object of index to answer"],
)
def test_labels_and_tokenizer_can_be_given_apart(tmp_path: Path, labels: object) -> None:
    """What a folder lacks may lie elsewhere, answers in either form: the original vqa_dict.json is an object."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, factories.only(STATE, "vilt.", "classifier."))
    _edit("config.json", id2label=None)(folder)
    vocabulary = (folder / "vocab.txt").rename(tmp_path / "vocab.txt")
    (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8-sig")  # as Windows writes it

    loaded = checkpoint.load(str(folder), tokenizer=vocabulary, labels=tmp_path / "labels.json")

    assert loaded.labels is not None
    assert loaded.labels[3] == "it is 3"
    assert loaded.tokenizer.encode("what cats").tokens == ["[CLS]", "what", "cat", "##s", "[SEP]"]
    assert set(parity.TransformersOracle(loaded).run(next(parity.cases(loaded.config, 64)))) == {"vqa_logits"}


def test_checkpoint_in_the_working_folder_has_that_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest says what its artifact was made of, and "." says nothing."""
    monkeypatch.chdir(factories.write_checkpoint(tmp_path / "mine", CONFIG, STATE))

    assert checkpoint.load(".").name == "mine"


def test_path_that_is_no_folder_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    """A file of the folder was meant, or the path is mistyped."""
    folder = factories.write_checkpoint(tmp_path, CONFIG, STATE)

    with pytest.raises(CheckpointError, match=r"config.json is a file: give its folder"):
        checkpoint.load(str(folder / "config.json"))
    for path in ("./nope", "../nope", "~/nope", "/nope", "a/b/c"):
        with pytest.raises(CheckpointError, match=f"^{path} is no hub id, and there is no such folder"):
            checkpoint.load(path)


def test_top_of_the_hub_s_cache_is_refused_with_the_folder_to_give(tmp_path: Path) -> None:
    """A cached repository's files are two folders further down."""
    factories.write_checkpoint(tmp_path / "models--me--vilt" / "snapshots" / COMMIT, CONFIG, STATE)

    with pytest.raises(CheckpointError, match=f"give .*models--me--vilt/snapshots/{COMMIT}"):
        checkpoint.load(str(tmp_path / "models--me--vilt"))


COMMIT = "d0a1f6a"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is on the hub as dandelin/some-vilt, tagged v1; whatever is asked of it lands in one snapshot's folder."""
    repository, snapshot = factories.write_checkpoint(tmp_path / "hub", CONFIG, STATE), tmp_path / COMMIT

    def download(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if source != "dandelin/some-vilt" or revision not in {None, "v1", COMMIT}:
            raise OSError("404")
        snapshot.mkdir(exist_ok=True)
        for path in repository.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return repository


@pytest.mark.parametrize("revision", [None, "v1"])
@pytest.mark.usefixtures("repository")
def test_checkpoint_of_the_hub_has_a_revision(revision: str | None) -> None:
    """The name of its snapshot's folder: a hub id or a tag alone may be other weights tomorrow."""
    loaded = checkpoint.load("dandelin/some-vilt", revision=revision)

    assert (loaded.name, loaded.revision) == ("dandelin/some-vilt", COMMIT)


@pytest.mark.usefixtures("repository")
def test_revision_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """On the hub, and of what is not on it."""
    with pytest.raises(DownloadError, match=r"dandelin/some-vilt of v2 .*404.*: check the name, --revision"):
        checkpoint.load("dandelin/some-vilt", revision="v2")
    for here in (str(tmp_path), "vilt.ckpt"):
        with pytest.raises(CheckpointError, match="not on the hub, so it has no revision v1: leave --revision out"):
            checkpoint.load(here, revision="v1")


@pytest.mark.parametrize("safe", [True, False], ids=["both kinds", "pickled ones"])
def test_weights_of_the_hub_are_downloaded_once(repository: Path, tmp_path: Path, safe: bool) -> None:
    """The pickled ones only where there are no others: each is 450 MB at full size."""
    torch.save(STATE, repository / "pytorch_model.bin")
    if not safe:
        (repository / "model.safetensors").unlink()

    loaded = checkpoint.load("dandelin/some-vilt", revision="v1")

    assert set(loaded.state) == set(STATE)
    weights = {path.name for path in (tmp_path / COMMIT).glob("*model*")}
    assert weights == {"model.safetensors" if safe else "pytorch_model.bin"}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_weights_of_the_hub_in_several_files_are_downloaded(repository: Path, pickled: bool) -> None:
    """With their index."""
    sharded(repository, pickled=pickled)

    assert set(checkpoint.load("dandelin/some-vilt").state) == set(STATE)


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def sentence_of(ended: subprocess.CompletedProcess[str]) -> str:
    """What a failed export says: the last line, after the progress bar, and no traceback."""
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("vilt-export: ")
    return last


@pytest.mark.slow
def test_command_writes_an_artifact_that_loads_and_says_how_exact_it_is(tmp_path: Path) -> None:
    """Checkpoint in, verified artifact out; only the wanted task's head is kept."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, STATE)

    ended = export(str(folder), "--output", str(tmp_path / "small"), "--task", "vqa", "--description", "for a test")

    assert ended.returncode == 0, ended.stderr
    assert "max |logit difference| to transformers" in ended.stdout
    manifest = load_artifact(tmp_path / "small").manifest
    assert (manifest.name, manifest.tasks, manifest.description) == ("small", ("vqa",), "for a test")
    assert (manifest.source["checkpoint"], manifest.source["rank_logits"]) == ("hf", None)
    assert manifest.precisions["fp32"].parity["max_logit_difference_to_transformers"] <= parity.FP32_TOLERANCE


@pytest.mark.slow
def test_command_over_a_model_that_fails_parity_writes_no_artifact(tmp_path: Path) -> None:
    """A folder is served only with a manifest, and there is none."""
    broken = STATE | {"classifier.3.bias": torch.full((11,), torch.nan)}
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, factories.only(broken, "vilt.", "classifier."))

    ended = export(str(folder), "--output", str(tmp_path / "out"))

    assert "The checkpoint's own logits are not numbers" in sentence_of(ended)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_command_for_ranking_by_a_matching_head_alone_proves_it(tmp_path: Path) -> None:
    """Both heads that come of it have an oracle."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, KINDS["pre-training"][0])

    ended = export(str(folder), "--output", str(tmp_path / "ranker"), "--task", "rank")

    assert ended.returncode == 0, ended.stderr
    assert load_artifact(tmp_path / "ranker").manifest.heads == {"itm_logits": 2, "rank_logits": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "task", "sentence"),
    [
        (("vilt.", "mlm_score."), [], "no head to serve"),
        (("vilt.", "classifier."), ["--task", "rank"], "cannot serve rank"),
    ],
    ids=["masked language model", "another head"],
)
def test_command_without_a_head_to_serve_ends_with_a_sentence(
    tmp_path: Path, heads: tuple[str, ...], task: list[str], sentence: str
) -> None:
    """A checkpoint that answers nothing makes no artifact."""
    folder = factories.write_checkpoint(tmp_path / "hf", CONFIG, factories.only(STATE | MLM, *heads))

    ended = export(str(folder), "--output", str(tmp_path / "out"), *task)

    assert sentence in sentence_of(ended)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_command_with_an_unknown_checkpoint_says_what_to_check(tmp_path: Path) -> None:
    """A hub id without a network, or a folder that is not there, is a sentence."""
    environment_without_hub = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "export", "no-one/no-such-vilt", "--output", str(tmp_path / "out")]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"HF_ENDPOINT": environment_without_hub, "HF_HOME": str(tmp_path), "PATH": ""},
    )

    assert "check the name, --revision and the network" in sentence_of(ended)


@pytest.mark.slow
def test_shipped_graphs_are_the_shipped_checkpoint() -> None:
    """The artifact in the repository is what its own checkpoint exports to."""
    root = Path(__file__).parents[2]
    loaded = checkpoint.load(str(root / "export" / "shapes" / "checkpoint"))
    artifact = load_artifact(root / "models" / "artifacts" / "shapes")

    found = parity.check(loaded, graph.build(loaded.config, loaded.state), artifact.graphs)

    assert found["max_logit_difference_to_transformers"] <= parity.FP32_TOLERANCE
    assert dataclasses.asdict(artifact.manifest.spec) == dataclasses.asdict(loaded.config.spec)
