"""What counts as a different answer under load."""

import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import __main__ as command
from loadtest import oracle


def test_largest_difference_of_any_score_is_found() -> None:
    """Not only of the best answer."""
    found = oracle.compare([{"a": 0.9, "b": 0.1}], [{"a": 0.9, "b": 0.13}])

    assert found["largest_difference"] == pytest.approx(0.03)
    assert found["different_answers"] == 0


def test_another_best_answer_counts_unless_the_best_two_are_level() -> None:
    """Level scores may swap by a rounding; others may not."""
    swapped = oracle.compare([{"a": 0.9, "b": 0.1}], [{"a": 0.1, "b": 0.9}])
    level = oracle.compare([{"a": 0.5, "b": 0.4995}], [{"a": 0.4995, "b": 0.5}])

    assert swapped["different_answers"] == 1
    assert level["different_answers"] == 0


def test_entries_and_runs_are_read_off_the_metrics_of_all_models() -> None:
    """Sums over models, buckets left out."""
    text = """
vilt_batch_entries_bucket{le="1.0",model="a"} 3.0
vilt_batch_entries_count{model="a"} 4.0
vilt_batch_entries_sum{model="a"} 10.0
vilt_batch_entries_count{model="b"} 1.0
vilt_batch_entries_sum{model="b"} 5.0
"""
    assert oracle.batches(text) == (15, 5)
    assert oracle.batches("") == (0, 0)


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Run the command."""
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "oracle", *flags])
    command.main()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"vilt-bench oracle: .*nothing\.jsonl"),
        ("[]", r"vilt-bench oracle: .*nothing\.jsonl, line 1: not a question"),
        ('{"image": "1.png", "question": "what?"}', "vilt-bench oracle: 1 images are not in .*, the first is 1.png"),
        ('{"image": "1.png", "text": "a", "match": true}', "vilt-bench oracle: .*nothing.jsonl asks no question"),
    ],
    ids=["missing", "another form", "no picture", "no question"],
)
def test_data_that_asks_nothing_ends_the_command_with_a_sentence(
    text: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before any server is started."""
    data = tmp_path / "nothing.jsonl"
    if text is not None:
        data.write_text(text)

    with pytest.raises(SystemExit, match=sentence):
        run(monkeypatch, "--data", str(data))


def test_server_that_keeps_its_answers_was_not_tested(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any
) -> None:
    """It ran nothing the second time, so no answer was given under load."""
    answers = [{"answer": "blue", "score": 0.9}, {"answer": "red", "score": 0.1}]
    fake_server.behave = lambda seen: said(seen, body={"answers": answers})

    with pytest.raises(SystemExit, match="vilt-bench oracle: nothing was tested"):
        run(monkeypatch, "--url", fake_server.url, "--count", "2", "--concurrency", "2")
