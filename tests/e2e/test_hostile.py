"""Bodies and heads that are made to hurt: refused or ended in time, memory as before, and the process alive."""

import asyncio
import contextlib
import gzip
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import factories
import httpx
import pytest

from server.connections import HEAD_BYTES

from .conftest import Running, connect, drain, start, stop
from .test_disconnect import Held

RECEIVE_TIMEOUT_S = 2.0
ENDED_WITHIN_S = 3 * RECEIVE_TIMEOUT_S  # the machine may be busy
HEAD_WITHIN_S, KEEP_ALIVE_S = 0.5, 2  # of a server that is done with a connection sooner
TIMER_S = 0.001  # that a timer may run early
WARM_UP, REQUESTS = 20, 100
GROWTH_BYTES = 5_000_000  # of RSS in REQUESTS
AT_ONCE = 5
ROUNDS = 3  # one of them has to grow less: what an allocator keeps grows once, a leak each time
PNG = factories.encoded(factories.noise(64, 48), "PNG")
PATH = "/v1/vqa?question=is+there+a+star"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    """A server that waits two seconds for a head, and two for a body."""
    running = start(f"--receive-timeout-s={RECEIVE_TIMEOUT_S}", "--deadline-ms=60000")
    drain(running)
    yield running
    stop(running)


def head(*lines: str, content_type: str = "image/png") -> bytes:
    written = "\r\n".join((f"POST {PATH} HTTP/1.1", "Host: test", f"Content-Type: {content_type}", *lines))
    return f"{written}\r\n\r\n".encode()


async def answer(running: Running, *pieces: bytes, pause_s: float = 0.0) -> tuple[int, dict[str, object]]:
    """Send these bytes, with pauses in between, and read until the server hangs up or has answered; 0 is no answer."""
    address = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)  # the attack itself, nothing is waited for

    sending = asyncio.create_task(send())
    try:
        started = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, {}
    else:
        length = next(
            int(line.split(b":")[1]) for line in started.splitlines() if line.lower().startswith(b"content-length")
        )
        return int(started.split()[1]), json.loads(await reader.readexactly(length))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


Attack = Callable[[Running], Awaitable[tuple[int, dict[str, object]]]]
BOUNDARY = "multipart/form-data; boundary=x"
CHUNKS = b"1\r\n\0\r\n" * 100_000 + b"0\r\n\r\n"
BOMB = gzip.compress(b'{"image": "' + b"A" * 50_000_000 + b'"}')
DEEP = b'{"image": ' + b"[" * 250_000
MANY = b'{"image": [' + b"[]," * 1_000_000 + b"[]]}"


def sized(data: bytes, content_type: str, *lines: str) -> bytes:
    return head(f"Content-Length: {len(data)}", *lines, content_type=content_type) + data


