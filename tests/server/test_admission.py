"""Admission: room, time, readiness."""

import asyncio
import itertools

import pytest
from fakes import FakeClock, FakeEngine, features, latency, served

from server.admission import BROKEN_FAULTS, BROKEN_S, FAULTS_IN_A_ROW, FAULTY_S, Admission
from server.errors import DeadlineExceeded, Overloaded, Unavailable
from server.metrics import Metrics
from server.queue import RANK_TURN
from server.types import Entry, LoadedModel, Urgency

ONE_RUN_S = 0.1
LATER = 1e9


class Desk:
    """An admission in front of a model whose runs take 0.1 s and gain nothing from batches."""

    def __init__(self, capacity: int = 100) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.admission = Admission(capacity, self.metrics, self.clock)
        self.model = served(FakeEngine(), runs=latency(base_s=0.0, per_token_s=ONE_RUN_S / 10))

    def admit(self, entries: int = 1, *, rank: bool = False, within_s: float = LATER, key: str = ""):  # noqa: ANN201
        urgency = Urgency.RANK if rank else Urgency.INTERACTIVE
        return self.admission.admit(self.model, urgency, entries, self.clock.now_s + within_s, key)

    def refusal(
        self, entries: int = 1, *, rank: bool = False, within_s: float = LATER, key: str = ""
    ) -> Overloaded | Unavailable:
        with (
            pytest.raises((Overloaded, Unavailable)) as refused,
            self.admit(entries, rank=rank, within_s=within_s, key=key),
        ):
            pass
        return refused.value

    def in_flight(self) -> float | None:
        return self.metrics.registry.get_sample_value("vilt_in_flight_entries")


def entry(model: LoadedModel) -> Entry:
    return Entry(model=model, features=features(1), urgency=Urgency.INTERACTIVE, deadline_s=LATER)


def test_idle_server_admits_more_than_its_capacity() -> None:
    """A rank larger than the capacity runs when nothing else does."""
    with Desk(capacity=4).admit(100, rank=True):
        pass


def test_beyond_capacity_is_refused_until_there_is_room() -> None:
    """429 with the time until enough entries are done; each answer makes room again."""
    desk = Desk(capacity=4)

    with desk.admit(3):
        with desk.admit(1):
            pass
        refused = desk.refusal(2)

    assert isinstance(refused, Overloaded)
    assert refused.retry_after_s == pytest.approx(ONE_RUN_S)
    with desk.admit(4):
        pass
    assert desk.in_flight() == 0


def test_answer_that_would_come_too_late_is_refused_at_once_with_the_reason() -> None:
    """503 before any work: five runs ahead take half a second, and 0.4 s are left."""
    desk = Desk()

    with desk.admit(5):
        refused = desk.refusal(within_s=0.4)
        with desk.admit(within_s=0.7):
            pass

    assert isinstance(refused, Unavailable)
    assert refused.code == "deadline_unreachable"
    assert refused.details == {"queued_ms": 500, "estimate_ms": 600, "deadline_ms": 400}
    assert refused.retry_after_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("passed_s", "gone", "queued_ms"),
    [(0.0, 0, 300), (0.06, 0, 240), (0.5, 0, 200), (0.06, 1, 290), (0.06, 2, 340)],
    ids=["just begun", "half done", "overdue", "one of two has gone", "both have gone"],
)
def test_of_a_run_under_way_what_is_left_is_ahead(passed_s: float, gone: int, queued_ms: float) -> None:
    """Three entries take 0.3 s, one run of two 0.1. Entries that have gone are not counted, but their run goes on."""

    async def scenario() -> Unavailable | Overloaded:
        desk = Desk()
        batch = [entry(desk.model) for _ in range(2)]
        with desk.admit(3), desk.admission.following(batch, ONE_RUN_S), desk.admission.following([], ONE_RUN_S):
            desk.clock.now_s += passed_s
            for one in batch[:gone]:
                one.future.cancel()
            return desk.refusal(within_s=0.2)

    assert asyncio.run(scenario()).details["queued_ms"] == pytest.approx(queued_ms)


def test_request_that_has_expired_on_arrival_is_told_so() -> None:
    """504, as for any deadline that has passed; no work is done."""
    with pytest.raises(DeadlineExceeded), Desk().admit(within_s=0):
        pass


