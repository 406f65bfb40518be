"""What the peers share: flags, preprocessing by transformers, and logits to answers."""

import argparse
import sys
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor
from transformers import ViltForQuestionAnswering, ViltProcessor
from transformers.utils import logging

MAX_TOKENS = 40  # length of a padded question: max_position_embeddings

Answers = dict[str, list[dict[str, str | float]]]


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Declare the flags of every peer."""
    flags = argparse.ArgumentParser(prog=f"python -m export.peers.{module}", description=description)
    flags.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="folder or hub id of a question answering ViLT"
    )
    flags.add_argument("--port", type=int, default=8000, help="port to listen on (default %(default)s)")
    flags.add_argument("--log-level", default="info", help="lowest level that is logged (default %(default)s)")
    return flags


def load(checkpoint: str) -> tuple[Any, ViltForQuestionAnswering]:
    """Load processor and model as the model card does.

    Raises: SystemExit: they cannot be loaded; the message says why.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        processor = ViltProcessor.from_pretrained(checkpoint)
        return processor, ViltForQuestionAnswering.from_pretrained(checkpoint).eval()
    except (OSError, ValueError) as error:  # the hub's client raises both
        why = str(error).splitlines()[0]
        sys.exit(f"{checkpoint} is neither a checkpoint folder nor could it be downloaded: {why}")


def encode(processor: Any, image: BinaryIO, question: str, *, tensors: str = "pt", pad: bool = False) -> Any:
    """Make the model's inputs, with the question at its own length or padded to MAX_TOKENS."""
    padding = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True} if pad else {}
    return processor(Image.open(image).convert("RGB"), question, return_tensors=tensors, **padding)


def answers(labels: dict[int, str], logits: Tensor, top_k: int) -> Answers:
    """Name the best answers, as our server does.

    Shapes: logits (1, labels).
    """
    scores, indices = torch.sigmoid(logits[0]).topk(min(top_k, len(labels)))
    best = zip(indices.tolist(), scores.tolist(), strict=True)
    return {"answers": [{"answer": labels[index], "score": score} for index, score in best]}
