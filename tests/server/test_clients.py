"""Keys, places, connections: who may ask, how much at once, and for how long there is somebody to answer."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest
from fakes import FakeClock, FakeEngine, served
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.clients import Connection, client_of
from server.errors import Overloaded
from server.metrics import Metrics
from server.places import Places
from server.settings import Settings

T = TypeVar("T")
KEY, OTHER_KEY = "k3y-of.one~person+/=", "k3y-of.another"
OPEN_PATHS = ("/livez", "/metrics", "/openapi.json", "/docs")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def app(metrics: Metrics, **settings: Any) -> Any:
    """Wire a server that is never started: what its edge refuses needs no more."""
    admission = Admission(16, metrics, FakeClock())
    made, models = Settings(**settings), [served(FakeEngine())]
    return create_app(made, models, LocalBackend(made, models, admission, metrics, FakeClock()))


def send(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with client(app) as ours:
            return await ours.request(method, path, **request)

    return run(scenario)


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(scenario(), timeout=30))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def counted(metrics: Metrics, task: str, status: str, code: str) -> float | None:
    labels = {"task": task, "model": "", "status": status, "code": code}
    return metrics.registry.get_sample_value("vilt_requests_total", labels)


WRONG: dict[str, dict[str, str | bytes]] = {
    "none": {},
    "another": bearer("wrong"),
    "a part of it": bearer(KEY[:-1]),
    "more than it": bearer(KEY + "="),
    "empty": {"Authorization": "Bearer "},
    "not ASCII": {"Authorization": "Bearer schlüssel".encode()},
    "another scheme": {"Authorization": f"Basic {KEY}"},
    "both, separated": bearer(f"{KEY},{OTHER_KEY}"),
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_request_without_the_key_is_401_in_the_contract_s_body(
    metrics: Metrics, headers: dict[str, str | bytes]
) -> None:
    """Whatever is wrong with the key, the client reads the same code and which scheme is wanted."""
    response = send(app(metrics, api_key=f"{KEY},{OTHER_KEY}"), "POST", "/v1/vqa", headers=headers)

    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["request_id"] == response.headers["X-Request-ID"]
    assert counted(metrics, "vqa", "401", "unauthorized") == 1


@pytest.mark.parametrize("headers", [bearer(KEY), bearer(OTHER_KEY), {"Authorization": f"bearer {KEY}"}], ids=range(3))
def test_request_with_a_key_is_let_in(metrics: Metrics, headers: dict[str, str]) -> None:
    """Any of the keys will do, and the scheme's case is free, as RFC 7235 says."""
    assert send(app(metrics, api_key=f"{KEY},{OTHER_KEY}"), "GET", "/v1/models", headers=headers).status_code == 200


def test_every_route_under_v1_needs_the_key_and_no_other_does(metrics: Metrics) -> None:
    """A route that somebody adds under /v1 is behind the key, too; probes and documentation never are."""
    guarded = app(metrics, api_key=KEY)
    paths = send(guarded, "GET", "/openapi.json").json()["paths"]

    for path in paths:
        method = next(iter(paths[path]))
        assert (send(guarded, method, path).status_code == 401) is path.startswith("/v1/"), path
    assert len([path for path in paths if path.startswith("/v1/")]) >= 6
    assert {send(guarded, "GET", path).status_code for path in OPEN_PATHS} == {200}


def test_server_without_a_key_asks_for_none(metrics: Metrics) -> None:
    """Off by default: nothing is asked for, and a header sent all the same is no reason to refuse."""
    assert send(app(metrics), "GET", "/v1/models").status_code == 200
    assert send(app(metrics), "GET", "/v1/models", headers=bearer("any")).status_code == 200


@pytest.mark.parametrize(("settings", "schemes"), [({"api_key": KEY}, ["API key"]), ({}, [])], ids=["key", "no key"])
def test_openapi_shows_the_security_scheme_where_a_key_is_needed(
    metrics: Metrics, settings: dict[str, str], schemes: list[str]
) -> None:
    """/docs offers a field for the key exactly when there is one to give."""
    schema = send(app(metrics, **settings), "GET", "/openapi.json").json()

    assert list(schema["components"].get("securitySchemes", {})) == schemes
    assert schema["paths"]["/v1/vqa"]["post"].get("security", []) == [{scheme: []} for scheme in schemes]
    assert "security" not in schema["paths"]["/livez"]["get"]


