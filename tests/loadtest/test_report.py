"""The page stands alone, and says what was found."""

import base64
import re
from dataclasses import replace
from typing import Any

import pytest

from loadtest import report
from loadtest.capacity import Capacity
from loadtest.result import Load, Result
from loadtest.rows import Row
from loadtest.summary import summarise


def row(latency_ms: float, **changes: Any) -> Row:
    """A right answer, with changes."""
    values: dict[str, Any] = {
        "kind": "vqa",
        "scheduled_s": 1.0,
        "sent_s": 1.0,
        "done_s": 1.0 + latency_ms / 1000,
        "status": 200,
        "code": "ok",
        "deadline_ms": 50.0,
        "stages_ms": {"queue": 1.0, "inference": 4.0, "interaction": 3.0, "total": 5.0},
        "retry_after_ms": None,
        "expected": "blue",
        "answer": "blue",
        "correct": True,
        "request_id": None,
    }
    return Row(**{**values, **changes})


@pytest.fixture
def result() -> Result:
    """Two loads, of which the second refuses, and all that is said about them."""
    refusal = row(1.0, status=503, code="deadline_unreachable", correct=None)
    loads = [
        Load.of(10, 2.0, "rows-10.jsonl", [row(8.0)] * 20),
        Load.of(40, 2.0, "rows-40.jsonl", [*[row(30.0)] * 40, *[row(80.0)] * 10, *[refusal] * 30]),
    ]
    return Result(
        date="2026-01-02",
        commit="abc1234",
        command="vilt-bench load",
        machine={"processor": "a <fast> one"},
        versions={"vilt-server": "1.0"},
        models=[{"name": "<shapes>", "precision": "fp32", "provider": "cpu"}],
        same_machine=True,
        scenario="vqa",
        arrivals="poisson",
        identical=False,
        seed=0,
        samples=5,
        right=4,
        known=5,
        alone_ms={"vqa": 7.5},
        deadline_ms={"vqa": 50.0},
        capacity=Capacity(
            rate_per_s=22.5, share=0.99, confirmed_share=0.992, confirmed_requests=500, runs=[], flaws=[]
        ),
        loads=loads,
    )


def test_page_needs_nothing_else(result: Result) -> None:
    """It can be mailed: no script, no style sheet, no picture from elsewhere."""
    page = report.page_of(result)

    sources = re.findall(r"(?:src|href)=[\"']?([^\"' >]+)", page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page


def test_plots_are_pictures_that_refer_to_nothing(result: Result) -> None:
    """SVG may point elsewhere, too."""
    for encoded in re.findall(r"base64,([^\"]+)", report.page_of(result)):
        svg = base64.b64decode(encoded).decode()

        assert "<svg" in svg
        assert all(target.startswith("#") for target in re.findall(r"xlink:href=\"([^\"]*)", svg))


def test_table_has_a_line_for_each_load(result: Result) -> None:
    """Offered, requests, goodput, in time, six percentiles, refused, failed, wrong, lag; none that 50 cannot show."""
    lines = re.findall(r"<tr class=\"load\">(.*?)</tr>", report.page_of(result))

    cells = [re.findall(r"<td>(.*?)</td>", line) for line in lines]
    assert cells == [
        ["10", "20", "10.0", "100.0 %", *["8.0"] * 3, "", "", "8.0", "0", "0", "0", ""],
        ["40", "80", "20.0", "50.0 %", "30.0", *["80.0"] * 2, "", "", "80.0", "30", "0", "0", ""],
    ]


def test_page_says_how_latency_is_counted_and_what_was_found(result: Result) -> None:
    """In plain words."""
    text = re.sub(r"<[^>]+>", "", report.page_of(result))

    assert "Latency counts from the scheduled time" in text
    assert "Capacity: 22.5 requests per second" in text
    assert "in time: of 500 requests at this rate 99.2 % were in time." in text
    assert "Of 70 answers under load, none differs from the answer given without load." in text
    assert "vqa 50.0 ms" in text


def test_wrong_answers_while_the_capacity_was_searched_are_told(result: Result) -> None:
    """Beside those at the rates that were offered."""
    assert result.capacity is not None
    run = summarise([row(8.0), row(8.0, correct=False)], seconds=1)
    wrong = replace(result, capacity=replace(result.capacity, runs=[run]))

    assert "Of 72 answers under load, <b>1 differ</b>" in report.page_of(wrong)
    assert (wrong.checked, wrong.wrong) == (72, 1)


def test_names_from_outside_are_escaped(result: Result) -> None:
    """A model's name comes from a server that need not be ours."""
    page = report.page_of(result)

    assert "&lt;shapes&gt;" in page
    assert "<shapes>" not in page
    assert "<fast>" not in page


def test_flaw_of_the_generator_is_on_the_page_and_in_the_terminal(result: Result) -> None:
    """A figure that says little about the server is not to be quoted."""
    late = Load.of(10, 2.0, "rows-10.jsonl", [row(100.0, sent_s=1.05)] * 20)
    flawed = replace(result, loads=[late, *result.loads[1:]])

    assert 'class="flaw"' in report.page_of(flawed)
    assert "flawed: the generator sent 20 of 20 requests more than 5 ms late" in report.text_of(flawed)
    assert 'class="flaw"' not in report.page_of(result)
    assert report.text_of(result).splitlines()[2].split()[-3:] == ["30", "0", "0"]  # refused, failed, wrong
    assert "capacity: 22.5/s; of 500 requests at this rate 99.2 % were in time" in report.text_of(result)


def test_generator_that_limited_the_capacity_is_on_the_page_and_in_the_terminal(result: Result) -> None:
    """The server's capacity is higher, then."""
    assert result.capacity is not None
    limited = replace(result, capacity=replace(result.capacity, flaws=["it was <late>", "it left some out"]))

    assert "was the limit: it was &lt;late&gt;; it left some out." in report.page_of(limited)
    assert "the generator, not the server, was the limit: it was <late>; it left some" in report.text_of(limited)
    assert "was the limit" not in report.page_of(result) + report.text_of(result)


def test_load_that_was_refused_altogether_can_be_shown(result: Result) -> None:
    """No latency, no stages, and still a page."""
    refused = Load.of(
        90, 2.0, "rows-90.jsonl", [row(1.0, status=429, code="overloaded", correct=None, stages_ms={})] * 9
    )

    page = report.page_of(replace(result, loads=[*result.loads, refused]))

    assert "<td>90</td><td>9</td><td>0.0</td><td>0.0 %</td><td></td>" in page
    assert "0.0 %" in report.text_of(replace(result, loads=[refused]))
