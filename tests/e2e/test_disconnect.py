"""Clients that go away: their work is dropped before it is run, is counted, and nobody else notices.

A real uvicorn on a real socket, and an engine that runs when the test says so.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import parse_headers
from typing import Any, Self

import factories
import httpx
import pytest
import uvicorn
from fakes import HeldEngine, SplitBackend, served

from server.admission import Admission
from server.app import create_app
from server.backend import Backend, LocalBackend
from server.connections import protocol
from server.metrics import Metrics
from server.settings import Settings

from .test_requests import base64_of

PNG = factories.encoded(factories.noise(200, 200), "PNG")
OTHER_PNG = factories.encoded(factories.noise(120, 90, seed=1), "PNG")
PATIENCE_S = 20.0


class Client:
    """A connection, with requests written to it in one piece."""

    def __init__(self, address: tuple[str, int], *requests: bytes) -> None:
        self.socket = socket.create_connection(address, timeout=PATIENCE_S)
        self._answers = self.socket.makefile("rb")
        self.send(*requests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *requests: bytes) -> None:
        self.socket.sendall(b"".join(requests))

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Read one response."""
        status = int(self._answers.readline().split()[1])
        length = int(parse_headers(self._answers)["Content-Length"])
        return status, json.loads(self._answers.read(length))

    def has_ended(self) -> bool:
        """Read to the end of the connection; tell whether there was nothing before it."""
        return self._answers.read() == b""

    def close(self) -> None:
        self._answers.close()
        self.socket.close()


