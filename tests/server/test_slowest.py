"""The slowest requests: the right ones, for long enough, in bounded memory, with nothing of what was asked."""

from datetime import UTC, datetime

import pytest
from fakes import FakeClock

from server.slowest import KEPT, WINDOW_S, RequestRecord, Slowest


def request(total_ms: float, *, task: str = "vqa", request_id: str = "a") -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        task=task,
        model="shapes",
        status=200,
        code="ok",
        when=datetime.now(UTC),
        total_ms=total_ms,
        timing_ms={"queue": total_ms},
    )


def totals(slowest: Slowest) -> list[float]:
    return [request.total_ms for request in slowest.worst()]


def test_slowest_of_many_are_kept_slowest_first() -> None:
    """Whatever the order they come in, the worst are there, and only those."""
    slowest = Slowest(FakeClock())

    for number in range(1000):
        slowest.add(request(number * 617 % 1000))  # each once, in no order

    assert totals(slowest) == list(range(999, 999 - KEPT, -1))


def test_slowest_of_each_task_are_kept() -> None:
    """Ranks take longest; a question that was slow for a question is not lost among them."""
    slowest = Slowest(FakeClock())
    for number in range(100):
        slowest.add(request(1000 + number, task="rank"))
    slowest.add(request(50))

    found = slowest.worst()

    assert len(found) == KEPT + 1
    assert (found[-1].task, found[-1].total_ms) == ("vqa", 50)


def test_requests_equally_slow_are_all_kept() -> None:
    """Ties need no comparing of requests."""
    slowest = Slowest(FakeClock())
    for number in range(3):
        slowest.add(request(7, request_id=str(number)))

    assert {one.request_id for one in slowest.worst()} == {"0", "1", "2"}


@pytest.mark.parametrize("pause_s", [1.0, 7.0, 150.0, 299.0])
def test_request_is_kept_for_half_the_window_and_gone_after_all_of_it(pause_s: float) -> None:
    """At whatever pace others come: never lost before five minutes, never there after ten."""
    clock = FakeClock()
    slowest = Slowest(clock)
    clock.now_s += 123
    slowest.add(request(1000))
    age_s = 0.0

    while age_s <= WINDOW_S + pause_s:
        if age_s <= WINDOW_S / 2:
            assert 1000 in totals(slowest)
        clock.now_s += pause_s
        age_s += pause_s
        slowest.add(request(1))

    assert 1000 not in totals(slowest)


def test_request_is_gone_after_the_window_though_nobody_else_came() -> None:
    """A quiet server shows no old news."""
    clock = FakeClock()
    slowest = Slowest(clock)
    slowest.add(request(1000))

    clock.now_s += WINDOW_S

    assert totals(slowest) == []


def test_memory_is_bounded_whatever_comes() -> None:
    """Two windows of three tasks, and no more."""
    clock = FakeClock()
    slowest = Slowest(clock)

    for number in range(5000):
        clock.now_s += 1
        slowest.add(request(number, task=("vqa", "itm", "rank")[number % 3]))

    held = [kept for window in (slowest._recent, slowest._older) for kept in window.values()]
    assert sum(map(len, held)) <= 2 * 3 * KEPT
    assert len(slowest.worst()) <= 3 * KEPT
