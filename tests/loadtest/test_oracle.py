"""What counts as a different answer under load."""

import pytest

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
