"""Admission, timings, bodies, settings, logs: the small rooms."""

import json
import logging
from pathlib import Path

import pytest
from fakes import FakeClock
from pydantic import ValidationError

from server import bodies
from server.cpus import has_vnni, usable_cpus
from server.errors import Overloaded
from server.logs import FIELDS, ConsoleFormatter, JsonFormatter
from server.metrics import Metrics
from server.settings import SHAPES, Settings
from server.types import Timings


def test_timings_of_consecutive_marks_sum_to_the_total() -> None:
    """Stages are consecutive, so nothing is counted twice or lost; parts are nested and not summed."""
    clock = FakeClock()
    timings = Timings(clock)
    for stage, duration_s in (("receive", 0.5), ("admit", 0.25), ("inference", 1.0)):
        clock.now_s += duration_s
        timings.mark(stage)
    timings.parts_s["interaction"] = 0.75

    assert timings.as_ms() == {"receive": 500, "admit": 250, "inference": 1000, "interaction": 750, "total": 1750}


def test_timings_of_a_failure_name_the_stage_that_it_was_in() -> None:
    """Whose time would else be nobody's, and the total less than the client waited."""
    clock = FakeClock()
    timings = Timings(clock)
    clock.now_s += 0.5
    timings.mark("receive")
    clock.now_s += 2

    timings.close()

    assert timings.as_ms() == {"receive": 500, "admit": 2000, "total": 2500}


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_bodies_around_their_room_are_refused_only_beyond(excess: int) -> None:
    """Told when to come back by how long bodies of late were held; one alone always has room."""
    clock, metrics = FakeClock(), Metrics()
    room = bodies.BodyRoom(100, metrics.body_bytes.inc, clock)
    with room.body() as take:
        take(150)
        clock.now_s += 10
    with room.body() as first, room.body() as second:
        first(60)
        if excess > 0:
            with pytest.raises(Overloaded) as caught:
                second(40 + excess)
            assert caught.value.retry_after_s == pytest.approx(bodies.SMOOTHING * 10)
        else:
            second(40 + excess)
            assert metrics.registry.get_sample_value("vilt_body_bytes") == 100 + excess

    assert metrics.registry.get_sample_value("vilt_body_bytes") == 0


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is VILT_ and its name; several models are separated by commas."""
    monkeypatch.setenv("VILT_MODEL", "/a,/b")
    monkeypatch.setenv("VILT_MAX_BATCH_SIZE", "3")

    settings = Settings()

    assert [str(path) for path in settings.model] == ["/a", "/b"]
    assert settings.max_batch_size == 3


def test_settings_without_any_serve_shapes() -> None:
    """A fresh clone has something to serve."""
    assert Settings().model == [SHAPES]


def test_settings_out_of_range_are_refused() -> None:
    """A setting that makes no sense does not start a server."""
    with pytest.raises(ValidationError):
        Settings(max_batch_size=-1)


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()], ids=["json", "console"])
def test_log_line_holds_its_fields_and_is_one_line(formatter: logging.Formatter) -> None:
    """Machines read JSON, people read name=value."""
    record = logging.makeLogRecord({"msg": "vqa", "levelname": "INFO", FIELDS: {"status": 200, "total_ms": 1.5}})

    line = formatter.format(record)

    assert "\n" not in line
    if isinstance(formatter, JsonFormatter):
        found = json.loads(line)
        assert (found["message"], found["status"], found["total_ms"]) == ("vqa", 200, 1.5)
    else:
        assert line.endswith("vqa status=200 total_ms=1.5")


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