def test_question_does_not_count_the_rank_behind_it() -> None:
    """It waits for the slice that runs, not for two hundred candidates; another rank waits for all of them."""
    desk = Desk(capacity=1000)

    with desk.admit(200, rank=True):
        with desk.admit(within_s=0.3):
            pass
        refused = desk.refusal(rank=True, within_s=1)

    assert refused.details["queued_ms"] == pytest.approx(20_000)


@pytest.mark.parametrize(("questions", "slices"), [(1, 1), (RANK_TURN - 1, 1), (RANK_TURN, 2), (3 * RANK_TURN, 4)])
def test_question_counts_the_slices_whose_turn_comes_before_it(questions: int, slices: int) -> None:
    """After eight runs of questions a rank that waits has one."""
    desk = Desk(capacity=1000)

    with desk.admit(200, rank=True), desk.admit(questions):
        refused = desk.refusal(within_s=0.15)

    assert refused.details["queued_ms"] == pytest.approx(1000 * ONE_RUN_S * (questions + slices))


def test_question_counts_no_more_slices_than_there_are_candidates() -> None:
    """A short rank has no turn after its last."""
    desk = Desk(capacity=1000)

    with desk.admit(2, rank=True), desk.admit(5 * RANK_TURN):
        refused = desk.refusal(within_s=0.15)

    assert refused.details["queued_ms"] == pytest.approx(1000 * ONE_RUN_S * (5 * RANK_TURN + 2))


def test_rank_gives_back_the_time_of_candidates_that_are_done() -> None:
    """The estimate follows the work, not the request."""
    desk = Desk(capacity=1000)

    with desk.admit(200, rank=True) as ticket:
        ticket.finish(195)
        with desk.admit(rank=True, within_s=1):
            pass

    assert desk.in_flight() == 0


def test_idle_engine_refuses_only_what_is_impossible_beyond_doubt() -> None:
    """Otherwise an estimate that is too long could never be corrected by a run."""
    desk = Desk()
    for _ in range(100):
        desk.model.latency.observe(1, 10, 10 * ONE_RUN_S)  # now it seems to take a second

    with desk.admit(within_s=0.2):
        pass
    refused = desk.refusal(within_s=0.04)

    assert refused.code == "deadline_unreachable"


def test_who_comes_back_in_time_finds_the_room_that_newcomers_leave() -> None:
    """With three runs ahead and 0.45 s left there is room for one more; whoever has a reservation gets it."""
    desk = Desk()
    with desk.admit(5):
        wait_s = desk.refusal(within_s=0.45, key="early").retry_after_s or 0.0

    desk.clock.now_s += wait_s
    with desk.admit(3):
        newcomer = desk.refusal(within_s=0.45, key="new")
        with desk.admit(within_s=0.45, key="early"):
            pass

    assert newcomer.details == {"queued_ms": 400, "estimate_ms": 500, "deadline_ms": 450}
    assert (newcomer.retry_after_s or 0.0) > 0


def test_those_who_are_refused_together_are_told_to_come_back_one_after_the_other() -> None:
    """Otherwise they would only be refused together again."""
    desk = Desk()
    with desk.admit(5):
        waits_s = [desk.refusal(within_s=0.5, key=str(number)).retry_after_s for number in range(10)]

    gaps_s = [after - before for before, after in itertools.pairwise(filter(None, waits_s))]
    assert len(gaps_s) == 9
    assert all(gap_s > ONE_RUN_S for gap_s in gaps_s[1:])


def test_idle_engine_waits_for_no_reservation() -> None:
    """It is work-conserving: a request that is there goes first."""
    desk = Desk()
    with desk.admit(5):
        desk.refusal(within_s=0.5, key="early")

    with desk.admit(within_s=0.11, key="new"):
        pass


def test_deadline_that_no_server_could_meet_is_told_to_allow_more_time() -> None:
    """Coming back would not help, so no room is kept."""
    desk = Desk()

    with desk.admit():
        refused = desk.refusal(within_s=0.09, key="hasty")
        with desk.admit(within_s=0.2, key="new"):
            pass

    assert refused.message.endswith("left: allow more time.")