class Held:
    """A server in a thread of this process, so that its engine, its metrics and its tasks can be looked at."""

    def __init__(self, *, is_split: bool) -> None:
        """Answer in one process, or as if fronts and engine were two."""
        self.engine, self.metrics = HeldEngine(), Metrics()
        admission = Admission(1024, self.metrics, time.perf_counter)
        settings = Settings(deadline_ms=60_000)
        models = [served(self.engine)]
        local = LocalBackend(settings, models, admission, self.metrics, time.perf_counter)
        backend: Backend = SplitBackend(local, models) if is_split else local
        self._app = create_app(settings, models, backend)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(self._observe, interface="asgi3", log_config=None, http=protocol(PATIENCE_S))
        )
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    async def _observe(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        await self._app(scope, receive, send)

    def start(self) -> None:
        self._thread.start()
        httpx.get(f"{self.url}/readyz").raise_for_status()  # waits in the socket's backlog until there is a server

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.engine.may_run.set()
        self._server.should_exit = True
        self._thread.join(timeout=PATIENCE_S)
        assert not self._thread.is_alive()

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def gone(self, task: str) -> float:
        labels = {"task": task, "model": "", "status": "400", "code": "client_disconnected"}
        return self.value("vilt_requests_total", **labels)

    def tasks(self) -> set[str]:
        """Name what runs in the server, connections that wait for a request aside: those have no task."""

        async def running() -> set[str]:
            own = asyncio.current_task()
            return {str(task.get_coro()) for task in asyncio.all_tasks() if task is not own}

        return asyncio.run_coroutine_threadsafe(running(), self._loop).result(timeout=PATIENCE_S)

    def send(self, *requests: bytes) -> Client:
        self._clients.append(Client(self.address, *requests))
        return self._clients[-1]

    def hold(self) -> Client:
        """Occupy the engine with a request, so that what comes next waits in the queue."""
        self.engine.may_run.clear()
        self.engine.has_begun.clear()
        connection = self.send(written("/v1/vqa", **raw(OTHER_PNG)))
        assert self.engine.has_begun.wait(PATIENCE_S)
        return connection


def until(has_happened: Callable[[], bool]) -> None:
    """Look until it is so: what happens in the server's loop gives this thread no event to wait for."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not has_happened():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(0.001)


def written(path: str, **request: Any) -> bytes:
    """Write a request as it goes over the wire."""
    made = httpx.Request("POST", f"http://test{path}", **request)
    body = made.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
    return f"POST {made.url.raw_path.decode()} HTTP/1.1\r\n{head}\r\n".encode() + body


def raw(image: bytes, question: str = "is there a star?") -> dict[str, Any]:
    return {"content": image, "headers": {"Content-Type": "image/png"}, "params": {"question": question}}


def candidates(count: int) -> list[dict[str, str]]:
    return [{"text": f"a star and {number} circles"} for number in range(count)]


FORMS: dict[str, tuple[str, bytes]] = {
    "vqa multipart": ("vqa", written("/v1/vqa", files={"image": PNG}, data={"question": "is it red?"})),
    "vqa json": ("vqa", written("/v1/vqa", json={"image": base64_of(PNG), "question": "is it red?"})),
    "vqa raw": ("vqa", written("/v1/vqa", **raw(PNG, "is it red?"))),
    "itm multipart": ("itm", written("/v1/itm", files={"image": PNG}, data={"text": "a star"})),
    "itm json": ("itm", written("/v1/itm", json={"image": base64_of(PNG), "text": "a star"})),
    "rank multipart": ("rank", written("/v1/rank", files={"query_image": PNG}, data={"texts": ["a star", "a cross"]})),
    "rank json": ("rank", written("/v1/rank", json={"query": {"image": base64_of(PNG)}, "candidates": candidates(2)})),
}


@pytest.fixture(params=[False, True], ids=["one process", "front and engine process"])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    running = Held(is_split=request.param)
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize("form", FORMS)
def test_client_that_goes_away_takes_its_work_out_of_the_queue(held: Held, form: str) -> None:
    """In every body form: counted once, never run, and who was there before and who comes after is answered."""
    task, request = FORMS[form]
    idle = held.tasks()
    first = held.hold()
    leaving = held.send(request)
    until(lambda: held.value("vilt_queue_entries") == (2 if task == "rank" else 1))

    leaving.close()

    until(lambda: held.gone(task) == 1)
    assert held.value("vilt_in_flight_entries") == 1
    held.engine.may_run.set()
    with first:
        assert first.answer()[0] == 200
    with held.send(written("/v1/vqa", **raw(PNG))) as later:
        assert later.answer()[0] == 200
    assert held.value("vilt_dropped_entries_total", reason="cancelled") == (2 if task == "rank" else 1)
    assert [len(batch) for batch in held.engine.batches] == [1, 1]
    assert held.value("vilt_queue_entries") == 0
    until(lambda: held.tasks() == idle)


def test_rank_abandoned_at_work_runs_no_further(held: Held) -> None:
    """Of hundreds of candidates, those that were not running when the client left never are."""
    ranking = written("/v1/rank", json={"query": {"image": base64_of(PNG)}, "candidates": candidates(300)})
    idle = held.tasks()
    held.engine.may_run.clear()
    leaving = held.send(ranking)
    assert held.engine.has_begun.wait(PATIENCE_S)

    leaving.close()

    until(lambda: held.gone("rank") == 1)
    held.engine.may_run.set()
    with held.send(written("/v1/vqa", **raw(PNG))) as later:
        assert later.answer()[0] == 200
    assert len(held.engine.batches) == 2
    assert held.value("vilt_in_flight_entries") == 0
    until(lambda: held.tasks() == idle)


def test_client_that_leaves_another_s_work_alone_is_missed_by_nobody(held: Held) -> None:
    """Two ask for the same and share a run; that the first goes away changes nothing for the second."""
    with held.hold() as first:
        leader, follower = (held.send(written("/v1/vqa", **raw(PNG))) for _ in range(2))
        until(lambda: held.value("vilt_cache_hits_total", cache="in_flight") == 1)

        leader.close()

        until(lambda: held.gone("vqa") == 1)
        held.engine.may_run.set()
        with follower:
            assert follower.answer()[0] == 200
        assert first.answer()[0] == 200


def test_client_that_goes_away_before_its_body_has_arrived_is_counted_too(held: Held) -> None:
    """Half a body is no work at all."""
    leaving = held.send(FORMS["vqa json"][1][:-10])
    leaving.close()

    until(lambda: held.gone("vqa") == 1)
    assert held.value("vilt_in_flight_entries") == 0
    assert held.engine.batches == []


def test_client_that_closes_its_half_counts_as_gone(held: Held) -> None:
    """uvicorn closes a connection whose client has closed its half: there is nobody whom an answer would reach."""
    with held.hold() as first, held.send(FORMS["vqa raw"][1]) as half:
        until(lambda: held.value("vilt_queue_entries") == 1)

        half.socket.shutdown(socket.SHUT_WR)

        until(lambda: held.gone("vqa") == 1)
        assert half.has_ended()
        held.engine.may_run.set()
        assert first.answer()[0] == 200


def test_requests_one_after_the_other_on_a_connection_are_all_answered(held: Held) -> None:
    """Watching a connection takes nothing from it: the next request on it is read as ever."""
    idle = held.tasks()

    with held.send() as connection:
        for number in range(30):
            connection.send(written("/v1/vqa", **raw(PNG, f"are there {number} stars?")))
            assert connection.answer()[0] == 200

    until(lambda: held.value("vilt_requests_total", task="vqa", model="shapes", status="200", code="ok") == 30)
    until(lambda: held.tasks() == idle)


def test_pipelined_requests_are_answered_in_order(held: Held) -> None:
    """Requests that arrive while one is being answered, and its connection watched, wait for their turn."""
    ids = [f"number-{number}" for number in range(8)]
    way = raw(PNG)
    requests = [written("/v1/vqa", **way | {"headers": way["headers"] | {"X-Request-ID": one}}) for one in ids]
    idle = held.tasks()

    with held.send(*requests) as connection:
        assert [connection.answer()[1]["request_id"] for _ in ids] == ids

    until(lambda: held.tasks() == idle)


def test_pipelining_client_that_goes_away_leaves_nothing_behind(held: Held) -> None:
    """The request that has begun is told, and is not run; those behind it never begin."""
    idle = held.tasks()
    first = held.hold()
    leaving = held.send(*[FORMS["vqa raw"][1]] * 2)
    until(lambda: held.value("vilt_queue_entries") == 1)

    leaving.close()
    until(lambda: held.gone("vqa") == 1)
    held.engine.may_run.set()

    with first:
        assert first.answer()[0] == 200
    until(lambda: held.tasks() == idle)
    assert held.value("vilt_requests_total", task="vqa", model="", status="500", code="internal_error") == 0
    assert held.value("vilt_in_flight_entries") == 0
    with held.send(FORMS["vqa raw"][1]) as later:
        assert later.answer()[0] == 200


@pytest.mark.slow
def test_storm_of_clients_that_go_away_is_weathered(held: Held) -> None:
    """Three hundred leave while they wait; all are counted, none is run, the next fifty are answered."""
    idle = held.tasks()
    first = held.hold()
    pictures = [factories.encoded(factories.noise(40, 40, seed=seed), "PNG") for seed in range(300)]
    leaving = [held.send(written("/v1/vqa", **raw(picture))) for picture in pictures]
    until(lambda: held.value("vilt_queue_entries") == 300)

    for connection in leaving:
        connection.close()

    until(lambda: held.gone("vqa") == 300)
    held.engine.may_run.set()
    with first:
        assert first.answer()[0] == 200
    with held.send() as connection:
        for _ in range(50):
            connection.send(written("/v1/vqa", **raw(PNG)))
            assert connection.answer()[0] == 200
    assert held.value("vilt_dropped_entries_total", reason="cancelled") == 300
    assert sum(map(len, held.engine.batches)) == 51
    assert held.value("vilt_queue_entries") == 0
    until(lambda: held.tasks() == idle)


def test_slowest_requests_tell_where_their_time_went_and_nothing_of_what_was_asked(held: Held) -> None:
    """Answers, refusals and those nobody waited for, by id; no text, no picture."""
    with held.hold() as first:
        way = raw(PNG, "is there a zebra?")
        with held.send(written("/v1/vqa", **way | {"headers": way["headers"] | {"X-Request-ID": "slow-1"}})) as second:
            until(lambda: held.value("vilt_queue_entries") == 1)
            held.engine.may_run.set()
            answer = second.answer()[1]
        assert first.answer()[0] == 200
    httpx.post(f"{held.url}/v1/itm", json={})

    response = httpx.get(f"{held.url}/v1/slowest")

    found = {request["request_id"]: request for request in response.json()["requests"]}
    assert len(found) == 3
    slow = found["slow-1"]
    assert (slow["task"], slow["model"], slow["status"], slow["code"]) == ("vqa", "shapes", 200, "ok")
    stages = {name: value for name, value in answer["timing_ms"].items() if name != "total"}
    assert slow["timing_ms"] == pytest.approx(stages)
    assert slow["total_ms"] >= answer["timing_ms"]["total"]
    assert slow["when"].endswith("Z")
    assert {request["code"] for request in found.values()} == {"ok", "missing_field"}
    assert "zebra" not in response.text
    assert response.json()["requests"] == sorted(found.values(), key=lambda request: -request["total_ms"])
