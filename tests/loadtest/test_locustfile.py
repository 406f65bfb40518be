"""Locust's users: what counts as what, and that its table is right."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import rows
from loadtest.trials.users import TOLERANCE_MS

ROOT = Path(__file__).parents[2]
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"
BOUND_S = 90


def in_locust(code: str) -> Any:
    """Run a line in a process of its own: importing Locust changes sockets and threads for good."""
    script = f"import json, dataclasses\nfrom loadtest import locustfile\nprint(json.dumps({code}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=BOUND_S
    )
    return json.loads(done.stdout.splitlines()[-1])


def locust(fake_server: Any, folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Run Locust without its page for some seconds; the raw rows go to rows.jsonl."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", fake_server.url]
    return subprocess.run(
        [*command, "-u", "30", "-r", "30", "-t", "5s", "--rows", str(folder / "rows.jsonl"), *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=BOUND_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def mean_ms(line: dict[str, Any]) -> float:
    """The mean of a line of the table."""
    mean: float = line["total_response_time"] / line["num_requests"]
    return mean


@pytest.mark.slow
def test_outcomes_are_named_and_only_wrong_or_failed_ones_are_failures() -> None:
    """A refusal is a row of its own, and no failure: the server said no, and nothing false."""
    row = "(lambda **changes: rows.Row(kind='vqa', scheduled_s=0, sent_s=0, done_s=1, deadline_ms=None, stages_ms={}, \
retry_after_ms=None, expected='blue', request_id=None, **changes))"
    cases = [
        "status=200, code='ok', answer='blue', correct=True",
        "status=200, code='ok', answer='red', correct=False",
        "status=429, code='overloaded', answer=None, correct=None",
        "status=503, code='deadline_unreachable', answer=None, correct=None",
        "status=504, code='deadline_exceeded', answer=None, correct=None",
        "status=0, code='connection_failed', answer=None, correct=None",
    ]
    checked = ", ".join(f"{row}({case})" for case in cases)

    found = in_locust(
        f"(lambda rows, locustfile: [[one.line, locustfile.failure_of(one)] for one in [{checked}]])"
        "(locustfile.rows, locustfile)"
    )

    assert found == [
        ["vqa", None],
        ["vqa", "under load: red; alone: blue"],
        ["vqa refused: overloaded", None],
        ["vqa refused: deadline_unreachable", None],
        ["vqa", "504 deadline_exceeded"],
        ["vqa", "connection_failed"],
    ]


@pytest.mark.slow
def test_table_has_requests_refusals_and_stages_as_the_rows_have_them(
    fake_server: Any, said: Any, refused: Any, tmp_path: Path
) -> None:
    """Counts and stages of Locust's own table equal those of the raw rows; times are near, and taken apart."""
    fake_server.behave = lambda seen: refused if seen.number > 110 and seen.number % 4 == 0 else said(seen)

    done = locust(fake_server, tmp_path, "--json-file", str(tmp_path / "table"))

    assert done.returncode == 0, done.stderr
    table = {line["name"]: line for line in json.loads((tmp_path / "table.json").read_text())}
    asked = rows.read(tmp_path / "rows.jsonl")
    assert len(asked) > 60
    answered = [row.latency_ms for row in asked if row.kind == "vqa" and row.status == 200]
    assert table["vqa"]["num_requests"] == len(answered)
    assert 0 < abs(mean_ms(table["vqa"]) - statistics.fmean(answered)) < TOLERANCE_MS
    refusals = sum(row.kind == "vqa" and row.status == 503 for row in asked)
    assert table["vqa refused: deadline_unreachable"]["num_requests"] == refusals > 0
    assert mean_ms(table["stage inference"]) == pytest.approx(2.0)
    assert table["stage inference"]["num_requests"] == len(asked)


@pytest.mark.slow
def test_wrong_answer_is_a_failure_with_both_answers(fake_server: Any, said: Any, tmp_path: Path) -> None:
    """Locust's exit code says so, and its sum has the requests alone: stages are none."""
    wrong = {"answers": [{"answer": "red", "score": 0.9}]}
    fake_server.behave = lambda seen: said(seen, body=wrong) if seen.number == 100 else said(seen)

    done = locust(fake_server, tmp_path, "VqaUser")

    assert done.returncode == 1
    assert "under load: red; alone: blue" in done.stdout + done.stderr
    asked = rows.read(tmp_path / "rows.jsonl")
    assert {row.kind for row in asked} == {"vqa"}
    aggregated = re.findall(r"^\s*Aggregated\s+(\d+)\s+(\d+)\(", done.stdout + done.stderr, re.MULTILINE)
    assert aggregated[-1] == (str(len(asked)), "1"), done


@pytest.mark.slow
def test_samples_are_learned_past_a_proxy(fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locust's own requests know of none."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    done = locust(fake_server, tmp_path, "VqaUser", "-t", "1s")

    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_locust_without_a_server_ends_with_a_sentence(tmp_path: Path) -> None:
    """Not with a thousand failed requests."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", "http://127.0.0.1:9"]

    done = subprocess.run(
        [*command, "-u", "1", "-t", "2s"], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=BOUND_S
    )

    assert done.returncode == 1
    assert "locustfile: http://127.0.0.1:9: " in done.stdout + done.stderr
