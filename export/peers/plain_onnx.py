"""A straightforward ONNX export behind FastAPI: torch.onnx.export of transformers' model, onnxruntime's defaults.

One change makes ViLT exportable: its `visual_embed` samples patches with torch.multinomial and loops over a batch's
pictures. The replacement embeds every patch of one picture, which has no padding, and samples none.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from types import MethodType
from typing import Annotated, Any

import onnxruntime
import torch
import uvicorn
from fastapi import FastAPI, Form, UploadFile
from torch import Tensor, nn
from torch.export import Dim
from transformers import ViltForQuestionAnswering

from export.peers import answering
from export.peers.answering import Answers

INPUTS = ["input_ids", "attention_mask", "pixel_values"]


class Logits(nn.Module):
    """The model with positional inputs and one output, as an exporter wants it."""

    def __init__(self, model: ViltForQuestionAnswering) -> None:
        super().__init__()
        self.model = model
        embeddings: Any = model.vilt.embeddings
        embeddings.visual_embed = MethodType(embed_every_patch, embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Shapes: (1, L), (1, L), (1, 3, H, W) -> (1, labels)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values).logits


def embed_every_patch(
    self: Any, pixel_values: Tensor, pixel_mask: Tensor, max_image_length: int
) -> tuple[Tensor, Tensor, None]:
    """Embed a picture without padding.

    Shapes: pixel_values (1, 3, H, W) -> (1, 1 + P, hidden_size), mask (1, 1 + P).
    Deviates: from ViltEmbeddings.visual_embed, which also shuffles the patches; attention does not see their order.
    """
    patches = self.patch_embeddings(pixel_values)  # (1, C, h, w)
    side = self.config.image_size // self.config.patch_size
    table = self.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (1, C, side, side)
    positions = nn.functional.interpolate(table, size=patches.shape[2:], mode="bilinear", align_corners=True)
    embedded = (patches + positions).flatten(2).transpose(1, 2)  # (1, P, C)
    embedded = torch.cat([self.cls_token + self.position_embeddings[:, :1], embedded], dim=1)  # (1, 1 + P, C)
    return embedded, torch.ones(1, embedded.shape[1], dtype=torch.long), None


def export(model: ViltForQuestionAnswering, path: Path) -> None:
    """Write the graph, with any text length and picture size."""
    length = {1: Dim("length", min=3, max=answering.MAX_TOKENS)}
    size = {2: 32 * Dim("rows", max=20), 3: 32 * Dim("columns", max=20)}
    input_ids = torch.ones(1, 12, dtype=torch.long)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's advice about its own insides
        torch.onnx.export(
            Logits(model).eval(),
            (input_ids, torch.ones_like(input_ids), torch.zeros(1, 3, 384, 512)),
            path,
            input_names=INPUTS,
            output_names=["logits"],
            dynamic_shapes=(length, length, size),
            verbose=False,
        )


def create_app(checkpoint: str) -> FastAPI:
    """Export the model, then answer."""
    processor, model = answering.load(checkpoint)
    labels = model.config.id2label
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx")
    app = FastAPI()

    @app.get("/readyz")
    def readyz() -> None: ...

    @app.post("/v1/vqa")
    def vqa(image: UploadFile, question: Annotated[str, Form()], top_k: Annotated[int, Form()] = 5) -> Answers:
        inputs = answering.encode(processor, image.file, question, tensors="np")
        (logits,) = session.run(None, {name: inputs[name] for name in INPUTS})
        return answering.answers(labels, torch.from_numpy(logits), top_k)

    return app


def main() -> None:
    options = answering.parser("plain_onnx", __doc__).parse_args()
    uvicorn.run(create_app(options.checkpoint), port=options.port, log_level=options.log_level)


if __name__ == "__main__":
    main()
