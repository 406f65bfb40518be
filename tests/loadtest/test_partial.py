"""What is complete when a run ends early is kept."""

import asyncio
import os
import signal

import pytest
import uvloop

from loadtest import partial


async def step(item: int) -> int:
    """Fail at 0, be interrupted at a negative number."""
    if item < 0:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    if item == 0:
        raise ValueError("no zeros")
    return 10 * item


def test_all_steps_are_taken_and_nothing_ended_them() -> None:
    """The usual case."""
    assert asyncio.run(partial.each([1, 2], step)) == ([10, 20], None)


@pytest.mark.parametrize(("last", "why"), [(0, "no zeros"), (-1, "interrupted")], ids=["failure", "Ctrl-C"])
def test_steps_before_the_end_are_kept_and_why_it_ended_is_told(last: int, why: str) -> None:
    """In uvloop, too, which the commands run in."""
    assert uvloop.run(partial.each([1, 2, last], step)) == ([10, 20], why)


@pytest.mark.parametrize(("first", "error"), [(0, ValueError), (-1, KeyboardInterrupt)], ids=["failure", "Ctrl-C"])
def test_end_before_anything_is_complete_is_an_error(first: int, error: type[BaseException]) -> None:
    """There is nothing to tell."""
    with pytest.raises(error):
        uvloop.run(partial.each([first], step))
