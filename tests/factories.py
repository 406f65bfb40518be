"""Things made in code for tests: small ViLT checkpoints with every parameter redrawn, pictures, their bytes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForQuestionAnswering

from models.batch import Features
from models.spec import ViltSpec
from server.gpu.parity import _row

State = dict[str, torch.Tensor]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "color", "is", "the", "cat", "?", "a", "##s"]
ORIENTATION = 0x0112  # the EXIF tag


def small_config(**changes: Any) -> ViltConfig:
    """Describe a ViLT of small width and full geometry: 384 / 32, so that all 37 grids exist."""
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 64,
        "id2label": {index: f"answer {index}" for index in range(11)},
    }
    return ViltConfig(**{**sizes, **changes})


def redrawn_state(config: ViltConfig, seed: int = 0) -> State:
    """Draw every parameter of every head at random, large enough that a wrong map shows.

    transformers starts positions, cls token and biases at zero, which would hide most mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    state = dict(ViltForQuestionAnswering(config).state_dict())
    state |= {
        name: value
        for name, value in ViltForImageAndTextRetrieval(config).state_dict().items()
        if name.startswith("rank_output.")
    }
    state |= {"itm_score.fc.weight": torch.empty(2, config.hidden_size), "itm_score.fc.bias": torch.empty(2)}
    for name, value in state.items():
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim == 1 and name.endswith("weight"):  # a layer norm's scale
            state[name] = 1 + 0.1 * drawn
        elif value.ndim == 1 or "position_embeddings" in name or "cls_token" in name or "token_type" in name:
            state[name] = 0.2 * drawn
        else:
            state[name] = drawn * value[0].numel() ** -0.5
    return state


def write_checkpoint(folder: Path, config: ViltConfig, state: State, *, pickled: bool = False) -> Path:
    """Write a Hugging Face folder: configuration, weights, vocabulary, image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    contiguous = {name: value.contiguous() for name, value in state.items()}
    if pickled:
        torch.save(contiguous, folder / "pytorch_model.bin")
    else:
        save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    processor = {"size": {"shortest_edge": config.image_size}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def only(state: State, *prefixes: str) -> State:
    """Keep the weights under some names, as a checkpoint with fewer heads has them."""
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Draw a picture that is different everywhere, so that a wrong flip, crop or resize shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Write a picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def turned(upright: Image.Image, orientation: int, file_format: str, **options: Any) -> bytes:
    """Write a picture as a camera held in one of eight ways does: pixels as they fell, and how to turn them back."""
    fell = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(fell[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(stored, file_format, exif=exif, **options)


def random_batch(spec: ViltSpec, *, seed: int, size: int) -> list[Features]:
    """Draw a batch of random pixels, grids, texts and lengths."""
    rng = np.random.default_rng(seed)
    return [_row(spec, rng, spec.grids[rng.integers(len(spec.grids))]) for _ in range(size)]
