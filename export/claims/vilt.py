"""ViLT-B/32 with random weights, exported like any checkpoint to an artifact that the server could serve.

It has only a matching head, so that it ends where the designs that it is compared with end.
"""

import dataclasses
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from transformers import ViltConfig

from export import checkpoint, random_checkpoint
from export.artifact import write_artifact
from export.claims.count import count_macs, count_parameters, skeleton
from export.claims.sizes import Sizes
from models.manifest import MANIFEST, PARTS, read_manifest

NAME = "vilt"
IMAGE_PX = (384, 640)
VISUAL_TOKENS, TEXT_TOKENS = 200, 40  # Table 6
SMALLEST_VOCABULARY = 11_755  # VSE++'s; ids below it are words of every design


def write(output: Path, sizes: Sizes) -> dict[str, Any]:
    """Write the artifact in fp32 and int8 unless it is there, and describe it for the plan."""
    folder = output / NAME
    if not (folder / MANIFEST).exists():
        _write_artifact(folder, sizes)
    graphs = read_manifest(folder).precisions["fp32"].graphs
    width = sizes.width(768)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "text_embedding": {"input_ids": (1, TEXT_TOKENS)},
        "visual_embedding": {"patches": (1, VISUAL_TOKENS, 3072), "position_ids": (1, VISUAL_TOKENS)},
        "interaction": {
            "text": (1, TEXT_TOKENS, width),
            "image": (1, 1 + VISUAL_TOKENS, width),
            "mask": (1, TEXT_TOKENS + 1 + VISUAL_TOKENS),
        },
    }
    steps = []
    for part in PARTS:
        model = onnx.load(folder / graphs[part].file)
        described = {"stage": part, "graph": graphs[part].file}
        steps.append(
            {**described, **asdict(count_parameters(model)), **asdict(count_macs(skeleton(model), shapes[part]))}
        )
    return {
        "name": NAME,
        "title": "ViLT-B/32",
        "family": "patch projection",
        "image_px": IMAGE_PX,
        "visual_tokens": VISUAL_TOKENS,
        "text_tokens": TEXT_TOKENS,
        "artifact": NAME,
        "steps": steps,
    }


def _write_artifact(folder: Path, sizes: Sizes) -> None:
    width = sizes.width(768)
    config = ViltConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=sizes.depth(12),
        vocab_size=sizes.width(random_checkpoint.VOCABULARY),
        id2label={0: "no", 1: "yes"},  # of the classifier, which is replaced below
        label2id={"no": 0, "yes": 1},
    )
    with tempfile.TemporaryDirectory() as temporary:
        random_checkpoint.write(Path(temporary), config)
        loaded = checkpoint.load(temporary)
    state = {name: value for name, value in loaded.state.items() if not name.startswith("classifier.")}
    generator = torch.Generator().manual_seed(1)
    state["itm_score.fc.weight"] = 0.02 * torch.randn(2, width, generator=generator)
    state["itm_score.fc.bias"] = torch.zeros(2)
    write_artifact(
        dataclasses.replace(loaded, state=state, labels=None),
        folder,
        name="ViLT-B/32, random weights",
        description="For timing: its answers are noise.",
        tasks=["itm"],
        report=lambda _: None,
        precision="int8",
    )
