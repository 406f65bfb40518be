"""Tests of the tests: each mistake is made in a copy of the scheduler, and a named test has to notice it."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HANGS_S = 15.0  # after which a test is taken to wait for ever; as it is, it takes a fraction of a second
TIMED_OUT = "from pytest-timeout"  # in the output


@dataclass(frozen=True)
class Mutation:
    """A place in the sources, what is written there instead, and the test that fails then."""

    original: str
    mutated: str
    by: str
    file: str = "batcher.py"
    hangs: bool = False  # that test may wait for ever, which is how it fails


MUTATIONS = {
    "a follower is not answered": Mutation(
        "            for entry in leader.all():\n                entry.resolve(outcome)",
        "            leader.resolve(outcome)",
        by="test_batcher.py::test_same_image_and_text_in_flight_run_once_and_all_are_answered",
        hangs=True,
    ),
    "a failed batch answers nobody": Mutation(
        "ran, is_sound = ([_fault() for _ in batch], 0.0), False",
        "return",
        by="test_batcher.py::test_failing_batch_fails_its_own_entries_only",
        hangs=True,
    ),
    "a row gets its neighbour's logits": Mutation(
        "values[row] for head",
        "values[0] for head",
        by="test_batcher.py::test_batch_of_waiting_entries_is_formed_at_once_and_answers_each",
    ),
    "a batch is one too large": Mutation(
        "if len(batch) == limit:",
        "if len(batch) == limit + 1:",
        by="test_batcher.py::test_batch_of_waiting_entries_is_formed_at_once_and_answers_each",
        file="queue.py",
    ),
    "a batch grows until some are late": Mutation(
        "if ends_s >= due_s and",
        "if False and",
        by="test_batcher.py::test_batch_grows_until_one_of_those_in_it_would_be_late",
        file="queue.py",
    ),
    "a backlog makes batches small": Mutation(
        "now_s + run_s(len(batch), tokens) + run_s(limit, longest) < entry.due_s",
        "True",
        by="test_batcher.py::test_batch_stays_whole_where_nobody_can_wait",
        file="queue.py",
    ),
    "expiry is forgotten": Mutation(
        "elif now_s + run_s >= entry.deadline_s:",
        "elif False:",
        by="test_batcher.py::test_expired_entry_is_dropped_with_deadline_exceeded_and_counted",
        file="queue.py",
    ),
    "expiry is late by an instant": Mutation(
        "elif now_s + run_s >= entry.deadline_s:",
        "elif now_s + run_s > entry.deadline_s:",
        by="test_batcher.py::test_entry_that_would_be_answered_at_its_deadline_is_dropped",
        file="queue.py",
    ),
    "each of a rank's entries is the last": Mutation(
        "alone = not queue and not len(self)",
        "alone = not len(self)",
        by="test_batcher.py::test_rank_s_entries_that_a_run_could_not_answer_in_time_are_dropped_but_for_the_last",
        file="queue.py",
    ),
    "who joins at the end has less than no time": Mutation(
        "ended_s=max(self.ended_s, joined_s)",
        "ended_s=self.ended_s",
        by="test_batcher.py::test_one_that_joins_once_the_run_is_over_has_no_time_below_zero",
        file="types.py",
    ),
    "who has gone is run": Mutation(
        "if leader.future.done() and not leader.followers:",
        "if False:",
        by="test_batcher.py::test_cancelled_entry_is_dropped_and_counted",
        file="queue.py",
    ),
    "who has gone takes followers along": Mutation(
        "if leader.future.done() and not leader.followers:",
        "if leader.future.done():",
        by="test_batcher.py::test_leader_that_is_cancelled_does_not_cancel_its_followers",
        file="queue.py",
        hangs=True,
    ),
    "the end leaves those waiting who are queued": Mutation(
        "            for entry in self.queue.empty():\n                self._fail(entry, _shutting_down())\n",
        "",
        by="test_batcher.py::test_ended_loop_resolves_what_waits_and_refuses_what_comes",
        hangs=True,
    ),
    "the end leaves those waiting who are running": Mutation(
        "            for entry in batch:\n                self._fail(entry, _shutting_down())\n",
        "",
        by="test_batcher.py::test_ended_loop_resolves_what_waits_and_refuses_what_comes",
        hangs=True,
    ),
    "who comes after the end waits": Mutation(
        "            self._closed = True",
        "            pass",
        by="test_batcher.py::test_ended_loop_resolves_what_waits_and_refuses_what_comes",
        hangs=True,
    ),
    "who has been answered goes on leading": Mutation(
        "            self._forget(leader)\n            if isinstance(outcome",
        "            if isinstance(outcome",
        by="test_batcher.py::test_same_again_after_its_answer_runs_again_unless_logits_are_kept",
        hangs=True,
    ),
    "nobody wakes the loop": Mutation(
        "        self._waiting.set()\n        return",
        "        pass\n        return",
        by="test_batcher.py::test_batch_of_waiting_entries_is_formed_at_once_and_answers_each",
        hangs=True,
    ),
    "the end of a run wakes nobody": Mutation(
        "            self._waiting.set()\n        if ran",
        "        if ran",
        by="test_batcher.py::test_one_who_joins_a_batch_that_did_not_run_is_not_left_asleep",
        hangs=True,
    ),
    "a batch that can still grow is formed while another runs": Mutation(
        "if may_form else []",
        "if True else []",
        by="test_batcher.py::test_whole_batch_is_given_to_an_engine_that_copies_ahead_while_another_runs",
    ),
    "the newest goes first": Mutation(
        "first = queue.popleft()",
        "first = queue.pop()",
        by="test_batcher.py::test_batch_of_waiting_entries_is_formed_at_once_and_answers_each",
        file="queue.py",
    ),
    "ranks go before questions": Mutation(
        "return self._take_interactive(between_s) or self._take_slice()",
        "return self._take_slice() or self._take_interactive(between_s)",
        by="test_batcher.py::test_interactive_entry_goes_ahead_of_a_rank_s_slices",
        file="queue.py",
    ),
    "questions starve ranks": Mutation(
        "if self._since_rank < RANK_TURN:",
        "if True:",
        by="test_batcher.py::test_flood_of_questions_lets_a_rank_through_now_and_then",
        file="queue.py",
    ),
    "ranks are let through a turn late": Mutation(
        "self._since_rank < RANK_TURN:",
        "self._since_rank <= RANK_TURN:",
        by="test_batcher.py::test_flood_of_questions_lets_a_rank_through_now_and_then",
        file="queue.py",
    ),
    "a client with many candidates keeps its turn": Mutation(
        "                self._ranks[client] = queue  # at the end: the others go first",
        "                self._ranks[client] = queue\n                self._ranks.move_to_end(client, last=False)",
        by="test_batcher.py::test_ranks_of_several_clients_take_turns",
        file="queue.py",
    ),
    "capacity is one too small": Mutation(
        "in_flight and excess > 0:",
        "in_flight and excess >= 0:",
        by="test_admission.py::test_beyond_capacity_is_refused_until_there_is_room",
        file="admission.py",
    ),
    "room is not given back": Mutation(
        "        self.release()",
        "        pass",
        by="test_admission.py::test_beyond_capacity_is_refused_until_there_is_room",
        file="admission.py",
    ),
    "what is too late is admitted": Mutation(
        "if forecast.remaining_s < needed_s:",
        "if False:",
        by="test_admission.py::test_answer_that_would_come_too_late_is_refused_at_once_with_the_reason",
        file="admission.py",
    ),
    "ranks have a turn after each": Mutation(
        "                self._since_rank = 0\n                return batch",
        "                return batch",
        by="test_batcher.py::test_rank_has_one_turn_after_as_many_questions_as_before",
        file="queue.py",
    ),
    "questions count for a rank that comes later": Mutation(
        "self._since_rank + 1 if batch and self._ranks else 0",
        "self._since_rank + 1 if batch else 0",
        by="test_batcher.py::test_rank_that_comes_after_many_questions_has_not_waited_for_them",
        file="queue.py",
    ),
    "a question waits with the rank that asks for the same": Mutation(
        "leader = self._leaders.get((entry.key, entry.urgency))",
        "leader = next((one for (key, _), one in self._leaders.items() if key == entry.key), None)",
        by="test_batcher.py::test_question_does_not_wait_with_the_rank_that_asks_for_the_same",
    ),
    "drift is not learnt": Mutation(
        "        model.latency.observe(len(batch), tokens, ran_s)\n",
        "",
        by="test_batcher.py::test_drift_is_learnt_from_every_run_and_exposed",
    ),
    "time of those who have gone counts as answered": Mutation(
        "    if leader.is_wanted:\n",
        "    if True:\n",
        by="test_batcher.py::test_time_of_a_run_is_counted_by_whether_its_answer_was_received",
    ),
    "a question counts one slice only": Mutation(
        "// together // RANK_TURN",
        "* 0",
        by="test_admission.py::test_question_counts_the_slices_whose_turn_comes_before_it",
        file="admission.py",
    ),
    "a row of a batch takes as long as the batch": Mutation(
        "latency.run_s(together) / together",
        "latency.run_s(together)",
        by="test_admission.py::test_entries_that_will_run_together_are_counted_with_their_share_of_a_run",
        file="admission.py",
    ),
    "room that was kept is kept on": Mutation(
        "        self._reservations.forget(key)\n",
        "",
        by="test_admission.py::test_room_that_was_kept_is_free_again_once_it_has_been_used",
        file="admission.py",
    ),
}


def copy(folder: Path) -> Path:
    """Copy what the tests run, to be changed."""
    for package in ("server", "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").symlink_to(ROOT / "models")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(folder: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    """Run some of the copy's tests."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={HANGS_S}"]
    command += [f"tests/server/{name}" for name in names]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_tests_that_notice_mutations_pass_without_one(tmp_path: Path) -> None:
    """Otherwise their failures would show nothing."""
    ended = run_tests(copy(tmp_path), *sorted({mutation.by for mutation in MUTATIONS.values()}))

    assert ended.returncode == pytest.ExitCode.OK, ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_mutation_of_the_scheduler_is_noticed(tmp_path: Path, mutation: Mutation) -> None:
    """The test that is about it fails, and not for being slow; and the mutated line still exists."""
    file = copy(tmp_path) / "server" / mutation.file
    source = file.read_text()
    assert source.count(mutation.original) == 1, "the source has changed: so must the mutation"
    file.write_text(source.replace(mutation.original, mutation.mutated))

    ended = run_tests(tmp_path, mutation.by)

    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout
    assert f"FAILED tests/server/{mutation.by}" in ended.stdout
    assert mutation.hangs or TIMED_OUT not in ended.stdout
