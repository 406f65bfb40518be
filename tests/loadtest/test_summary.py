"""Figures equal those worked out by hand."""

from typing import Any

import pytest

from loadtest.rows import LEAD_S, Row
from loadtest.summary import by_kind, is_refusal, percentile, percentiles, quartiles, summarise, tail


def row(latency_ms: float = 10.0, **changes: Any) -> Row:
    """A right answer, with changes."""
    values: dict[str, Any] = {
        "kind": "vqa",
        "scheduled_s": 1.0,
        "sent_s": 1.0,
        "done_s": 1.0 + latency_ms / 1000,
        "status": 200,
        "code": "ok",
        "deadline_ms": None,
        "stages_ms": {},
        "retry_after_ms": None,
        "expected": "blue",
        "answer": "blue",
        "correct": True,
        "request_id": None,
    }
    return Row(**{**values, **changes})


def refusal(status: int, code: str) -> Row:
    return row(1.0, status=status, code=code, answer=None, correct=None)


def test_percentile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    """Nearest rank: of 1 to 1,000, 99.9 % do not exceed 999."""
    found = percentiles([float(value) for value in range(1000, 0, -1)])

    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99, found.p99_9, found.max) == (500, 900, 950, 990, 999, 1000)


@pytest.mark.parametrize(("values", "p50", "p99"), [([7.0], 7, 7), ([1.0, 9.0], 1, 9)], ids=["one", "two"])
def test_percentile_of_few_values_is_one_of_them(values: list[float], p50: float, p99: float) -> None:
    """Nothing is made up between what was measured."""
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (p50, p99)


@pytest.mark.parametrize(
    ("share", "least"), [(0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)], ids=["p90", "p95", "p99", "p99.9"]
)
def test_percentile_that_so_few_values_cannot_show_is_not_given(share: float, least: int) -> None:
    """It would be the largest of them; with one more than the others can be, one is beyond it."""
    values = [float(value) for value in range(1, least + 1)]

    assert tail(values, share) == least - 1
    assert tail(values[1:], share) is None


def test_percentiles_of_few_values_are_the_median_and_the_largest() -> None:
    """What can be said of them."""
    found = percentiles([3.0, 1.0, 2.0])

    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99, found.p99_9, found.max) == (2, None, None, None, None, 3)


@pytest.mark.parametrize(
    ("values", "found"),
    [([7.0], (7, 7, 7)), ([1.0, 2.0], (1.25, 1.5, 1.75)), ([5.0, 1.0, 3.0], (2, 3, 4))],
    ids=["one", "two", "three"],
)
def test_quartiles_lie_within_what_was_measured(values: list[float], found: tuple[float, ...]) -> None:
    """Also of one value."""
    assert quartiles(values) == found


@pytest.mark.parametrize(
    ("outcome", "is_one"),
    [("ok", False), ("429 overloaded", True), ("503 draining", True), ("504 too_late", False), ("timed_out", False)],
)
def test_refusals_are_told_from_failures(outcome: str, is_one: bool) -> None:
    """As outcomes name them."""
    assert is_refusal(outcome) is is_one


def test_percentiles_of_nothing_are_none() -> None:
    """A run in which all was refused has no latency."""
    assert percentiles([]) is None


def test_goodput_counts_answers_within_the_deadline_per_second() -> None:
    """Of four answers and a refusal in two seconds one is late, so three count; without a deadline none can be late."""
    asked = [row(10, deadline_ms=50), row(49, deadline_ms=50), row(51, deadline_ms=50), row(500)]

    found = summarise([*asked, refusal(503, "deadline_unreachable")], seconds=2)

    assert (found.requests, found.answered, found.in_time) == (5, 4, 3)
    assert (found.offered_per_s, found.goodput_per_s) == (2.5, 1.5)


def test_goodput_of_a_backlog_is_not_more_than_the_server_does() -> None:
    """Answers after the schedule's end do not count: of 20 in 4 s, 10 come within its 2 s."""
    asked = [row(done_s=LEAD_S + 0.2 * number, deadline_ms=5000) for number in range(1, 21)]

    found = summarise(asked, seconds=2)

    assert (found.offered_per_s, found.in_time) == (10, 20)
    assert found.goodput_per_s == found.answered_per_s == pytest.approx(5)


def test_one_slow_answer_takes_one_answer_from_the_goodput() -> None:
    """Not all those that were there long before it."""
    asked = [row(done_s=LEAD_S + number / 10) for number in range(99)] + [row(done_s=LEAD_S + 25)]

    found = summarise(asked, seconds=10)

    assert found.goodput_per_s == found.answered_per_s == pytest.approx(9.9)


def test_latency_is_of_answers_only() -> None:
    """A refusal within a millisecond makes no server fast."""
    found = summarise([row(30), refusal(429, "overloaded")], seconds=1)

    assert found.latency_ms is not None
    assert found.latency_ms.p50 == pytest.approx(30)


def test_outcomes_are_counted_by_code() -> None:
    """Answers first; those without a response under the reason."""
    asked = [refusal(429, "overloaded"), refusal(503, "overloaded"), row(), row(), refusal(0, "timed_out")]

    found = summarise(asked, seconds=1)

    assert list(found.outcomes.items()) == [("ok", 2), ("429 overloaded", 1), ("503 overloaded", 1), ("timed_out", 1)]


def test_wrong_answers_are_counted_among_those_checked() -> None:
    """Where nobody knows the right one there is nothing to check."""
    found = summarise([row(), row(correct=False), row(correct=None)], seconds=1)

    assert (found.checked, found.wrong) == (2, 1)


def test_stages_are_means_and_the_rest_of_latency_is_outside_the_server() -> None:
    """Stages and what is outside sum to the mean latency; a reply without stages is in neither."""
    asked = [
        row(10, stages_ms={"queue": 1.0, "inference": 4.0, "total": 5.0}),
        row(20, stages_ms={"queue": 9.0, "inference": 6.0, "total": 15.0}),
        row(99),
    ]

    found = summarise(asked, seconds=1)

    assert found.stages_ms == {"queue": 5.0, "inference": 5.0, "total": 10.0}
    assert found.outside_ms == pytest.approx(5.0)


def test_run_is_flawed_when_the_generator_was_late_for_more_than_one_in_a_hundred() -> None:
    """Then it was not the server that was measured; two of 200 is no more than one in a hundred."""
    late = row(100, sent_s=1.05)

    assert summarise([late] * 2 + [row()] * 198, seconds=1).flaws == []
    assert summarise([late] * 3 + [row()] * 197, seconds=1).flaws == [
        "the generator sent 3 of 200 requests more than 10 ms late"
    ]


def test_run_with_a_short_deadline_is_flawed_sooner() -> None:
    """4 ms are a tenth of 40 ms."""
    late = row(10, sent_s=1.005, deadline_ms=40.0)

    assert summarise([late] * 200, seconds=1).flaws == ["the generator sent 200 of 200 requests more than 4 ms late"]
    assert summarise([row(10, sent_s=1.005, deadline_ms=400.0)] * 200, seconds=1).flaws == []


def test_kinds_are_summed_up_apart() -> None:
    """A rank takes longer than a question."""
    found = by_kind([row(10), row(20), row(200, kind="rank")], seconds=10)

    assert list(found) == ["rank", "vqa"]
    assert (found["vqa"].requests, found["rank"].goodput_per_s) == (2, 0.1)
