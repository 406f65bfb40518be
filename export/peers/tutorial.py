"""A server as in tutorials: transformers behind FastAPI, with the model card's code in a plain `def` endpoint.

FastAPI runs such an endpoint on up to 40 threads, and torch uses all cores for each run: nothing is tuned or bounded.
"""

from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, Form, UploadFile

from export.peers import answering
from export.peers.answering import Answers


def create_app(checkpoint: str, *, pad: bool) -> FastAPI:
    """Load the model, then answer."""
    processor, model = answering.load(checkpoint)
    app = FastAPI()

    @app.get("/readyz")
    def readyz() -> None: ...

    @app.post("/v1/vqa")
    def vqa(image: UploadFile, question: Annotated[str, Form()], top_k: Annotated[int, Form()] = 5) -> Answers:
        inputs = answering.encode(processor, image.file, question, pad=pad)
        with torch.inference_mode():
            logits = model(**inputs).logits
        return answering.answers(model.config.id2label, logits, top_k)

    return app


def main() -> None:
    parser = answering.parser("tutorial", __doc__)
    parser.add_argument("--pad", action="store_true", help="pad every question to 40 tokens")
    options = parser.parse_args()
    app = create_app(options.checkpoint, pad=options.pad)
    uvicorn.run(app, port=options.port, log_level=options.log_level)


if __name__ == "__main__":
    main()
