"""A server whose answers, delays and failures are known, on a thread of its own."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODEL = {"name": "<fake>", "precision": "fp32", "provider": "none", "tasks": ["vqa", "itm"], "max_text_tokens": 5}
RANKER = {**MODEL, "name": "<ranker>", "tasks": ["rank"], "max_text_tokens": 4}
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/vqa": {"answers": [{"answer": "blue", "score": 0.9}]},
    "/v1/itm": {"match": True, "score": 0.8},
    "/v1/rank": {"results": [{"index": 1, "id": None, "score": 0.7, "logit": 1.0}]},
}
STAGES = "receive;dur=0.500, inference;dur=2.000, interaction;dur=1.500, total;dur=2.500"


@dataclass(frozen=True)
class Seen:
    """A request as it arrived, and the how manieth it was."""

    number: int
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def route(self) -> str:
        return self.path.partition("?")[0]


@dataclass(frozen=True)
class Said:
    """What to answer, and how long to take over it."""

    body: dict[str, Any]
    status: int = 200
    delay_s: float = 0.0


def right(seen: Seen) -> Said:
    """Answer like a server that is always right."""
    return Said(ANSWERS[seen.route])


@dataclass
class FakeServer:
    """Answers as its behaviour says."""

    behave: Callable[[Seen], Said] = right
    models: Sequence[dict[str, Any]] = (RANKER, MODEL)
    one_at_a_time: bool = False
    stalled_until_s: float = 0.0  # by time.monotonic: until then no GET is answered
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Said:
        with self._turn if self.one_at_a_time else contextlib.nullcontext():
            with self._lock:
                seen = Seen(len(self.seen), path, headers, body)
                self.seen.append(seen)
            said = self.behave(seen)
            time.sleep(said.delay_s)
        return said


class _Server(ThreadingHTTPServer):
    request_queue_size = 500
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are a part of some tests."""


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    """A running server; its behaviour can be set."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            time.sleep(max(0.0, fake.stalled_until_s - time.monotonic()))
            self._send(200, {"models": fake.models})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            said = fake.answer(self.path, dict(self.headers), body)
            self._send(said.status, said.body)

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Server-Timing", STAGES)
            self.send_header("X-Request-ID", "abc")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield fake
        server.shutdown()
        thread.join()


@pytest.fixture
def said() -> Callable[..., Said]:
    """Make a right answer, with changes."""
    return lambda seen, **changes: Said(**{"body": ANSWERS[seen.route], **changes})


@pytest.fixture
def refused() -> Said:
    """A refusal."""
    return Said({"error": "Too late.", "code": "deadline_unreachable", "retry_after_ms": 12.5}, status=503)
