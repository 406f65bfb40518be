"""CPUs: how many may be used, what they can do, and who is kept off whose."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import artifact

from server import cpus
from server.cpus import OWN_THREADS, Helpers, has_vnni, usable_cpus
from server.engine import OrtEngine

needs_two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="nothing to keep a thread off"
)


@pytest.fixture
def helper() -> Iterator[threading.Thread]:
    """A thread that sleeps until the test has ended."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    yield thread
    ended.set()
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
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 10)

    assert usable_cpus(tmp_path, tmp_path / "own") == 10


@needs_two_cpus
def test_helper_is_kept_off_the_cpu_of_its_caller_wherever_that_goes(
    helper: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only threads that started as helpers are."""
    allowed = os.sched_getaffinity(0)
    helpers = Helpers()
    with helpers.starting():
        helper.start()

    for cpu in sorted(allowed):
        monkeypatch.setattr("ctypes.pythonapi.sched_getcpu", lambda cpu=cpu: cpu)
        helpers.keep_off()

        assert os.sched_getaffinity(helper.native_id or 0) == allowed - {cpu}
    assert os.sched_getaffinity(0) == allowed


@needs_two_cpus
def test_threads_of_every_graph_are_kept_off_the_cpu_that_a_run_is_called_on() -> None:
    """Otherwise one of them may wait behind who spins for it."""
    allowed, before = os.sched_getaffinity(0), set(OWN_THREADS.iterdir())
    engine = OrtEngine(artifact(), threads=3)
    engine.warm_up()

    kept = [os.sched_getaffinity(int(thread.name)) for thread in set(OWN_THREADS.iterdir()) - before]
    assert len(kept) == 2 * 3
    assert all(kept[0] == each < allowed and len(allowed - each) == 1 for each in kept)


def test_helper_without_another_cpu_runs_where_it_may(
    helper: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on, whatever the kernel says."""
    helpers = Helpers()
    with helpers.starting():
        helper.start()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr("ctypes.pythonapi.sched_getcpu", lambda: 0, raising=False)

    helpers.keep_off()


def test_where_threads_are_not_listed_nobody_is_kept_off(
    helper: threading.Thread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a Mac there is no /proc, and none of the calls either."""
    monkeypatch.setattr(cpus, "OWN_THREADS", tmp_path / "none")
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    helpers = Helpers()
    with helpers.starting():
        helper.start()

    helpers.keep_off()
