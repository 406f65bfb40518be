"""Slots for those who come back."""

import pytest
from fakes import FakeClock

from server.promises import LAPSE_S, LONGEST_S, MOST, SHARE, Promises

WORK_S = 0.1
EVERYTHING = (10**9, 1e9)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_slots_follow_one_another_at_the_share_of_the_engine(clock: FakeClock) -> None:
    """Each as far from the last as its work takes when others take most of the engine."""
    promises = Promises(clock)

    waits_s = [promises.make(key, 1, WORK_S, wait_s=0.05) for key in range(4)]

    assert waits_s == pytest.approx([0.05, WORK_S / SHARE, 2 * WORK_S / SHARE, 3 * WORK_S / SHARE])


def test_line_shortens_as_time_goes_by(clock: FakeClock) -> None:
    """Or every refusal ever made would be waited for."""
    promises = Promises(clock)
    for key in range(4):
        promises.make(key, 1, WORK_S, 0.0)

    clock.now_s += 100

    assert promises.make("later", 1, WORK_S, 0.2) == pytest.approx(0.2)


def test_who_asks_again_too_soon_keeps_the_slot(clock: FakeClock) -> None:
    """Impatience neither gains nor loses."""
    promises = Promises(clock)
    promises.make("other", 1, WORK_S, 0.0)
    wait_s = promises.make("impatient", 1, WORK_S, 0.0)

    clock.now_s += 0.1

    assert promises.make("impatient", 1, WORK_S, 0.0) == pytest.approx(wait_s - 0.1)
    assert not promises.is_due("impatient")


def test_slot_is_due_from_its_time_until_it_is_taken(clock: FakeClock) -> None:
    """Once."""
    promises = Promises(clock)
    clock.now_s += promises.make("me", 1, WORK_S, 0.5)
    assert promises.is_due("me")

    promises.forget("me")

    assert not promises.is_due("me")
    assert promises.due(10, *EVERYTHING) == (0, 0)


def test_nobody_is_waited_for_for_long(clock: FakeClock) -> None:
    """Most never come back."""
    promises = Promises(clock)
    promises.make("gone", 1, WORK_S, 0.5)
    assert promises

    clock.now_s += 0.5 + LAPSE_S + 0.01

    assert not promises
    assert not promises.is_due("gone")


def test_work_that_is_due_is_summed_up_to_a_bound(clock: FakeClock) -> None:
    """Slots later than that do not count, and newcomers leave no more free than their share."""
    promises = Promises(clock)
    for key in range(5):
        promises.make(key, 2, WORK_S, 0.0)

    assert promises.due(2.5 * WORK_S / SHARE, *EVERYTHING) == (6, pytest.approx(3 * WORK_S))
    assert promises.due(10, 3, 0.15) == (3, 0.15)


def test_long_wait_of_one_is_not_the_next_ones(clock: FakeClock) -> None:
    """A rank may have to wait for seconds, a question behind it need not."""
    promises = Promises(clock)
    promises.make("rank", 1, WORK_S, 20.0)

    assert promises.make("question", 1, WORK_S, 0.1) == pytest.approx(WORK_S / SHARE)
    assert promises.due(1, *EVERYTHING) == (1, pytest.approx(WORK_S))


def test_nobody_is_told_to_wait_longer_than_a_minute(clock: FakeClock) -> None:
    """Nor is the line kept without bound."""
    promises = Promises(clock)

    waits_s = [promises.make(key, 1, 1.0, 0.0) for key in range(MOST + 10)]

    assert max(waits_s) == LONGEST_S
    assert promises.due(LONGEST_S, *EVERYTHING)[0] == MOST


def test_long_line_keeps_its_slots_for_those_who_are_first(clock: FakeClock) -> None:
    """Twice as many are refused as fit into the line: who has a slot finds it kept, until the last of them."""
    promises = Promises(clock)
    told: list[tuple[float, int]] = []
    kept = []
    for key in range(20_000):
        clock.now_s += 0.005
        assert bool(promises) is (key > 0)
        told.append((clock.now_s + promises.make(key, 1, WORK_S / 20, 0.1), key))
        while told and told[0][0] <= clock.now_s:
            kept.append(promises.is_due(told[0][1]))
            promises.forget(told.pop(0)[1])

    assert len(kept) > 5_000
    assert sum(kept) > MOST
    assert all(kept[:MOST])
