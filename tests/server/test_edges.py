"""Admission, timings, bodies, settings, logs: the small rooms."""

import contextlib
import json
import logging
import re

import pytest
from fakes import FakeClock
from pydantic import ValidationError
from pydantic_settings import CliApp

from server import bodies
from server.errors import Overloaded
from server.logs import FIELDS, ConsoleFormatter, JsonFormatter
from server.metrics import Metrics
from server.pipeline import _mark_runs
from server.settings import (
    SHAPES,
    Settings,
    command_line,
    explain,
    shown_default,
    unknown_variables,
    variable,
    warnings,
)
from server.types import SMOOTHING, EntryResult, Timings


def test_timings_of_consecutive_marks_sum_to_the_total() -> None:
    """Stages are consecutive, so nothing is counted twice or lost; parts are nested and not summed."""
    clock = FakeClock()
    timings = Timings(clock)
    for stage, duration_s in (("receive", 0.5), ("admit", 0.25), ("inference", 1.0)):
        clock.now_s += duration_s
        timings.mark(stage)
    timings.parts_s["interaction"] = 0.75

    assert timings.as_ms() == {"receive": 500, "admit": 250, "inference": 1000, "interaction": 750, "total": 1750}


def test_parts_of_a_rank_are_those_of_all_its_runs() -> None:
    """Two ran together: a run's parts count once."""
    clock = FakeClock()
    timings = Timings(clock)
    now_s = clock.now_s
    first, last = {"interaction": 0.5}, {"text_embedding": 0.25, "interaction": 1.0}
    results = [
        EntryResult({}, now_s + 3, now_s + 5, last, 1),
        *(EntryResult({}, now_s + 1, now_s + 2, first, 2) for _ in range(2)),
        EntryResult({}, now_s + 1, now_s + 2, first, 2).since(now_s + 1.75),
    ]

    _mark_runs(timings, results)

    expected = {"queue": 1000, "inference": 4000, "text_embedding": 250, "interaction": 1500, "total": 5000}
    assert timings.as_ms() == expected


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
            assert caught.value.retry_after_s == pytest.approx(SMOOTHING * 10)
        else:
            second(40 + excess)
            assert metrics.registry.get_sample_value("vilt_body_bytes") == 100 + excess

    assert metrics.registry.get_sample_value("vilt_body_bytes") == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("VILT_MODELS", ["VILT_MODELS sets nothing; did you mean VILT_MODEL?"]),
        ("VILT_SERVICE_HOST", ["VILT_SERVICE_HOST sets nothing: there is no such setting"]),
        ("VILT_MODEL", []),
        ("vilt_model", []),
        ("VILTE", []),
    ],
)
def test_variable_that_sets_nothing_is_told(name: str, says: list[str]) -> None:
    """Or a container serves the shipped model in the place of yours, without a word."""
    assert list(unknown_variables([name])) == says


def test_time_to_come_back_with_a_body_is_not_learnt_from_those_who_were_refused() -> None:
    """They hold nothing, or hardly anything, for an instant; nor from those who sent no body."""
    clock = FakeClock()
    room = bodies.BodyRoom(100, lambda _: None, clock)
    for _ in range(100):
        with room.body() as take:
            take(10)
            clock.now_s += 5
    with room.body() as first:
        first(80)
        for sent in [(), (50,), (10, 50)] * 20:
            with contextlib.suppress(Overloaded), room.body() as take:
                for count in sent:
                    take(count)
        with pytest.raises(Overloaded) as caught, room.body() as take:
            take(50)

    assert caught.value.retry_after_s == pytest.approx(5, rel=0.01)


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


def test_deadline_that_outlasts_a_drain_is_warned_of() -> None:
    """What was admitted would be cut off by a shutdown; by default nothing is."""
    assert list(warnings(Settings(), [])) == []

    (said,) = warnings(Settings(drain_timeout_s=30), [])
    assert said == (
        "A request may take 60 s (--deadline-ms), but a shutdown waits only 30 s (--drain-timeout-s): requests that"
        " take longer are cut off with 503."
    )
    assert len(list(warnings(Settings(drain_timeout_s=30), ["VILT_PROT"]))) == 2


def test_settings_out_of_range_are_refused() -> None:
    """A setting that makes no sense does not start a server."""
    with pytest.raises(ValidationError):
        Settings(max_batch_size=-1)


WRONG = {
    "port": ("70000", "--port (or VILT_PORT) is '70000', but may be at most 65535"),
    "threads": ("two", "--threads (or VILT_THREADS) is 'two', but has to be a whole number"),
    "deadline_ms": ("0", "--deadline-ms (or VILT_DEADLINE_MS) is '0', but has to be at least 1"),
    "calibration_s": ("0", "--calibration-s (or VILT_CALIBRATION_S) is '0', but has to be more than 0"),
    "max_bodies_mb": ("inf", "--max-bodies-mb (or VILT_MAX_BODIES_MB) is 'inf', but has to be a finite number"),
    "provider": ("gpu", "--provider (or VILT_PROVIDER) is 'gpu', but has to be 'cpu', 'cuda' or 'tensorrt'"),
    "model": (",", "--model (or VILT_MODEL) is [], but has to name at least 1"),
    "api_key": (
        "a b",
        "--api-key (or VILT_API_KEY): a key is one or more of A-Z a-z 0-9 - . _ ~ + /, and = at its end",
    ),
}


@pytest.mark.parametrize(("name", "value", "says"), [(name, *rest) for name, rest in WRONG.items()], ids=WRONG)
def test_setting_that_is_refused_is_named_with_what_it_has_to_be(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, and none of pydantic's; a key is not repeated."""
    monkeypatch.setenv(variable(name), value)

    with pytest.raises(ValidationError) as caught:
        Settings()

    assert explain(caught.value) == says


def test_help_shows_no_python(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are called by what they are, and defaults are written for people."""
    monkeypatch.setenv("COLUMNS", "300")

    with pytest.raises(SystemExit, match="0"):
        CliApp.run(Settings, ["--help"], cli_settings_source=command_line())

    text = capsys.readouterr().out
    assert "--model DIR" in text
    assert "(default: the shipped shapes)" in text
    assert "--deadline-ms MS" in text
    assert "--api-key KEY" in text
    assert not re.search(r"Path|Str|list\[|\bint\b|float|null|None|\.0\)|\[\]", text)
    for name in Settings.model_fields:
        assert f"{Settings.model_fields[name].description} (default: {shown_default(name)})" in text


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.annotation is float])
def test_settings_that_are_no_finite_number_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`inf` is no way to say "without a limit"."""
    monkeypatch.setenv(variable(name), value)

    with pytest.raises(ValidationError, match="finite number"):
        Settings()


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
