"""The same model behind LitServe with its defaults: one worker process that answers one request at a time."""

import multiprocessing
import signal
from typing import Any

import litserve
import torch
from fastapi import Request
from torch import Tensor

from export.peers import answering
from export.peers.answering import Answers


class Vqa(litserve.LitAPI):
    """The model card's code, in the methods that LitServe requires."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(api_path="/v1/vqa")
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:
        self._processor, model = answering.load(self._checkpoint)
        self._model = model.to(device)

    def decode_request(self, request: Request, context: dict[str, Any]) -> Any:
        form: Any = request  # LitServe has read it
        context["top_k"] = int(form.get("top_k", 5))
        return answering.encode(self._processor, form["image"].file, form["question"])

    def predict(self, inputs: Any) -> Tensor:
        with torch.inference_mode():
            return self._model(**inputs.to(self._model.device)).logits

    def encode_response(self, logits: Tensor, context: dict[str, Any]) -> Answers:
        return answering.answers(self._model.config.id2label, logits, context["top_k"])


def interrupt(*_: object) -> None:
    """Stop as Ctrl+C does: LitServe's other processes, which inherit this handler, would outlive a SIGTERM."""
    if multiprocessing.parent_process() is None:
        raise KeyboardInterrupt


def main() -> None:
    options = answering.parser("lit", __doc__).parse_args()
    server = litserve.LitServer(Vqa(options.checkpoint), accelerator="cpu", healthcheck_path="/readyz")
    signal.signal(signal.SIGTERM, interrupt)
    server.run(host="127.0.0.1", port=options.port, log_level=options.log_level, generate_client_file=False)


if __name__ == "__main__":
    main()