def test_key_is_never_logged_shown_or_part_of_a_name(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the right key nor one that was sent is anywhere but in the request."""
    caplog.set_level(logging.DEBUG)
    guarded = app(metrics, api_key=KEY)

    seen = [send(guarded, "POST", "/v1/vqa", headers=bearer(key)).text for key in (KEY, "wrong-key")]

    written = [str(vars(record)) for record in caplog.records]
    for text in (*seen, *written, metrics.render().decode(), repr(Settings(api_key=KEY))):
        assert KEY not in text
        assert "wrong-key" not in text


@pytest.mark.parametrize("key", ["", ",", "a,", "with space", "schlüssel", "=", "a\n"])
def test_key_that_no_header_could_hold_starts_no_server(key: str) -> None:
    """An empty key is a secret that did not arrive, not a wish for an open server."""
    with pytest.raises(ValidationError, match="a key is"):
        Settings(api_key=key)


def request_of(*, state: dict[str, str] | None = None, peer: tuple[str, int] | None = ("10.0.0.7", 4711)) -> Request:
    return Request({"type": "http", "headers": [(b"authorization", b"Bearer x")], "client": peer, "state": state or {}})


def test_client_is_the_key_that_let_it_in_or_else_its_address() -> None:
    """A key that nobody checked names nobody, or a client could be as many as it liked."""
    assert client_of(request_of()) == "10.0.0.7"
    assert client_of(request_of(state={"client": "key 2"})) == "key 2"
    assert client_of(request_of(peer=None)) == ""


class Held:
    """A request whose body stays away until it is let go; it holds its place before a byte has been read."""

    def __init__(self) -> None:
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def body(self) -> AsyncIterator[bytes]:
        self.began.set()
        await self.may_end.wait()
        yield b"{}"


@contextlib.asynccontextmanager
async def holding(ours: httpx.AsyncClient, **headers: str) -> AsyncIterator[None]:
    """Have a request in flight for as long as the block lasts."""
    held = Held()
    headers = {"Content-Type": "application/json", **headers}
    sending = asyncio.create_task(ours.post("/v1/vqa", content=held.body(), headers=headers))
    await held.began.wait()
    try:
        yield
    finally:
        held.may_end.set()
        await sending


def test_request_beyond_the_client_s_places_is_429_before_its_body_is_read(metrics: Metrics) -> None:
    """It costs next to nothing, and says when to come back; once a place is free the next is taken on."""
    limited = app(metrics, max_client_requests=1)
    unread = Held()

    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        async with client(limited) as ours:
            async with holding(ours):
                refused = await ours.post("/v1/rank", content=unread.body())
            return refused, await ours.post("/v1/vqa", json={})

    refused, later = run(scenario)

    assert (refused.status_code, refused.json()["code"]) == (429, "client_over_limit")
    assert refused.json()["error"].startswith("You have 1 request in progress,")
    assert int(refused.headers["Retry-After"]) * 1000 >= refused.json()["retry_after_ms"] > 0
    assert not unread.began.is_set()
    assert counted(metrics, "rank", "429", "client_over_limit") == 1
    assert later.json()["code"] == "missing_field"


def test_clients_of_different_keys_have_places_of_their_own(metrics: Metrics) -> None:
    """Nobody is refused for what another does; one key is one client, wherever it comes from."""
    limited = app(metrics, max_client_requests=1, api_key=f"{KEY},{OTHER_KEY}")

    async def scenario() -> list[int]:
        async with client(limited) as ours, holding(ours, **bearer(KEY)):
            answers = [await ours.post("/v1/vqa", json={}, headers=bearer(key)) for key in (KEY, OTHER_KEY)]
            return [answer.status_code for answer in answers]

    assert run(scenario) == [429, 400]


def test_requests_that_are_no_tasks_take_no_place(metrics: Metrics) -> None:
    """Who is at its limit can still ask what the server is doing."""
    limited = app(metrics, max_client_requests=1)

    async def scenario() -> set[int]:
        async with client(limited) as ours, holding(ours):
            return {(await ours.get(path)).status_code for path in ("/v1/models", "/v1/slowest", "/livez")}

    assert run(scenario) == {200}


@contextlib.contextmanager
def taken(places: Places, count: int, task: str = "vqa") -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(places.take("a", task))
        yield


def refusal(places: Places, task: str = "vqa") -> Overloaded:
    with pytest.raises(Overloaded) as refused, places.take("a", task):
        pass
    return refused.value


def test_retry_after_is_what_is_left_of_the_oldest_request() -> None:
    """At first a request takes a run's time; then what requests of its task have taken."""
    clock = FakeClock()
    places = Places(2, 0.1, clock)

    with taken(places, 2):
        assert refusal(places).retry_after_s == pytest.approx(0.1)
    for _ in range(100):
        with places.take("a", "vqa"):
            clock.now_s += 2.0
    with taken(places, 2):
        clock.now_s += 0.5

        assert refusal(places).retry_after_s == pytest.approx(1.5, abs=0.01)


def test_retry_after_of_an_overdue_request_is_how_often_one_of_them_ends() -> None:
    """Never "now": of four requests that take a second each, one ends every quarter of a second."""
    clock = FakeClock()
    places = Places(4, 1.0, clock)

    with taken(places, 4):
        clock.now_s += 5.0

        assert refusal(places).retry_after_s == pytest.approx(0.25)


def test_durations_of_tasks_are_told_apart() -> None:
    """A rank's minute says nothing about a question."""
    clock = FakeClock()
    places = Places(1, 0.1, clock)
    with places.take("a", "rank"):
        clock.now_s += 60

    with taken(places, 1, "vqa"):
        assert refusal(places).retry_after_s == pytest.approx(0.1)


def test_places_are_given_back_whatever_happens_and_nobody_is_remembered() -> None:
    """Clients that have nothing in flight take no memory, after a failure as after a refusal."""
    places = Places(1, 0.1, FakeClock())

    def fail(client: str) -> None:
        with places.take(client, "vqa"):
            with pytest.raises(Overloaded), places.take(client, "vqa"):
                pass
            raise KeyError(client)

    for index in range(100):
        with pytest.raises(KeyError):
            fail(f"client {index}")

    assert places._taken == {}


class Wire:
    """What a server tells of a connection, when the test says so."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def request(self) -> Request:
        return Request({"type": "http", "headers": []}, self.messages.get)


def test_walk_whose_client_goes_away_is_cancelled() -> None:
    """Whoever waits inside is told to stop, cleans up, and the caller learns why."""
    cleaned_up = []

    async def scenario() -> None:
        wire = Wire()
        try:
            async with Connection(wire.request()) as connection:
                connection.watch()
                wire.messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
                wire.messages.put_nowait({"type": "http.disconnect"})
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaned_up.append(True)
        finally:
            current = asyncio.current_task()
            assert current is not None
            assert current.cancelling() == 0  # the task may go on: it has an error to answer
            await asyncio.sleep(0)

    with pytest.raises(ClientDisconnect):
        run(scenario)
    assert cleaned_up == [True]


def test_walk_that_ends_leaves_no_task_behind() -> None:
    """Watching ends with the walk: after it nobody reads the connection but the server."""

    async def scenario() -> tuple[set[asyncio.Task[Any]], int]:
        before = asyncio.all_tasks()
        wire = Wire()
        async with Connection(wire.request()) as connection:
            connection.watch()
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        wire.messages.put_nowait({"type": "http.request"})
        return asyncio.all_tasks() - before, wire.messages.qsize()

    assert run(scenario) == (set(), 1)


def test_walk_that_somebody_else_cancels_stays_cancelled() -> None:
    """A server that ends its tasks at the drain's end is no client that goes away, even when both happen at once."""

    async def walk(wire: Wire, began: asyncio.Event) -> None:
        async with Connection(wire.request()) as connection:
            connection.watch()
            began.set()
            await asyncio.Event().wait()

    async def scenario() -> list[bool]:
        cancelled = []
        for also_gone in (False, True):
            wire, began = Wire(), asyncio.Event()
            task = asyncio.create_task(walk(wire, began))
            await began.wait()
            if also_gone:
                wire.messages.put_nowait({"type": "http.disconnect"})
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            cancelled.append(task.cancelled())
        return cancelled

    assert run(scenario) == [True, True]