def test_request_is_not_told_to_stay_away_because_others_waited_to_be_decoded() -> None:
    """After a backlog of large images an idle server may well answer in time, so a later time is reserved."""
    desk = Desk()
    for _ in range(100):
        desk.admission.observe_preparation(2.5)

    with desk.admit():
        refused = desk.refusal(within_s=2, key="a")
        desk.clock.now_s += 2.5
        with desk.admit(within_s=3, key="a"):
            pass

    assert refused.message.endswith("left: retry later, or allow more time.")
    assert refused.retry_after_s == pytest.approx(2.5, rel=1e-3)


def test_readiness_falls_after_repeated_faults_and_comes_back() -> None:
    """One bad request takes no server out of rotation; a broken engine does, until a run succeeds."""
    admission = Desk().admission
    admission.open()
    seen = []
    for is_sound in [False] * FAULTS_IN_A_ROW + [True]:
        admission.observe_run(is_sound)
        seen.append(admission.is_ready)

    assert seen == [True] * (FAULTS_IN_A_ROW - 1) + [False, True]


def test_faulty_server_is_tried_again_after_a_while_and_one_more_fault_is_enough() -> None:
    """A balancer sends nothing to a server that is not ready, so no run could make it ready again."""
    desk = Desk()
    desk.admission.open()
    seen = []

    def look() -> None:
        gauge = desk.metrics.registry.get_sample_value("vilt_ready")
        assert gauge == desk.admission.is_ready
        seen.append(desk.admission.status)

    for _ in range(FAULTS_IN_A_ROW):
        desk.admission.observe_run(False)
    for passed_s in (FAULTY_S / 2, FAULTY_S / 2):
        desk.clock.now_s += passed_s
        look()
    for is_sound in (False, True):
        desk.admission.observe_run(is_sound)
        look()

    assert seen == ["faulty", "ready", "faulty", "ready"]


def test_engine_is_broken_after_many_faults_in_a_row_over_a_minute() -> None:
    """Neither a burst of faults nor a few far apart are enough, and a success starts the count again."""
    desk = Desk()

    def fail(times: int, every_s: float) -> bool:
        for _ in range(times):
            desk.admission.observe_run(False)
            desk.clock.now_s += every_s
        return desk.admission.is_broken

    assert not fail(10 * BROKEN_FAULTS, every_s=0.1)
    desk.admission.observe_run(True)
    assert not fail(BROKEN_FAULTS - 1, every_s=BROKEN_S)
    assert fail(1, every_s=0)


def test_server_told_to_end_while_it_starts_does_not_become_ready() -> None:
    """A signal may come before the start has ended."""
    admission = Desk().admission
    admission.close()
    admission.open()

    assert admission.status == "draining"


def test_closed_server_stays_closed_after_a_sound_run() -> None:
    """Draining is for good."""
    admission = Desk().admission
    admission.open()
    admission.close()
    admission.observe_run(True)

    assert not admission.is_ready
    assert admission.is_draining


@pytest.mark.parametrize("is_rank", [False, True])
def test_entries_that_will_run_together_are_counted_with_their_share_of_a_run(is_rank: bool) -> None:
    """Where a batch of four takes as long as one, seven entries are not seven runs ahead, and not one."""
    desk = Desk()
    desk.model = served(FakeEngine(), runs=latency(base_s=ONE_RUN_S), max_batch_size=4)

    with desk.admit(7, rank=is_rank):
        refused = desk.refusal(within_s=0.15, rank=is_rank)

    assert refused.details == {"queued_ms": 175, "estimate_ms": 200, "deadline_ms": 150}


def test_room_that_was_kept_is_free_again_once_it_has_been_used() -> None:
    """Once the refused request has been admitted, a new one gets in, too."""
    desk = Desk()
    with desk.admit(5):
        wait_s = desk.refusal(within_s=0.45, key="early").retry_after_s or 0.0

    desk.clock.now_s += wait_s
    with desk.admit(3):
        with desk.admit(within_s=0.45, key="early"):
            pass
        with desk.admit(within_s=0.45, key="new"):
            pass


@pytest.mark.parametrize(("entries", "waits_for"), [(90, 10), (1000, 20)])
def test_client_waits_for_no_more_than_is_in_flight(entries: int, waits_for: int) -> None:
    """However large a rank is, an idle server admits it."""
    desk = Desk(capacity=100)

    with desk.admit(20):
        refused = desk.refusal(entries, rank=True)

    assert refused.retry_after_s == pytest.approx(waits_for * ONE_RUN_S)