ATTACKS: dict[str, tuple[bytes, int, str]] = {
    "100,000 chunks of a byte, raw": (head("Transfer-Encoding: chunked") + CHUNKS, 422, "invalid_image"),
    "100,000 chunks of a byte, JSON": (
        head("Transfer-Encoding: chunked", content_type="application/json") + CHUNKS, 400, "malformed_json",
    ),
    "100,000 chunks of a byte, multipart": (
        head("Transfer-Encoding: chunked", content_type=BOUNDARY) + CHUNKS, 400, "malformed_body",
    ),
    "JSON 250,000 deep": (sized(DEEP, "application/json"), 400, "malformed_json"),
    "JSON of 1,000,000 lists": (sized(MANY, "application/json"), 413, "too_many_values"),
    "gzip bomb": (sized(BOMB, "application/json", "Content-Encoding: gzip"), 415, "unsupported_encoding"),
    "Content-Length of a terabyte": (head("Content-Length: 1000000000000"), 413, "body_too_large"),
    "Content-Length of 5,000 zeros": (
        head(f"Content-Length: {len(PNG[:900]):05000}") + PNG[:900], 422, "invalid_image",
    ),
    "multipart of noise": (sized(b"\r\n--x" * 100_000, BOUNDARY), 400, "malformed_body"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("data", "status", "code"), ATTACKS.values(), ids=ATTACKS)
def test_attack_is_refused_a_hundred_times_in_the_memory_of_one(
    impatient: Running, data: bytes, status: int, code: str
) -> None:
    """The right status each time, RSS as it was, and a live process after every one."""

    async def attack(times: int) -> None:
        left = iter(range(times))

        async def attacker() -> None:
            for _ in left:
                found, content = await answer(impatient, data)
                assert (found, content.get("code")) == (status, code), content

        await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))

    asyncio.run(attack(WARM_UP))
    growths = []
    for _ in range(ROUNDS):
        before = rss(impatient)
        for _ in range(REQUESTS // AT_ONCE):
            asyncio.run(attack(AT_ONCE))
            assert impatient.client.get("/livez").status_code == 200
        growths.append(rss(impatient) - before)
        if growths[-1] < GROWTH_BYTES:
            break

    print(f"RSS grew by {growths[-1] / 1e6:.2f} MB in {REQUESTS} requests")  # noqa: T201 the figure to quote
    assert growths[-1] < GROWTH_BYTES


PART = b'--x\r\nContent-Disposition: form-data; name="question"\r\n\r\n'
DRIPS: dict[str, tuple[bytes, bytes, int]] = {  # what is sent at once, what once a second then, and how it ends
    "blank lines": (b"\r\n", b"\n", 0),
    "a head": (b"GET /livez HTTP/1.1\r\nHost: te", b"a", 0),
    "a raw body": (head("Content-Length: 1000"), b"a", 504),
    "a JSON body": (head("Content-Length: 1000", content_type="application/json"), b"a", 504),
    "a multipart body": (head("Content-Length: 1000", content_type=BOUNDARY) + PART, b"a", 504),
    "a chunked body": (head("Transfer-Encoding: chunked"), b"1\r\na\r\n", 504),
    "a body with a deadline of a day": (head("Content-Length: 1000", "X-Deadline-Ms: 86400000"), b"a", 504),
    "a body shorter than it says": (head("Content-Length: 1000") + PNG[:900], b"", 504),
}


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "drop", "status"), DRIPS.values(), ids=DRIPS)
def test_byte_a_second_is_ended_in_time(impatient: Running, begun: bytes, drop: bytes, status: int) -> None:
    """A hundred connections at once; each is over soon, and other requests are answered meanwhile."""
    asyncio.run(drip(impatient, begun, drop))
    for _ in range(ROUNDS):
        before = rss(impatient)
        seconds, found = asyncio.run(drip(impatient, begun, drop))
        growth = rss(impatient) - before
        if growth < GROWTH_BYTES:
            break

    print(f"over after {seconds:.1f} s, RSS grew by {growth / 1e6:.2f} MB")  # noqa: T201 the figure to quote
    assert found == {status}
    assert seconds < ENDED_WITHIN_S
    assert growth < GROWTH_BYTES
    assert impatient.client.post(PATH, content=PNG, headers={"Content-Type": "image/png"}).status_code == 200


async def drip(running: Running, begun: bytes, drop: bytes) -> tuple[float, set[int]]:
    """Send so much and then a byte a second, on REQUESTS connections; tell how long it took, and the statuses."""
    began_s = time.monotonic()
    async with asyncio.timeout(4 * ENDED_WITHIN_S):
        dripping = (answer(running, begun, *([drop] * 100), pause_s=1.0) for _ in range(REQUESTS))
        ended = asyncio.gather(*dripping)
        loop = asyncio.get_running_loop()
        alive = await loop.run_in_executor(None, lambda: running.client.get("/livez").status_code)
        found = {status for status, _ in await ended}
    assert alive == 200
    return time.monotonic() - began_s, found


def test_refused_body_that_goes_on_arriving_is_cut_off(impatient: Running) -> None:
    """After a 413 nobody reads on for ever."""
    began_s = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(head("Content-Length: 1000000000000"))
        assert b" 413 " in connection.recv(65_536)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began_s + 2 * ENDED_WITHIN_S:
                connection.sendall(b"\0" * 1000)
                time.sleep(0.01)  # a client that is in no hurry
    assert time.monotonic() - began_s < ENDED_WITHIN_S


