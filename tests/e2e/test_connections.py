"""What clients do with connections: offers to upgrade, requests sent too early, bodies that are refused meanwhile."""

import http.client
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import urlsplit

import factories
import pytest

from server.connections import MAX_PIPELINED

from .conftest import Running, connect

PNG = factories.encoded(factories.noise(200, 200), "PNG")
ALIVE = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"
APART_S = 0.05  # between segments, so that they arrive apart


def offer(protocol: bytes, body: bytes) -> bytes:
    """Ask a question with a head as curl --http2 and Java's client send it: another protocol would be welcome, too."""
    return (
        b"POST /v1/vqa?question=is+there+a+star%%3F HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        b"Content-Length: %d\r\n\r\n" % (protocol, len(body))
    )


def answers_to(running: Running, *segments: bytes) -> list[bytes]:
    """Send on one connection, ask last whether the server lives, and list the status lines up to that answer."""
    received = b""
    with connect(running) as connection:
        for segment in (*segments, ALIVE):
            connection.sendall(segment)
            time.sleep(APART_S)
        while b'"alive"' not in received and (some := connection.recv(65_536)):
            received += some
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", received)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"anything"])
@pytest.mark.parametrize("cuts", [[], [60], [190], [250, 251], [-1]], ids=str)
def test_offer_to_upgrade_is_passed_over_and_the_body_read(server: Running, protocol: bytes, cuts: list[int]) -> None:
    """However it arrives: in one segment, cut in the head, at its end, or in the body."""
    request = offer(protocol, PNG) + PNG

    assert answers_to(server, *(request[a:b] for a, b in pairwise([0, *cuts, None]))) == [b"200", b"200"]


def test_two_offers_at_once_are_two_requests(server: Running) -> None:
    """One head behind the other's body."""
    request = offer(b"h2c", PNG) + PNG

    assert answers_to(server, 2 * request) == [b"200", b"200", b"200"]


@pytest.mark.parametrize("segments", [1, 2])
def test_body_behind_an_offer_to_upgrade_is_never_a_request(server: Running, segments: int) -> None:
    """A proxy would give its answer to somebody else."""
    head, body = offer(b"h2c", ALIVE), ALIVE

    answers = answers_to(server, head + body) if segments == 1 else answers_to(server, head, body)

    assert answers == [b"422", b"200"]


def test_requests_ahead_of_answers_are_bounded(server: Running) -> None:
    """Each takes memory before anything is read of its answer; those beyond have to be sent again."""
    assert answers_to(server, MAX_PIPELINED * ALIVE) == [b"200"] * (MAX_PIPELINED + 1)

    with connect(server) as connection:
        connection.sendall(1000 * ALIVE)
        received = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", received) == [b"200"] * (MAX_PIPELINED + 1)
    assert received.count(b"connection: close") == 1
    assert server.client.get("/livez").status_code == 200


@pytest.mark.parametrize("form", ["counted", "chunked"])
@pytest.mark.parametrize(
    ("content_type", "size", "status"), [("image/png", 25_000_000, 413), ("text/plain", 15_000_000, 415)]
)
def test_refusal_that_ends_a_connection_reaches_a_client_that_goes_on_sending(
    server: Running, content_type: str, size: int, status: int, form: str
) -> None:
    """As http.client and nginx do; a connection that is closed with something unread is reset, and the answer lost."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    body = bytes(size)

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 100_000] for start in range(0, len(body), 100_000))

    headers = {"Content-Type": content_type, "Connection": "close"}
    connection.request("POST", "/v1/vqa?question=a", body if form == "counted" else pieces(), headers)
    response = connection.getresponse()

    assert (response.status, response.headers["Connection"]) == (status, "close")
    assert b"request_id" in response.read()
    assert connection.sock is None
