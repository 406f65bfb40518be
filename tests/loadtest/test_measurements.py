"""The benchmarks count and summarise as they say."""

import statistics

import pytest

from loadtest import accuracy, length


def test_table_counts_per_kind_overall_and_matching() -> None:
    """Each kind has a row, questions have a sum, texts to match are apart."""
    records = [
        {"question": "a", "kind": "color"},
        {"question": "b", "kind": "color"},
        {"question": "c", "kind": "count"},
        {"text": "d", "match": True},
    ]

    rows = accuracy.table(records, [True, False, True, True])

    assert [(row.kind, row.count, row.right) for row in rows] == [
        ("color", 2, 1),
        ("count", 1, 1),
        ("all questions", 3, 2),
        ("matching", 1, 1),
    ]
    assert rows[2].accuracy == pytest.approx(2 / 3)


def test_summary_of_a_curve_is_the_samples_quartiles() -> None:
    """A row a length: median and quartiles of its rounds."""
    samples = {3: [1.0, 2.0, 3.0, 4.0, 100.0], 4: [2.0] * 5}

    result = length.summarise({"name": "shapes"}, samples, rounds=5)

    first, second = result["curve"]
    assert (first["text_tokens"], first["median_ms"]) == (3, statistics.median(samples[3]))
    assert first["p25_ms"] < first["median_ms"] < first["p75_ms"]
    assert second == {"text_tokens": 4, "median_ms": 2.0, "p25_ms": 2.0, "p75_ms": 2.0}
