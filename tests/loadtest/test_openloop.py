"""Requests go out when they are scheduled, and latency counts from then."""

import asyncio
import itertools
import socket
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from loadtest import openloop, rows
from loadtest.summary import summarise
from loadtest.workload import Request

QUESTION = Request(kind="vqa", path="/v1/vqa?question=what", content_type="image/png", body=b"x", expected="blue")


def send(url: str, *requests: Request) -> list[rows.Row]:
    """Send requests one after the other."""

    async def each() -> list[rows.Row]:
        async with openloop.Client(url) as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(each())


def test_poisson_schedule_has_its_mean_rate_and_exponential_gaps() -> None:
    """20,000 gaps: their mean within 3 %, and the deviation of an exponential is its mean."""
    times = openloop.poisson(rate_per_s=200, seconds=100, seed=1)

    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.05)
    assert 0 < times[0] < times[-1] < 100


def test_poisson_schedule_is_the_same_for_the_same_seed_only() -> None:
    """Two runs can be compared; two seeds are two samples."""
    assert openloop.poisson(50, 10, seed=3) == openloop.poisson(50, 10, seed=3)
    assert openloop.poisson(50, 10, seed=3) != openloop.poisson(50, 10, seed=4)


@pytest.mark.parametrize("arrivals", [openloop.poisson, openloop.constant])
def test_schedule_offers_its_rate_however_few_requests_that_are(arrivals: Any) -> None:
    """A run is named after it: 14 requests in ten seconds are 1.4 a second, whatever the seed; none would be no run."""
    assert len(arrivals(1.4, 10)) == 14
    assert {len(openloop.poisson(1.4, 10, seed)) for seed in range(20)} == {14}
    assert len(arrivals(0.01, 10)) == 1


def test_constant_schedule_is_even() -> None:
    """From the first instant on, none at the last."""
    assert openloop.constant(rate_per_s=4, seconds=1) == [0, 0.25, 0.5, 0.75]


def test_server_that_stalls_makes_later_requests_slow_too(fake_server: Any, said: Any) -> None:
    """Coordinated omission: a client that waited for the stalled answer would have found one slow request of 25.

    Each request that was due within the stall is late by what was left of it.
    """
    stall_s = 1.0
    fake_server.one_at_a_time = True
    fake_server.behave = lambda seen: said(seen, delay_s=stall_s if seen.number == 0 else 0)

    schedule = openloop.constant(rate_per_s=50, seconds=0.5)
    asked = asyncio.run(openloop.run(fake_server.url, itertools.repeat(QUESTION), schedule))

    left_ms = [1000 * (stall_s - at_s) for at_s in schedule]
    assert all(row.latency_ms >= least - 50 for row, least in zip(asked, left_ms, strict=True))
    assert statistics.median(row.latency_ms for row in asked) > 500


def test_nothing_is_sent_before_its_time() -> None:
    """Not even by a loop whose timers know whole milliseconds only."""

    async def early_s() -> list[float]:
        async with openloop.Client("") as client:
            found = []
            for number in range(1, 50):
                await client.sleep_until(0.0013 * number)
                found.append(0.0013 * number - client.now_s())
            return found

    assert max(uvloop.run(early_s())) <= 0


def test_requests_are_sent_before_any_is_answered(fake_server: Any, said: Any) -> None:
    """The loop is open: slow answers hold nothing back."""
    fake_server.behave = lambda seen: said(seen, delay_s=1.0)

    asked = asyncio.run(openloop.run(fake_server.url, itertools.repeat(QUESTION), openloop.constant(100, 0.2)))

    assert len(asked) == 20
    assert max(row.sent_s for row in asked) < min(row.done_s for row in asked)


def test_latency_counts_from_the_schedule_and_not_from_the_sending(fake_server: Any) -> None:
    """A generator that is held up for 300 ms says so, and the server is not made to look fast by it."""

    async def held_up() -> list[rows.Row]:
        running = asyncio.create_task(
            openloop.run(fake_server.url, itertools.repeat(QUESTION), openloop.constant(100, 0.3))
        )
        await asyncio.sleep(0.02)
        time.sleep(0.3)  # noqa: ASYNC251 what holds it up
        return await running

    asked = asyncio.run(held_up())

    assert max(row.lag_ms for row in asked) > 150
    assert all(row.latency_ms >= row.lag_ms for row in asked)
    (flaw,) = summarise(asked, seconds=0.3).flaws
    assert "more than 10 ms late" in flaw


def test_requests_beyond_the_bound_in_flight_are_not_sent_and_say_so(fake_server: Any, said: Any) -> None:
    """A generator that queued them instead would have closed the loop."""
    fake_server.behave = lambda seen: said(seen, delay_s=1.0)

    asked = asyncio.run(
        openloop.run(fake_server.url, itertools.repeat(QUESTION), openloop.constant(100, 0.05), max_in_flight=2)
    )

    assert [row.code for row in asked] == ["ok", "ok", "not_sent", "not_sent", "not_sent"]
    assert len(fake_server.seen) == 2
    assert summarise(asked, seconds=1).flaws == ["3 requests were not sent: too many were in flight"]


