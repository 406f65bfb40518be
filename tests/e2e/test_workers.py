"""Several processes of one server: killed one by one under load, they leave nobody waiting and nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import factories
import httpx
import pytest

from server.accepting import NONE_WANTED

from .conftest import Running, drain, start, stop
from .test_process import PNG, sample

PATIENCE_S = 30.0
LOST = "connection lost"
PICTURES = [factories.encoded(factories.noise(200, 200, seed=seed), "PNG") for seed in range(50)]


@pytest.fixture
def split() -> Iterator[Running]:
    running = start("--workers", "2", "--drain-pause-s", "0.2")
    drain(running)
    yield running
    stop(running)


def children(running: Running, role: str) -> list[int]:
    """Find the processes of a role."""
    pid = running.process.pid
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if f"server.{role}".encode() in Path(f"/proc/{child}/cmdline").read_bytes()]


def until(has_happened: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
    """Look until it is so; tell how long that took."""
    began_s = time.monotonic()
    while not has_happened():
        assert time.monotonic() - began_s < within_s, "it never came to be"
        time.sleep(0.01)
    return time.monotonic() - began_s


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def answers(url: str, path: str = "/readyz") -> bool:
    try:
        return httpx.get(url + path, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


class Load:
    """People who ask again as soon as they have an answer, each over a connection of their own."""

    def __init__(self, url: str, people: int = 8) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url = url
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[number]) for number in range(people)]

    def _ask(self, number: int) -> None:
        client = httpx.Client(base_url=self._url, timeout=PATIENCE_S)
        while not self._is_over.is_set():
            number += 1
            try:
                image = {"image": PICTURES[number % len(PICTURES)]}
                response = client.post("/v1/vqa", files=image, data={"question": "is there a star?"})
                self.outcomes["200" if response.status_code == 200 else response.json()["code"]] += 1
            except httpx.TransportError:
                self.outcomes[LOST] += 1
                client.close()
                client = httpx.Client(base_url=self._url, timeout=PATIENCE_S)
        client.close()

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "somebody is left waiting"

    def until_answered(self, more: int) -> float:
        """Wait for so many more answers."""
        wanted = self.outcomes["200"] + more
        return until(lambda: self.outcomes["200"] >= wanted)


@pytest.mark.slow
def test_engine_process_killed_under_load_is_answered_for_and_replaced(split: Running) -> None:
    """Nobody is left without a response; not ready until there is another engine."""
    (engine,) = children(split, "engine_process")
    with Load(split.url).running() as load:
        load.until_answered(50)

        os.kill(engine, signal.SIGKILL)
        until(lambda: load.outcomes["engine_restarting"] > 0)
        assert split.client.get("/livez").status_code == 200
        refused = split.client.get("/readyz")
        took_s = load.until_answered(1)
        load.until_answered(50)

    print(f"answers again after {took_s:.2f} s: {dict(load.outcomes)}")  # noqa: T201 the figure to quote
    assert (refused.status_code, refused.json()) == (503, {"status": "starting"})
    assert set(load.outcomes) == {"200", "engine_restarting"}
    assert split.client.get("/readyz").status_code == 200
    assert children(split, "engine_process") != [engine]
    assert sample(split.url, "vilt_requests_total", code="engine_restarting") > 0
    assert_idle(split)


@pytest.mark.slow
def test_front_killed_under_load_loses_only_what_it_was_reading(split: Running) -> None:
    """The other goes on; no count is lost; what the engine held for it is let go; another takes its place."""
    first, second = children(split, "front")
    with Load(split.url).running() as load:
        load.until_answered(50)
        counted = sample(split.url, "vilt_requests_total", code="ok")

        os.kill(first, signal.SIGKILL)
        load.until_answered(20)
        took_s = until(lambda: len(children(split, "front")) == 2)
        new = next(pid for pid in children(split, "front") if pid != second)
        took_s += until(lambda: is_welcomed(new))
        load.until_answered(50)

    print(f"two fronts again after {took_s:.2f} s: {dict(load.outcomes)}")  # noqa: T201
    assert set(load.outcomes) <= {"200", LOST}
    assert load.outcomes[LOST] <= len(load._threads)
    assert sample(split.url, "vilt_requests_total", code="ok") >= counted + 70
    assert_idle(split)


@pytest.mark.slow
def test_connections_are_shared_equally_also_with_a_front_that_was_replaced(split: Running) -> None:
    """Twenty at once, as a balancer opens them; without sharing, one front took fifteen and more of them."""
    assert shares_equally(split)

    old, _ = children(split, "front")
    os.kill(old, signal.SIGKILL)
    until(lambda: NONE_WANTED in tallies(split))  # what is dead is not waited for
    until(lambda: NONE_WANTED not in tallies(split))
    assert shares_equally(split)


def shares_equally(running: Running) -> bool:
    """Connect twenty clients at once, five times; once a front may have been busy with something else."""
    return sorted(min(taken(running, 20)) for _ in range(5))[1] >= 8


def tallies(running: Running) -> list[int]:
    """Read how many connections each front says that it has."""
    memory = next(
        one
        for one in Path(f"/proc/{running.process.pid}/fd").iterdir()
        if "memfd:vilt-connections" in str(one.readlink())
    )
    return list(memoryview(memory.read_bytes()).cast("q"))


def taken(running: Running, count: int) -> list[int]:
    """Connect so many clients at once, and count how many each front has taken."""
    fronts = children(running, "front")
    before = [sockets(pid) for pid in fronts]
    url = httpx.URL(running.url)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection((url.host, url.port)))
        until(lambda: sum(map(sockets, fronts)) == sum(before) + count)
        found = [sockets(pid) - had for pid, had in zip(fronts, before, strict=True)]
    until(lambda: [sockets(pid) for pid in fronts] == before)
    return found


def sockets(pid: int) -> int:
    """Count the sockets that a process has open."""
    return sum(one.is_socket() for one in Path(f"/proc/{pid}/fd").iterdir())


def is_welcomed(pid: int) -> bool:
    """Tell whether a front has heard from the engine process: it sees the memory that they share."""
    return any("memfd:vilt-patches" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def assert_idle(running: Running) -> None:
    """Nothing is held for anybody."""
    until(lambda: sample(running.url, "vilt_in_flight_entries") == 0)
    assert sample(running.url, "vilt_queue_entries") == 0


@pytest.mark.slow
def test_supervisor_killed_takes_all_with_it_and_leaves_nothing() -> None:
    """No process, no shared memory: it has no name that could be left."""
    before = set(Path("/dev/shm").iterdir())  # noqa: S108 to look at
    split = start("--workers", "2")
    drain(split)
    others = [*children(split, "front"), *children(split, "engine_process")]
    assert len(others) == 3
    assert split.client.post("/v1/vqa", files={"image": PNG}, data={"question": "why?"}).status_code == 200

    split.process.kill()

    until(lambda: not any(map(is_alive, others)))
    stop(split)
    assert set(Path("/dev/shm").iterdir()) <= before  # noqa: S108


@pytest.mark.slow
def test_metrics_are_the_whole_server_s_whichever_front_is_asked(split: Running) -> None:
    """Twenty connections, each asking once and then for the metrics: all see one count that never falls."""
    counts = []
    for _ in range(20):
        with httpx.Client(base_url=split.url, timeout=PATIENCE_S) as client:
            client.post("/v1/vqa", files={"image": PNG}, data={"question": "why?"})
            counts.append(sample(split.url, "vilt_requests_total", code="ok"))
    until(lambda: sample(split.url, "vilt_requests_total", code="ok") == 20)

    assert counts == sorted(counts)
    processes = [*children(split, "front"), *children(split, "engine_process"), split.process.pid]
    resident = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for pid in processes
    )
    assert sample(split.url, "process_resident_memory_bytes") == pytest.approx(resident, rel=0.2)
    assert sample(split.url, "vilt_ready") == 1


@pytest.mark.slow
def test_front_loads_no_engine_and_supervisor_next_to_nothing() -> None:
    """What a process does not need, it does not carry."""
    for module, absent in (
        ("server.front", {"onnxruntime"}),
        ("server.supervisor", {"onnxruntime", "numpy", "fastapi", "uvicorn"}),
    ):
        check = f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))"
        loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        assert loaded.stdout.strip() == "[]", module


@pytest.mark.slow
def test_start_that_fails_ends_with_one_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    """The engine process says what is wrong, once; nobody else has anything to add."""
    command = [sys.executable, "-m", "server", "--port", "0", "--workers", "2", "--model", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "is not an artifact" in ended.stderr
