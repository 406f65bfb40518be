"""Reservations for requests that come back."""

import pytest
from fakes import FakeClock

from server.reservations import LAPSE_S, LONGEST_S, MAX_RESERVATIONS, SHARE, Reservations

WORK_S = 0.1
EVERYTHING = (10**9, 1e9)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_reservations_follow_one_another_at_their_share_of_the_engine(clock: FakeClock) -> None:
    """Each is as far from the last as its work takes while newcomers use most of the engine."""
    reservations = Reservations(clock)

    waits_s = [reservations.make(key, 1, WORK_S, wait_s=0.05) for key in range(4)]

    assert waits_s == pytest.approx([0.05, WORK_S / SHARE, 2 * WORK_S / SHARE, 3 * WORK_S / SHARE])


def test_line_shortens_as_time_goes_by(clock: FakeClock) -> None:
    """Otherwise every refusal ever made would be waited for."""
    reservations = Reservations(clock)
    for key in range(4):
        reservations.make(key, 1, WORK_S, 0.0)

    clock.now_s += 100

    assert reservations.make("later", 1, WORK_S, 0.2) == pytest.approx(0.2)


def test_request_that_comes_back_too_early_keeps_its_reservation(clock: FakeClock) -> None:
    """Impatience neither gains nor loses."""
    reservations = Reservations(clock)
    reservations.make("other", 1, WORK_S, 0.0)
    wait_s = reservations.make("impatient", 1, WORK_S, 0.0)

    clock.now_s += 0.1

    assert reservations.make("impatient", 1, WORK_S, 0.0) == pytest.approx(wait_s - 0.1)
    assert reservations.ahead_of("impatient", 1, *EVERYTHING) == (2, 2 * WORK_S)


def test_reservation_holds_from_its_time_until_its_request_is_admitted(clock: FakeClock) -> None:
    """Once."""
    reservations = Reservations(clock)
    clock.now_s += reservations.make("me", 1, WORK_S, 0.5)
    assert reservations.ahead_of("me", 10, *EVERYTHING) == (0, 0)
    assert reservations.ahead_of("other", 10, *EVERYTHING) == (1, WORK_S)

    reservations.forget("me")

    assert reservations.ahead_of("other", 10, *EVERYTHING) == (0, 0)


def test_reservation_lapses_a_while_after_its_time(clock: FakeClock) -> None:
    """Most clients never come back."""
    reservations = Reservations(clock)
    reservations.make("gone", 1, WORK_S, 0.5)
    reservations.make("next", 1, WORK_S, 1.0)
    assert reservations.ahead_of("new", 10, *EVERYTHING) == (2, 2 * WORK_S)

    clock.now_s += 0.5 + LAPSE_S + 0.01

    assert reservations.ahead_of("gone", 10, *EVERYTHING) == (1, WORK_S)


def test_reserved_work_is_summed_up_to_a_bound(clock: FakeClock) -> None:
    """Later reservations do not count, and newcomers leave no more free than their share."""
    reservations = Reservations(clock)
    for key in range(5):
        reservations.make(key, 2, WORK_S, 0.0)

    assert reservations.ahead_of("new", 2.5 * WORK_S / SHARE, *EVERYTHING) == (6, pytest.approx(3 * WORK_S))
    assert reservations.ahead_of("new", 10, 3, 0.15) == (3, 0.15)


def test_long_wait_of_one_is_not_the_next_one_s(clock: FakeClock) -> None:
    """A rank may have to wait for seconds, a question behind it need not."""
    reservations = Reservations(clock)
    reservations.make("rank", 1, WORK_S, 20.0)

    assert reservations.make("question", 1, WORK_S, 0.1) == pytest.approx(WORK_S / SHARE)
    assert reservations.ahead_of("new", 1, *EVERYTHING) == (1, pytest.approx(WORK_S))


def test_no_wait_is_longer_than_a_minute(clock: FakeClock) -> None:
    """Nor does the line grow without bound."""
    reservations = Reservations(clock)

    waits_s = [reservations.make(key, 1, 1.0, 0.0) for key in range(MAX_RESERVATIONS + 10)]

    assert max(waits_s) == LONGEST_S
    assert reservations.ahead_of("new", LONGEST_S, *EVERYTHING)[0] == MAX_RESERVATIONS


def test_full_line_keeps_the_reservations_that_it_has(clock: FakeClock) -> None:
    """Twice as many are refused as fit into the line: each reservation is kept to its time, until the last of them."""
    reservations = Reservations(clock)
    told: list[tuple[float, int]] = []
    kept = []
    for key in range(20_000):
        clock.now_s += 0.005
        assert (reservations.ahead_of("new", LONGEST_S, 1, 0.0)[0] > 0) is (key > 0)
        told.append((clock.now_s + reservations.make(key, 1, WORK_S / 20, 0.1), key))
        while told and told[0][0] <= clock.now_s:
            kept.append(reservations.ahead_of(told[0][1], LONGEST_S, 1, 0.0) == (0, 0))
            reservations.forget(told.pop(0)[1])

    assert len(kept) > 5_000
    assert sum(kept) > MAX_RESERVATIONS
    assert all(kept[:MAX_RESERVATIONS])
