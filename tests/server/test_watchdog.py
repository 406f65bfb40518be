"""Runs that do not end: when they are regarded as stuck, counted in turns of the event loop."""

import asyncio

import pytest
from fakes import FakeClock

from server.watchdog import HOPELESS_S, STUCK_FACTOR, STUCK_S, TURN_S, Watchdog

Seen = list[tuple[bool, bool]]  # whether a run was stuck, and whether all hope was given up


class Kennel:
    """A watchdog on duty, in a loop whose clock is set by hand."""

    def __init__(self) -> None:
        self.watchdog = Watchdog()
        self._clock = FakeClock()
        asyncio.get_running_loop().time = self._clock  # type: ignore[method-assign]
        self._duty = asyncio.create_task(self.watchdog.until_hopeless())

    async def let_pass(self, seconds: float, *, turns: int | None = None) -> tuple[bool, bool]:
        """Let time pass in that many turns of the loop, by default as many as an idle loop has."""
        turns = turns or round(seconds / TURN_S)
        for _ in range(turns):
            await settle()
            self._clock.now_s += seconds / turns
            await settle()
        return self.watchdog.is_stuck, self._duty.done()


async def settle() -> None:
    """Let the watchdog wake up, if it is time, and go to sleep again."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("estimate_s", "patience_s"), [(0.1, STUCK_S), (3.0, 3.0 * STUCK_FACTOR)])
def test_run_is_stuck_after_many_times_its_estimate_and_hopeless_a_while_later(
    estimate_s: float, patience_s: float
) -> None:
    """A slow machine is given time; twenty times the estimate of a short run would be too little."""

    async def scenario() -> Seen:
        kennel = Kennel()
        with kennel.watchdog.watching(estimate_s):
            return [await kennel.let_pass(seconds) for seconds in (patience_s, TURN_S, HOPELESS_S - TURN_S, TURN_S)]

    assert asyncio.run(scenario()) == [(False, False), (True, False), (True, False), (True, True)]


def test_run_that_ends_after_all_is_stuck_no_longer() -> None:
    """The next run has all the time again."""

    async def scenario() -> Seen:
        kennel = Kennel()
        with kennel.watchdog.watching(0.1):
            seen = [await kennel.let_pass(STUCK_S + HOPELESS_S)]
        with kennel.watchdog.watching(0.1):
            return [*seen, await kennel.let_pass(STUCK_S)]

    assert asyncio.run(scenario()) == [(True, False), (False, False)]


def test_time_in_which_the_process_did_not_run_is_not_counted() -> None:
    """When the process is suspended, stopped or starved of CPU, so is the run."""

    async def scenario() -> Seen:
        kennel = Kennel()
        with kennel.watchdog.watching(0.1):
            return [await kennel.let_pass(86_400, turns=5)]

    assert asyncio.run(scenario()) == [(False, False)]


def test_oldest_run_counts_though_others_end() -> None:
    """The runs of one model may end while another model's hangs."""

    async def scenario() -> Seen:
        kennel = Kennel()
        with kennel.watchdog.watching(0.1):
            for _ in range(4):
                with kennel.watchdog.watching(0.1):
                    seen = await kennel.let_pass(STUCK_S / 3)
        return [seen]

    assert asyncio.run(scenario()) == [(True, False)]
