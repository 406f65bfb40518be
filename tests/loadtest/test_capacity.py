"""The search for a server's capacity, on servers of which it is known."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from loadtest.capacity import RESOLUTION, Attempt, search
from loadtest.summary import Summary, summarise

EMPTY = summarise([], seconds=1)


def server(keeps_up: Callable[[float], bool], flaws: tuple[str, ...] = ()) -> Attempt:
    """A server that answers 99 % or 98 % in time."""

    async def attempt(rate_per_s: float, _: int) -> Summary:
        in_time = 990 if keeps_up(rate_per_s) else 980
        return replace(EMPTY, offered_per_s=rate_per_s, requests=1000, in_time=in_time, flaws=list(flaws))

    return attempt


@pytest.mark.parametrize("known", [0.4, 7.0, 10.0, 333.0])
def test_capacity_is_found_from_below(known: float) -> None:
    """Whether the search begins below or above it, and never more than what is kept up with."""
    found = asyncio.run(search(server(lambda rate: rate <= known), start_per_s=10))

    assert known / RESOLUTION <= found.rate_per_s <= known


def test_rate_that_fails_once_is_tried_again() -> None:
    """A short run can be unlucky."""
    luck: Iterator[bool] = iter([False, True, False])  # 10: unlucky once; then as it is

    found = asyncio.run(search(server(lambda rate: next(luck, rate < 20)), start_per_s=10))

    assert 20 / RESOLUTION <= found.rate_per_s < 20


def test_rate_that_is_unlucky_twice_hides_no_higher_one() -> None:
    """The next rung is tried before the search turns round."""
    tried: list[float] = []

    def unlucky_at_20(rate: float) -> bool:
        tried.append(rate)
        return rate < 100 and (rate != 20 or tried.count(20) > 2)

    found = asyncio.run(search(server(unlucky_at_20), start_per_s=10))

    assert 100 / RESOLUTION <= found.rate_per_s < 100


def test_server_that_is_never_in_time_has_no_capacity() -> None:
    """The search ends."""
    assert asyncio.run(search(server(lambda _: False), start_per_s=10)).rate_per_s == 0


def test_generator_that_was_the_limit_is_named() -> None:
    """Then the server's capacity is higher than what was found."""
    found = asyncio.run(search(server(lambda rate: rate < 50, flaws=("it was late",)), start_per_s=10))

    assert found.flaws == ["it was late"]
