"""Fuzz the task routes with an engine that answers at once: any body is answered, or refused as the contract says.

python tests/fuzz/bodies.py --seconds 240 --seed 1

An input is a route, a Content-Type and a query string, a line each, and the body.
"""

import asyncio
import base64
import io
import json
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import atheris

with atheris.instrument_imports(include=["json", "models", "multipart", "server", "starlette"]):
    from PIL import Image

    from server.admission import Admission
    from server.app import create_app
    from server.backend import LocalBackend
    from server.metrics import Metrics
    from server.settings import Settings

from fakes import FakeEngine, served
from runner import fuzz

ROUTES = ("vqa", "itm", "rank")
REFUSALS = {400, 404, 413, 415, 422}
CHUNK_BYTES = 1_000


class Asked:
    """An application and a loop, kept from one input to the next."""

    def __init__(self) -> None:
        metrics = Metrics()
        admission = Admission(1024, metrics, time.perf_counter)
        self._settings = Settings(decoded_cache_mb=1, max_body_bytes=20_000, max_image_pixels=100_000)
        models = [served(FakeEngine())]
        backend = LocalBackend(self._settings, models, admission, metrics, time.perf_counter)
        self._app = create_app(self._settings, models, backend)
        self._loop = asyncio.new_event_loop()
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._started = asyncio.Event()
        self._loop.create_task(self._live())
        self._loop.run_until_complete(self._started.wait())

    async def _live(self) -> None:
        async def receive() -> dict[str, Any]:
            if not self._started.is_set():
                return {"type": "lifespan.startup"}
            return await self._inbox.get()

        async def send(_: Any) -> None:
            self._started.set()

        await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    def ask(self, data: bytes) -> None:
        route, content_type, query, body = (*data.split(b"\n", 3), b"", b"", b"")[:4]
        path = f"/v1/{ROUTES[sum(route) % len(ROUTES)]}"
        status, answer = self._loop.run_until_complete(self._post(path, content_type, query, body))
        found = json.loads(answer)
        if status == 200:
            assert found["request_id"]
        else:
            assert status in REFUSALS, (status, found)
            assert found["error"]
            assert found["code"]

    async def _post(self, path: str, content_type: bytes, query: bytes, body: bytes) -> tuple[int, bytes]:
        parts = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)] or [b""]
        messages = iter({"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts)
        status, answer = 0, bytearray()

        async def receive() -> Any:
            for message in messages:
                return message
            return await asyncio.get_running_loop().create_future()  # the client waits

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": quote(query, safe="=&%+").encode(),
            "root_path": "",
            "headers": [(b"host", b"test"), (b"content-type", content_type)],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await self._app(scope, receive, send)
        return status, bytes(answer)


def requests() -> Iterator[bytes]:
    """Write requests of every form that are answered with 200, and some that are nearly."""
    file = io.BytesIO()
    Image.new("RGB", (33, 40), "red").save(file, "PNG")
    picture, text = file.getvalue(), base64.b64encode(file.getvalue()).decode()
    a, b, c = (bytes((route,)) for route in (0, 1, 2))
    yield b"\n".join((a, b"image/png", b"question=is+it+red", picture))
    yield b"\n".join((b, b"image/png", b"text=a%20star&model=shapes", picture))
    vqa = {"image": f"data:image/png;base64,{text}", "question": "is it röt?", "top_k": 2, "model": "shapes"}
    yield b"\n".join((a, b"application/json; charset=utf-8", b"", json.dumps(vqa).encode()))
    texts = {"query": {"image": text}, "candidates": [{"id": "a", "text": "a star"}, {"text": "a"}], "top_k": 1}
    yield b"\n".join((c, b"application/json", b"", json.dumps(texts).encode()))
    images = {"query": {"text": "a star"}, "candidates": [{"image": text}]}
    yield b"\n".join((c, b"application/json", b"model=shapes", json.dumps(images, ensure_ascii=False).encode()))
    for route, fields in (
        (a, {"image": picture, "question": b"is it red?", "top_k": b"3"}),
        (b, {"image": picture, "text": b"a star"}),
        (c, {"query_text": b"a star", "images": picture}),
        (c, {"query_image": picture, "texts": b"a star"}),
    ):
        parts = [
            b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
            for name, value in fields.items()
        ]
        yield b"\n".join((route, b"multipart/form-data; boundary=x", b"", b"".join(parts) + b"--x--\r\n"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of damaged metadata
    logging.disable()
    fuzz("bodies", Asked().ask, requests())
