"""Tests of the tests: what could go wrong in the scheduler is put into a copy of it, and has to be noticed."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test_batcher.py", "test_admission.py", "test_properties.py")
LONGEST_S = 120.0  # of a test as it is, on the slowest machine
PATIENCE = 3  # times the slowest test as it is: some mutations make one wait for ever
NOTHING = "pass"


@dataclass(frozen=True)
class Mutation:
    """A place in the sources, and what is written there instead."""

    original: str
    mutated: str
    file: str = "batcher.py"


MUTATIONS = {
    "a follower is not answered": Mutation(
        "            for entry in leader.all():\n                entry.resolve(outcome)",
        "            leader.resolve(outcome)",
    ),
    "a failed batch answers nobody": Mutation("ran = [_fault() for _ in batch], 0.0", "return"),
    "a row gets its neighbour's logits": Mutation("values[row] for head", "values[0] for head"),
    "a batch is one too large": Mutation("if len(batch) == limit:", "if len(batch) == limit + 1:", "queue.py"),
    "a batch grows until some are late": Mutation("if ends_s >= due_s and", "if False and", "queue.py"),
    "a backlog makes batches small": Mutation(
        "now_s + run_s(len(batch), tokens) + run_s(limit, longest) < entry.due_s", "True", "queue.py"
    ),
    "expiry is forgotten": Mutation("elif now_s + run_s >= entry.deadline_s:", "elif False:", "queue.py"),
    "expiry is late by an instant": Mutation(
        "elif now_s + run_s >= entry.deadline_s:", "elif now_s + run_s > entry.deadline_s:", "queue.py"
    ),
    "each of a rank's entries is the last": Mutation(
        "alone = not queue and not len(self)", "alone = not len(self)", "queue.py"
    ),
    "who joins at the end has less than no time": Mutation(
        "ended_s=max(self.ended_s, joined_s)", "ended_s=self.ended_s", "types.py"
    ),
    "who has gone is run": Mutation("if leader.future.done() and not leader.followers:", "if False:", "queue.py"),
    "who has gone takes followers along": Mutation(
        "if leader.future.done() and not leader.followers:", "if leader.future.done():", "queue.py"
    ),
    "the end leaves those waiting who are queued": Mutation(
        "            for entry in self.queue.empty():\n                self._fail(entry, _shutting_down())\n", ""
    ),
    "the end leaves those waiting who are running": Mutation(
        "            for entry in batch:\n                self._fail(entry, _shutting_down())\n", ""
    ),
    "who comes after the end waits": Mutation("            self._closed = True", f"            {NOTHING}"),
    "who has been answered goes on leading": Mutation(
        "            self._forget(leader)\n            if isinstance(outcome", "            if isinstance(outcome"
    ),
    "nobody wakes the loop": Mutation(
        "        self._waiting.set()\n        return", f"        {NOTHING}\n        return"
    ),
    "the end of a run wakes nobody": Mutation("            self._waiting.set()\n        if ran", "        if ran"),
    "a batch that can still grow is formed while another runs": Mutation("if may_form else []", "if True else []"),
    "the newest goes first": Mutation("first = queue.popleft()", "first = queue.pop()", "queue.py"),
    "ranks go before questions": Mutation(
        "batch = self._take_interactive(between_s) or self._take_slice()",
        "batch = self._take_slice() or self._take_interactive(between_s)",
        "queue.py",
    ),
    "questions starve ranks": Mutation("if self._since_rank < RANK_TURN:", "if True:", "queue.py"),
    "ranks are let through a turn late": Mutation(
        "self._since_rank < RANK_TURN:", "self._since_rank <= RANK_TURN:", "queue.py"
    ),
    "a client with many candidates keeps its turn": Mutation(
        "                self._ranks[client] = queue  # at the end: the others go first",
        "                self._ranks[client] = queue\n                self._ranks.move_to_end(client, last=False)",
        "queue.py",
    ),
    "capacity is one too small": Mutation("in_flight and excess > 0:", "in_flight and excess >= 0:", "admission.py"),
    "room is not given back": Mutation("            ticket.release()", f"            {NOTHING}", "admission.py"),
    "what is too late is admitted": Mutation("if forecast.remaining_s < needed_s:", "if False:", "admission.py"),
    "ranks have a turn after each": Mutation(
        "                self._since_rank = 0\n                return batch", "                return batch", "queue.py"
    ),
    "questions count for a rank that comes later": Mutation(
        "self._since_rank + 1 if batch and self._ranks else 0", "self._since_rank + 1 if batch else 0", "queue.py"
    ),
    "a question waits with the rank that asks for the same": Mutation(
        "leader = self._leaders.get((entry.key, entry.urgency))",
        "leader = next((one for (key, _), one in self._leaders.items() if key == entry.key), None)",
    ),
    "drift is not learnt": Mutation("        model.latency.observe(rows, tokens, ran_s)\n", ""),
    "time of those who have gone counts as answered": Mutation("    if leader.is_wanted:\n", "    if True:\n"),
    "a row of a batch takes as long as the batch": Mutation(
        "latency.run_s(together) / together", "latency.run_s(together)", "admission.py"
    ),
    "room that was kept is kept on": Mutation("        self._reservations.forget(key)\n", "", "admission.py"),
}


def copy(folder: Path) -> Path:
    """Copy what the tests run, to be changed."""
    for package in ("server", "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").symlink_to(ROOT / "models")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(folder: Path, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run the copy's tests, none of them longer than that."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={timeout_s:.1f}"]
    command += ["--durations=1", "--durations-min=0", *(f"tests/server/{name}" for name in TESTS)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def patience_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Run the tests on a copy without a mutation: they pass, and none is noticed for being slow here."""
    ended = run_tests(copy(tmp_path_factory.mktemp("control")), LONGEST_S)
    assert ended.returncode == pytest.ExitCode.OK, ended.stdout

    slowest = re.search(r"^([0-9.]+)s (?:call|setup|teardown) ", ended.stdout, re.MULTILINE)
    assert slowest, ended.stdout
    return PATIENCE * float(slowest[1])


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_mutation_of_the_scheduler_is_noticed(tmp_path: Path, mutation: Mutation, patience_s: float) -> None:
    """Some test fails; and the mutation is still about something that is there."""
    file = copy(tmp_path) / "server" / mutation.file
    source = file.read_text()
    assert source.count(mutation.original) == 1, "the source has changed: so must the mutation"
    file.write_text(source.replace(mutation.original, mutation.mutated))

    ended = run_tests(tmp_path, patience_s)

    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout
