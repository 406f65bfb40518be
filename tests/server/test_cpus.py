"""CPUs: how many may be used, what they can do, and who is kept off whose."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import artifact

from server.cpus import OWN_THREADS, PoolThreads, has_vnni, usable_cpus
from server.engine import OrtEngine

needs_two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="nothing to keep a thread off"
)


@pytest.fixture
def start() -> Iterator[Callable[[], int]]:
    """Start threads that sleep until the test has ended, and tell their ids."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def started() -> int:
        threads.append(threading.Thread(target=ended.wait))
        threads[-1].start()
        assert threads[-1].native_id
        return threads[-1].native_id

    yield started
    ended.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("files", "own", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"cpu.max": "max 100000"}, "0::/", 8),
        ({"cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a", 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "5:cpu,cpuacct:/not/seen/here", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "5:cpu,cpuacct:/", 8),
        ({"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "20000"}, "5:cpu,cpuacct:/a\n4:memory:/b", 2),
        ({"cpu.max": "1600000 100000"}, "0::/", 8),
        ({}, "0::/", 8),
    ],
    ids=[
        *("container", "half a CPU", "no quota", "own group", "old kind, container", "old kind, no quota"),
        *("old kind, own group", "more than there are", "nothing there"),
    ],
)
def test_usable_cpus_respects_the_quotas_of_the_process_s_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], own: str, cpus: int
) -> None:
    """A quota of half a CPU is one thread, not the host's eight."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")

    assert usable_cpus(tmp_path, tmp_path / "own") == cpus
    assert usable_cpus(tmp_path / "missing", tmp_path / "missing") == 8


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", True),
        ("flags\t\t: fpu avx2 avx_vnni", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd asimddp", False),
    ],
    ids=["AVX-512", "AVX", "neither", "Arm"],
)
def test_int8_is_trusted_to_processors_that_say_so(tmp_path: Path, flags: str, found: bool) -> None:
    """By a line of /proc/cpuinfo; where there is no such file, to none."""
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{flags}\nbugs\t\t:\n")

    assert has_vnni(path) is found
    assert not has_vnni(tmp_path / "none")


def test_where_there_is_no_affinity_every_cpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac, say."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 10)

    assert usable_cpus(tmp_path, tmp_path / "own") == 10


@needs_two_cpus
def test_pool_is_kept_off_the_cpu_of_its_caller_wherever_that_goes(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread of it, those that start later, too; and no other thread."""
    allowed, other = os.sched_getaffinity(0), start()
    pool = PoolThreads()
    with pool.starting():
        threads = [start(), start()]

    for cpu in sorted(allowed):
        monkeypatch.setattr(pool, "_current_cpu", lambda cpu=cpu: cpu)
        pool.keep_off()
        assert all(os.sched_getaffinity(thread) == allowed - {cpu} for thread in threads)

    with pool.starting():
        late = start()
    pool.keep_off()
    assert os.sched_getaffinity(late) == allowed - {max(allowed)}
    assert os.sched_getaffinity(other) == os.sched_getaffinity(0) == allowed


@needs_two_cpus
def test_pool_follows_what_its_caller_may_use(start: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's set of CPUs can change while the caller stays where it is."""
    pool = PoolThreads()
    with pool.starting():
        thread = start()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    monkeypatch.setattr(pool, "_current_cpu", lambda: first)
    pool.keep_off()
    os.sched_setaffinity(thread, {first})  # as the kernel may, with a new set

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {first, second, 1023})
    pool.keep_off()

    monkeypatch.undo()
    assert os.sched_getaffinity(thread) == {second}


@needs_two_cpus
def test_thread_that_has_ended_keeps_none_of_the_others(start: Callable[[], int]) -> None:
    """Its id may be given to a thread of another process, so it is forgotten."""
    allowed, ended = os.sched_getaffinity(0), threading.Event()
    pool = PoolThreads()
    with pool.starting():
        threads = [start(), start()]
        short = threading.Thread(target=ended.wait)
        short.start()
    ended.set()
    short.join()
    while str(short.native_id) in {thread.name for thread in OWN_THREADS.iterdir()}:
        pass  # joined, it takes the kernel a moment more

    pool.keep_off()

    assert all(len(allowed - os.sched_getaffinity(thread)) == 1 for thread in threads)
    assert pool._threads == set(threads)


@needs_two_cpus
def test_threads_of_every_graph_are_kept_off_the_cpu_that_a_run_is_called_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one of them may wait behind who spins for it."""
    before = set(OWN_THREADS.iterdir())
    engine = OrtEngine(artifact(), threads=3)
    threads = set(OWN_THREADS.iterdir()) - before
    assert len(threads) == 3 * 2  # two beside the caller for each of three graphs
    cpu = max(allowed := os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {cpu})  # so it is there, and stays
        monkeypatch.setattr("os.sched_getaffinity", lambda _: allowed)
        engine.warm_up()
        monkeypatch.undo()

        assert all(os.sched_getaffinity(int(thread.name)) == allowed - {cpu} for thread in threads)
    finally:
        os.sched_setaffinity(0, allowed)


@needs_two_cpus
def test_pool_without_another_cpu_runs_where_it_may(start: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on."""
    allowed = os.sched_getaffinity(0)
    pool = PoolThreads()
    with pool.starting():
        thread = start()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(pool, "_current_cpu", lambda: 0)

    pool.keep_off()

    monkeypatch.undo()
    assert os.sched_getaffinity(thread) == allowed


def test_where_threads_are_not_listed_nobody_is_kept_off(
    start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where there is no /proc, none of the calls is there either."""
    monkeypatch.setattr("server.cpus.OWN_THREADS", tmp_path / "none")
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    pool = PoolThreads()
    with pool.starting():
        start()

    pool.keep_off()