def test_connection_is_kept_behind_a_refused_body_that_has_arrived() -> None:
    """As long as any idle one; not so the head that begins there, and never goes on."""
    running = start(f"--receive-timeout-s={HEAD_WITHIN_S}", f"--keep-alive-s={KEEP_ALIVE_S}")
    drain(running)
    body = b"\0" * 1000
    try:
        idle_s = closed_after_s(running, body)
        begun_s = closed_after_s(running, body + b"GET /livez HTTP/1.1\r\n")
    finally:
        stop(running)

    assert idle_s >= KEEP_ALIVE_S - TIMER_S
    assert HEAD_WITHIN_S - TIMER_S <= begun_s < KEEP_ALIVE_S


def closed_after_s(running: Running, rest: bytes) -> float:
    """Send a head whose body nobody wants, and once it is refused the rest: how long does the server wait then?"""
    with connect(running) as connection:
        connection.sendall(head("Content-Length: 1000", content_type="text/plain"))
        assert b" 415 " in connection.recv(65_536)
        sent_s = time.monotonic()
        connection.sendall(rest)
        while connection.recv(65_536):  # of the refusal
            pass
    return time.monotonic() - sent_s


def test_chunk_extensions_without_end_are_cut_off(impatient: Running) -> None:
    """They are no part of a body, so no limit of the body's would end them."""
    sent = 0
    with connect(impatient) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head("Transfer-Encoding: chunked") + b"1;")
        while sent < 200 * HEAD_BYTES:
            sent += connection.send(b"a" * 1000)
    assert sent < 200 * HEAD_BYTES


def test_head_that_is_no_http_is_refused_and_the_connection_ends(impatient: Running) -> None:
    """By the parser, in a sentence; nothing reaches the application."""
    for data in (
        b"\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        head("Content-Length: " + "9" * 99),
    ):
        with connect(impatient) as connection:
            connection.sendall(data)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")
            assert connection.recv(65_536) == b""


def test_bodies_in_flight_have_a_bound_together() -> None:
    """One alone may be as large as a body may; beside it there is no room, until it has gone."""
    running = start("--max-bodies-mb=1")
    drain(running)
    try:
        request = {"content": PNG, "headers": {"Content-Type": "image/png"}}
        with connect(running) as connection:
            connection.sendall(head("Content-Length: 2000000") + b"\0" * 1_500_000)
            until(lambda: body_bytes(running) == 1_500_000)
            refused = running.client.post(PATH, **request)
        until(lambda: body_bytes(running) == 0)
        answered = running.client.post(PATH, **request)
    finally:
        stop(running)

    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_bodies")
    assert int(refused.headers["Retry-After"]) >= 1
    assert answered.status_code == 200


def test_pages_and_answers_tell_browsers_to_make_no_more_of_them(impatient: Running) -> None:
    """No guessing of types; the page of the documentation runs its own scripts alone, in no frame."""
    page = impatient.client.get("/docs", headers={"Host": 'evil.test"><script>'})
    answered = impatient.client.get("/livez")

    assert page.headers["X-Content-Type-Options"] == answered.headers["X-Content-Type-Options"] == "nosniff"
    assert "script-src 'self' 'unsafe-inline';" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert "evil" not in page.text


@pytest.mark.parametrize("is_split", [False, True], ids=["one process", "fronts"])
def test_clock_that_is_set_back_breaks_nothing(monkeypatch: pytest.MonkeyPatch, is_split: bool) -> None:
    """Deadlines, stages and waits are on the monotonic clock; the other one only dates what is logged."""
    hours = itertools.count()
    held = Held(is_split=is_split)
    held.start()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))
    try:
        answers = [
            httpx.post(f"{held.url}{PATH}", content=PNG, headers={"Content-Type": "image/png", "X-Deadline-Ms": "9000"})
            for _ in range(10)
        ]
    finally:
        held.stop()

    assert {answer.status_code for answer in answers} == {200}
    assert all(0 <= stage_ms < 9000 for answer in answers for stage_ms in answer.json()["timing_ms"].values())


def rss(running: Running) -> int:
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def body_bytes(running: Running) -> float:
    lines = running.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("vilt_body_bytes"))


def until(has_happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not has_happened():
        assert time.monotonic() < deadline_s, "it never came to be"