def test_row_has_times_stages_and_the_answer(fake_server: Any) -> None:
    """All that a figure could be computed from."""
    (row,) = send(fake_server.url, QUESTION)

    assert (row.kind, row.status, row.code, row.answer, row.correct) == ("vqa", 200, "ok", "blue", True)
    assert row.stages_ms == {"receive": 0.5, "inference": 2.0, "interaction": 1.5, "total": 2.5}
    assert row.request_id == "abc"
    assert row.scheduled_s == row.sent_s < row.done_s


def test_wrong_answer_is_found(fake_server: Any) -> None:
    """Both answers are in the row."""
    (row,) = send(fake_server.url, replace(QUESTION, expected="red"))

    assert (row.correct, row.answer, row.expected) == (False, "blue", "red")


def test_refusal_has_its_code_and_when_to_come_back(fake_server: Any, refused: Any) -> None:
    """Nothing to be right or wrong about."""
    fake_server.behave = lambda _: refused

    (row,) = send(fake_server.url, QUESTION)

    assert (row.status, row.code, row.retry_after_ms, row.correct) == (503, "deadline_unreachable", 12.5, None)


def test_latency_alone_is_of_answers(fake_server: Any, said: Any) -> None:
    """As many as are asked for a median, one after the other."""
    fake_server.behave = lambda seen: said(seen, delay_s=0.002)

    found = asyncio.run(openloop.alone(fake_server.url, itertools.repeat(QUESTION)))

    assert found.p50 >= 2
    assert len(fake_server.seen) == openloop.ALONE


def test_refusal_does_not_count_as_the_latency_alone(fake_server: Any, said: Any, refused: Any) -> None:
    """A busy server's 503 within a millisecond would make the default deadline four milliseconds."""
    fake_server.behave = lambda seen: refused if seen.number else said(seen)

    with pytest.raises(ValueError, match=r"^the server did not answer: 503 deadline_unreachable$"):
        asyncio.run(openloop.alone(fake_server.url, itertools.repeat(QUESTION)))


def test_request_without_an_answer_times_out(fake_server: Any, said: Any) -> None:
    """Every wait is bounded."""
    fake_server.behave = lambda seen: said(seen, delay_s=1.0)

    (row,) = asyncio.run(openloop.run(fake_server.url, [QUESTION], [0.0], timeout_s=0.1))

    assert (row.status, row.code, row.in_time) == (0, "timed_out", False)


def test_request_that_is_to_be_abandoned_hangs_up(fake_server: Any, said: Any) -> None:
    """So long after it was sent, whatever the others do."""
    fake_server.behave = lambda seen: said(seen, delay_s=1.0)

    (row,) = asyncio.run(openloop.run(fake_server.url, [replace(QUESTION, abandon_after_s=0.1)], [0.0]))

    assert (row.status, row.code) == (0, "abandoned")


def test_server_that_is_not_there_is_a_row_and_no_error() -> None:
    """A run outlives the server's end, and shows it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    (row,) = asyncio.run(openloop.run(url, [QUESTION], [0.0]))

    assert (row.status, row.code) == (0, "connection_failed")


@pytest.mark.parametrize(
    ("deadline_ms", "sent"),
    [(None, None), (80, "80"), ({"vqa": 12.5}, "12.5"), ({"rank": 100}, None)],
    ids=["none", "of all", "of its kind", "of another kind"],
)
def test_deadline_goes_along(fake_server: Any, deadline_ms: Any, sent: str | None) -> None:
    """As X-Deadline-Ms, and in the row."""
    (row,) = asyncio.run(openloop.run(fake_server.url, [QUESTION], [0.0], deadline_ms=deadline_ms))

    assert fake_server.seen[0].headers.get("X-Deadline-Ms") == sent
    assert row.deadline_ms == (None if sent is None else float(sent))


def test_rows_are_read_as_they_were_written(fake_server: Any, tmp_path: Path) -> None:
    """The file has all that the figures were computed from."""
    asked = send(fake_server.url, QUESTION, replace(QUESTION, expected=None))

    rows.write(tmp_path / "rows.jsonl", asked)

    assert rows.read(tmp_path / "rows.jsonl") == asked


def test_next_run_waits_for_those_who_were_told_to_come_back(fake_server: Any, refused: Any) -> None:
    """Counted from when each was told; a run without refusals is followed by a pause."""
    fake_server.behave = lambda _: refused
    (row,) = send(fake_server.url, QUESTION)

    told = [replace(row, done_s=10.0, retry_after_ms=20_000.0), replace(row, done_s=22.0, retry_after_ms=10_000.0)]
    ended = replace(row, done_s=25.0, retry_after_ms=None)

    assert openloop.quiet_after_s([*told, ended]) == pytest.approx(32 - 25 + openloop.LATE_S)
    assert openloop.quiet_after_s([replace(row, retry_after_ms=3.6e6)]) == openloop.LONGEST_S + openloop.LATE_S
    assert openloop.quiet_after_s([ended]) == openloop.quiet_after_s([]) == openloop.PAUSE_S
