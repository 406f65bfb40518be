"""The comparison with published figures, over small checkpoints whose figures transformers gives here."""

import subprocess
import sys
from pathlib import Path

import factories
import pytest
import torch
from transformers import BertTokenizer, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from export import check_weights
from export.check_weights import GOLDENS, IMAGE_URL, Answer, Order

QUESTION = "What color is the cat?"
CONFIG = factories.small_config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
STATE = factories.redrawn_state(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return factories.write_checkpoint(tmp_path / "hf", CONFIG, STATE)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture file of the size that the published one has."""
    factories.noise(640, 480).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def figures_of_transformers(folder: Path) -> Answer:
    """What would be published of a checkpoint: its own processor and class, asked about the picture."""
    model = ViltForQuestionAnswering(CONFIG).eval()
    model.load_state_dict(STATE, strict=False)
    processor = ViltProcessor(ViltImageProcessorPil(), BertTokenizer(str(folder / "vocab.txt")))
    with torch.inference_mode():
        logits = model(**processor(factories.noise(640, 480), QUESTION, return_tensors="pt")).logits[0]
    first = tuple(round(float(logit), 4) for logit in logits[:3])
    return Answer("nobody/vilt", QUESTION, CONFIG.id2label[int(logits.argmax())], first)


def run(*arguments: object, **options: object) -> int:
    """Run the command here; its exit status."""
    try:
        check_weights.main([str(argument) for argument in arguments], **options)  # type: ignore[arg-type]
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.slow
def test_checkpoint_with_the_expected_figures_passes_and_its_artifact_is_kept(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file of a picture to logits, ours agree with transformers' to the published digits."""
    goldens = {"vqa": figures_of_transformers(folder)}

    status = run(picture, "--vqa", folder, "--output", tmp_path / "kept", goldens=goldens)

    rows = capsys.readouterr().out.splitlines()[1:]
    assert status == 0
    assert len(rows) == 2
    assert all(row.endswith(" ok") for row in rows)
    assert (tmp_path / "kept" / "vqa" / "manifest.json").exists()


@pytest.mark.slow
def test_checkpoint_with_other_weights_differs_from_what_is_published(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights are not the public ones: the table says so, and so does the exit status."""
    status = run(picture, "--only", "vqa", "--vqa", folder)

    shown = capsys.readouterr()
    rows = shown.out.splitlines()[1:]
    assert status == 1
    assert len(rows) == 2
    assert all(row.endswith(" differs") for row in rows)
    assert "-15.9495 -18.1472 -10.3041" in shown.out
    assert IMAGE_URL in shown.err


@pytest.mark.slow
def test_retrieval_checkpoint_is_compared_by_its_order(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two orders holds, whatever the weights: the head is reached, and the other order differs."""
    texts = "a cat", "the color what"
    goldens = {"one": Order("nobody/vilt", *texts), "other": Order("nobody/vilt", *reversed(texts))}

    status = run(picture, "--one", folder, "--other", folder, goldens=goldens)

    verdicts = sorted(row.split()[-1] for row in capsys.readouterr().out.splitlines()[1:])
    assert status == 1
    assert verdicts == ["differs", "ok"]


@pytest.mark.parametrize(("off", "agrees"), [(0.0, True), (1e-4, True), (5e-4, False), (float("nan"), False)], ids=str)
def test_logits_agree_within_the_published_tolerance_only(off: float, agrees: bool) -> None:
    """The tolerance is that of the published comparison, and no number is no agreement."""
    published = GOLDENS["vqa"]
    assert isinstance(published, Answer)
    logits = torch.tensor([*published.first_logits, 4.0]).numpy()
    logits[1] += off

    rows = published.rows(lambda _: {"vqa_logits": logits}, ["a", "b", "c", "2"])

    assert rows[1].agrees is agrees


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ],
    ids=["closed port", "offline mode"],
)
def test_download_that_fails_is_a_sentence_with_what_to_do(
    picture: Path, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    """Which checkpoint, why, and the ways around it; no traceback."""
    command = [sys.executable, "-m", "export.check_weights", str(picture)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"HF_HOME": str(tmp_path), "PATH": "", **environment},
    )

    sentence = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert sentence.startswith("check-weights: dandelin/vilt-b32-finetuned-vqa could not be downloaded")
    assert reason in sentence
    assert all(way in sentence for way in ("network", "HF_ENDPOINT", "HF_HOME", "--vqa DIR"))


@pytest.mark.parametrize("image", ["none", "absent", "no picture"])
def test_image_that_is_missing_is_said_with_its_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str
) -> None:
    """The picture is not shipped: the message says where it is, before anything is downloaded."""
    (tmp_path / "no picture").write_text("not a picture")

    status = run(*([] if image == "none" else [tmp_path / image]))

    assert status == 2
    assert IMAGE_URL in capsys.readouterr().err.splitlines()[-1]


def test_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped path is no hub id."""
    assert run(picture, "--vqa", tmp_path / "absent") == 2
    assert "absent is not a folder" in capsys.readouterr().err


def test_help_teaches_what_is_compared_and_how_to_go_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    """Someone who has only the command learns the rest from it."""
    assert run("--help") == 0

    text = capsys.readouterr().out
    for needed in (
        IMAGE_URL,
        "HF_ENDPOINT",
        "HF_HOME",
        "--flickr30k DIR",
        "exit status",
        *(g.hub_id for g in GOLDENS.values()),
    ):
        assert needed in text
