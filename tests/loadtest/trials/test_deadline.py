"""How late a server says that the deadline has passed: from when the request began, whether or not a body comes."""

import asyncio

from loadtest.trials.deadline import ask, impossible_of
from loadtest.workload import Request

LATE_S = 0.1


def test_deadline_that_may_pass_on_the_way_is_told_by_either_status() -> None:
    """With shapes; a model of full size leaves time to refuse, and has to be refused."""
    assert impossible_of(1.5) == (1.0, (503, 504))
    assert impossible_of(12.0) == (3.0, (503, 504))
    assert impossible_of(112.0) == (28.0, (503,))


def test_time_until_the_response_counts_from_the_head() -> None:
    """A server that says 504 long after the deadline is seen to be late, though it never reads a body."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(LATE_S)
        writer.write(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def ask_once() -> tuple[int, float]:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            url = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
            return await ask(url, Request(kind="vqa", path="/v1/vqa", content_type="", body=b"0"), 10, has_body=False)

    status, took_ms = asyncio.run(ask_once())

    assert status == 504
    assert took_ms > 1000 * LATE_S - 1
