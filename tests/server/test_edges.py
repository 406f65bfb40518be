"""Admission, timings, bodies, settings, logs: the small rooms."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import FakeClock
from pydantic import ValidationError

from server import bodies
from server.cpus import has_vnni, usable_cpus
from server.errors import BadRequest, Overloaded, TooLarge, UnsupportedMediaType
from server.logs import FIELDS, ConsoleFormatter, JsonFormatter
from server.metrics import Metrics
from server.schemas import RankBody, VqaBody
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


def read(data: bytes, content_type: str, *, chunk: int, limit: int = 10_000) -> bodies.RawBody:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    headers = {"content-type": content_type}
    return asyncio.run(bodies.read(stream(), headers, max_body_bytes=limit, max_parts=8, accepts_image=True))


MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="question"\r\n\r\nis it r\xc3\xb6t?\r\n'
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    b"\x89PNG\r\n--y\r\n\x00\r\n--x--\r\n"
)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_multipart_in_chunks_of_any_size_is_read_the_same(chunk: int) -> None:
    """Where the network cuts a body changes nothing, down to single bytes."""
    body = read(MULTIPART, "multipart/form-data; boundary=x", chunk=chunk)

    assert bodies.parse(body, {}, VqaBody) == VqaBody(image=b"\x89PNG\r\n--y\r\n\x00", question="is it röt?")


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_body_around_its_limit_is_refused_only_beyond(content_type: str, excess: int) -> None:
    """The limit is exact in every form."""
    data = MULTIPART if content_type.startswith("multipart") else b"1" * 100

    if excess > 0:
        with pytest.raises(TooLarge):
            read(data, content_type, chunk=16, limit=len(data) - excess)
    else:
        read(data, content_type, chunk=16, limit=len(data) - excess)


def test_rank_of_multipart_is_the_json_body_s_fields() -> None:
    """Both forms of a rank are one request."""
    fields: bodies.Fields = {"query_text": ["a star"], "images": [b"1", b"2"], "top_k": ["1"]}

    body = bodies.parse(bodies.RawBody("multipart", b"", fields), {}, RankBody)

    assert body == RankBody.model_validate(
        {"query": {"text": "a star"}, "candidates": [{"image": b"1"}, {"image": b"2"}], "top_k": 1}
    )


def test_wrong_field_is_named() -> None:
    """The sentence says which field, and what is wrong with it."""
    body = bodies.RawBody("json", b'{"image": "aa", "question": "a", "top_k": 0}', {})

    with pytest.raises(BadRequest, match=r"The field 'top_k' is not valid: .*greater than or equal to 1"):
        bodies.parse(body, {}, VqaBody)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_json_around_its_number_of_values_is_refused_only_beyond(excess: int) -> None:
    """Beyond it is not parsed: small lists take twenty times their bytes, and parsing them holds up every thread."""
    data = b'{"a": [' + b"0," * (bodies.JSON_VALUES + excess - 2) + b"0}"  # no JSON, which is found out only by parsing

    with pytest.raises(TooLarge if excess > 0 else BadRequest):
        bodies.parse(bodies.RawBody("json", data, {}), {}, VqaBody)


def test_json_nested_too_deeply_is_said_to_be() -> None:
    """In words of ours, not of Python's."""
    with pytest.raises(BadRequest, match=r"nested too deeply\."):
        bodies.parse(bodies.RawBody("json", b"[" * 250_000, {}), {}, VqaBody)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", ""])
def test_compressed_body_is_refused_before_it_is_read(encoding: str) -> None:
    """So there is no bomb to defuse."""

    async def stream() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-type": "application/json", "content-encoding": encoding}
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding"):
        asyncio.run(bodies.read(stream(), headers, max_body_bytes=10, max_parts=8, accepts_image=True))


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
