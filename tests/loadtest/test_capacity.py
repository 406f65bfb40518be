"""The search for a server's capacity, on servers of which it is known."""

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from loadtest.capacity import CONFIRM_REQUESTS, RESOLUTION, SECONDS, Attempt, duration_of, search
from loadtest.openloop import Deadline, poisson
from loadtest.summary import Summary, summarise

EMPTY = summarise([], seconds=1)


def server(keeps_up: Callable[[float], bool], flaws: tuple[str, ...] = ()) -> Attempt:
    """A server that answers 99 % or 98 % in time."""

    async def attempt(rate_per_s: float, _: int) -> Summary:
        in_time = 990 if keeps_up(rate_per_s) else 980
        return replace(EMPTY, offered_per_s=rate_per_s, requests=1000, in_time=in_time, flaws=list(flaws))

    return attempt


def in_time(schedule: Sequence[float], service_s: float = 0.115) -> int:
    """Count what a server answers within four times its service, one after the other; the rest it refuses at once."""
    free_s, count = 0.0, 0
    for at_s in schedule:
        done_s = max(free_s, at_s) + service_s
        if done_s <= at_s + 4 * service_s:
            free_s, count = done_s, count + 1
    return count


def queue(seed: int) -> Attempt:
    """A server of which the true share in time can be simulated at any rate, asked as capacity asks."""

    async def attempt(rate_per_s: float, number: int) -> Summary:
        schedule = poisson(rate_per_s, duration_of(rate_per_s, None), seed + number)
        return replace(EMPTY, offered_per_s=rate_per_s, requests=len(schedule), in_time=in_time(schedule))

    return attempt


def test_share_in_time_at_what_is_found_is_what_was_asked_for() -> None:
    """Not the share of the luckiest runs: without the confirmation half of the rates have less than 97 %."""
    shares = []
    for seed in range(30):
        found = asyncio.run(search(queue(1000 * seed)))
        schedule = poisson(found.rate_per_s, 20_000 / found.rate_per_s, seed)
        shares.append(in_time(schedule) / len(schedule))

    assert statistics.median(shares) > 0.983
    assert sum(share >= 0.975 for share in shares) >= 27


def test_confirmation_steps_down_and_says_what_it_counted() -> None:
    """Runs that the search was lucky with count for nothing."""
    tries: list[float] = []

    async def attempt(rate_per_s: float, _: int) -> Summary:
        tries.append(rate_per_s)
        lucky = tries.count(rate_per_s) == 1  # the first run at each rate, which is the search's
        late = 0 if lucky and rate_per_s < 20 else 2 if rate_per_s > 15 else 1
        return replace(EMPTY, offered_per_s=rate_per_s, requests=100, in_time=100 - late)

    found = asyncio.run(search(attempt))

    assert 15 / RESOLUTION <= found.rate_per_s <= 15
    assert (found.confirmed_share, found.confirmed_requests) == (0.99 + 0.01 / 5, CONFIRM_REQUESTS)
    assert len(found.runs) == len(tries)


def test_server_whose_luck_ends_has_no_capacity() -> None:
    """Nothing is confirmed, down to the lowest rate."""

    async def attempt(rate_per_s: float, number: int) -> Summary:
        return replace(EMPTY, offered_per_s=rate_per_s, requests=100, in_time=100 if number == 0 else 90)

    with pytest.raises(
        ValueError, match=r"^even at 0\.1 requests per second fewer than 99 % of requests were answered"
    ):
        asyncio.run(search(attempt))


def test_long_deadline_does_not_make_a_server_look_faster_than_it_is() -> None:
    """In a short run a backlog is gone before its deadline: 100 requests at 11/s would all be in time at 8/s."""

    def share(rate_per_s: float, seconds: float) -> float:
        arrivals = poisson(rate_per_s, seconds)
        free_s, count = 0.0, 0
        for at_s in arrivals:
            free_s = max(free_s, at_s) + 1 / 8
            count += free_s <= at_s + 5.0
        return count / len(arrivals)

    async def attempt(rate_per_s: float, _: int) -> Summary:
        in_time = share(rate_per_s, duration_of(rate_per_s, {"vqa": 5000.0, "rank": 500.0}))
        return replace(EMPTY, offered_per_s=rate_per_s, requests=1000, in_time=round(1000 * in_time))

    assert share(11.0, duration_of(11.0, None)) > 0.99
    assert 7 < asyncio.run(search(attempt)).rate_per_s < 8 * RESOLUTION


@pytest.mark.parametrize(
    ("deadline_ms", "seconds"),
    [(None, SECONDS), ({}, SECONDS), (100.0, SECONDS), (5000.0, 100.0), ({"vqa": 100.0, "rank": 1000.0}, 20.0)],
)
def test_run_lasts_twenty_of_the_longest_deadlines(deadline_ms: Deadline, seconds: float) -> None:
    """And is never shorter than it would be without one."""
    assert duration_of(50.0, deadline_ms) == seconds


@pytest.mark.parametrize("known", [0.4, 7.0, 10.0, 333.0])
def test_capacity_is_found_from_below(known: float) -> None:
    """Whether the search begins below or above it, and never more than what is kept up with."""
    found = asyncio.run(search(server(lambda rate: rate <= known)))

    assert known / RESOLUTION <= found.rate_per_s <= known


def test_rate_that_fails_once_is_tried_again() -> None:
    """A short run can be unlucky."""
    luck: Iterator[bool] = iter([False, True, False])  # 10: unlucky once; then as it is

    found = asyncio.run(search(server(lambda rate: next(luck, rate < 20))))

    assert 20 / RESOLUTION <= found.rate_per_s < 20


def test_rate_that_is_unlucky_twice_hides_no_higher_one() -> None:
    """The next rung is tried before the search turns round."""
    tried: list[float] = []

    def unlucky_at_20(rate: float) -> bool:
        tried.append(rate)
        return rate < 100 and (rate != 20 or tried.count(20) > 2)

    found = asyncio.run(search(server(unlucky_at_20)))

    assert 100 / RESOLUTION <= found.rate_per_s < 100


def test_server_that_is_never_in_time_has_no_capacity() -> None:
    """The search ends."""
    with pytest.raises(ValueError, match="the deadline may be too short"):
        asyncio.run(search(server(lambda _: False)))


def test_generator_that_was_the_limit_is_named() -> None:
    """Then the server's capacity is higher than what was found."""
    found = asyncio.run(search(server(lambda rate: rate < 50, flaws=("it was late",))))

    assert found.flaws == ["it was late"]


def test_generator_that_was_late_far_beyond_is_not_named() -> None:
    """The next higher rate was too high for the server alone."""

    async def attempt(rate_per_s: float, _: int) -> Summary:
        in_time = 990 if rate_per_s < 12 else 980
        flaws = ["it was late"] if rate_per_s > 30 else []
        return replace(EMPTY, offered_per_s=rate_per_s, requests=1000, in_time=in_time, flaws=flaws)

    assert asyncio.run(search(attempt)).flaws == []
