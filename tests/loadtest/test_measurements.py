"""The benchmarks count and summarise as they say."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from loadtest import accuracy, length
from loadtest.__main__ import main


def test_table_counts_per_kind_overall_matching_and_ranking() -> None:
    """Each kind has a row, questions have a sum, texts to match and both directions of ranking are apart."""
    records = [
        {"image": "1.png", "question": "a", "answer": "x", "kind": "color"},
        {"image": "1.png", "question": "b", "answers": ["x"] * 10, "kind": "color"},
        {"image": "1.png", "question": "c", "answer": "x", "kind": "count"},
        {"image": "1.png", "text": "d", "match": True},
        {"image": "1.png", "texts": ["d", "e"], "match": 0},
        {"text": "d", "images": ["1.png", "2.png"], "match": 1},
    ]

    rows = accuracy.table(records, [1.0, 0.3, 1.0, 1.0, 0.0, 1.0])

    assert [(row.kind, row.count, row.right) for row in rows] == [
        ("color", 2, 1.3),
        ("count", 1, 1),
        ("all questions", 3, 2.3),
        ("matching", 1, 1),
        ("image for text", 1, 1),
        ("text for image", 1, 0),
    ]
    assert rows[2].accuracy == pytest.approx(2.3 / 3)


def test_answer_that_is_a_number_is_read_as_the_server_says_it(tmp_path: Path) -> None:
    """Or it would always count as wrong; of ten annotators', too."""
    data = tmp_path / "data.jsonl"
    question = {"image": "1.png", "question": "how many?"}
    data.write_text(json.dumps({**question, "answer": 2}) + "\n" + json.dumps({**question, "answers": [2, "3"]}))

    found = accuracy.load(data, None)

    assert found == [{**question, "answer": "2"}, {**question, "answers": ["2", "3"]}]
    assert accuracy.read_lines(data) == found  # of decode, too


def test_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """Not at what other programs take for the end of a line, which may be in a text."""
    question = "what\u2028is\x85this?"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": "1.png", "question": question}, ensure_ascii=False) + "\r\n", "utf-8")

    (found,) = accuracy.read_lines(data)

    assert found["question"] == question


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        (
            '{"image": "1.png", "question": "what?"}\n',
            r"line 1: not a question, .* with its answer \(see vilt-bench acc",
        ),
        ('{"image": "1.png", "question": "what?", "answer": null}\n', "line 1: not a question"),
        ('{"image": "1.png", "text": "a"}\n', "line 1: not a question"),
        ('{"image": 5, "question": "what?", "answer": "x"}\n', "line 1: not a question"),
        ('{"images": ["1.png"], "question": "what?", "answer": "x"}\n', "line 1: not a question"),
        ('{"images": ["1.png", 3], "text": "a", "match": 0}\n', "line 1: not a question"),
        ('{"image": "1.png", "texts": "red", "match": 0}\n', "line 1: not a question"),
        ('{"question": "what?", "answer": "x"}\n', "line 1: not a question"),
        ('{"image": "1.png", "question": "what?", "answer": "x"}\nnonsense\n', "line 2: not a question"),
        ('{"questions": []}', "give --annotations"),
        ('{"annotations": [], "info": {}}', "not a caption file"),
    ],
    ids=[
        *("empty", "no answer", "null", "no match", "a number", "two pictures", "a number among pictures", "one text"),
        *("no picture", "no JSON", "questions alone", "annotations alone"),
    ],
)
def test_data_that_cannot_be_measured_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """Before a server is started: what is wrong, and where."""
    (tmp_path / "data").write_text(text)

    with pytest.raises(ValueError, match=sentence):
        accuracy.load(tmp_path / "data", None)


def test_images_that_are_missing_are_counted_before_a_long_run(tmp_path: Path) -> None:
    """A folder forgotten on the command line is the usual reason."""
    (tmp_path / "1.png").touch()
    data = [{"text": "a", "images": ["1.png", "2.png", "3.png"], "match": 0}]

    with pytest.raises(ValueError, match=r"2 images are not in .*, the first is 2.png$"):
        accuracy.check_images(data, tmp_path)


def test_summary_of_a_curve_is_the_samples_quartiles() -> None:
    """A row a length: median and quartiles of its rounds."""
    samples = {3: [1.0, 2.0, 3.0, 4.0, 100.0], 4: [2.0] * 5}

    result = length.summarise({"name": "shapes"}, samples, rounds=5)

    first, second = result["curve"]
    assert (first["text_tokens"], first["median_ms"]) == (3, statistics.median(samples[3]))
    assert (first["p25_ms"], first["p75_ms"]) == (2.0, 4.0)
    assert second == {"text_tokens": 4, "median_ms": 2.0, "p25_ms": 2.0, "p75_ms": 2.0}


def test_curve_is_of_the_model_that_is_asked(
    fake_server: Any, said: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its name, and as many tokens as it reads: the server lists another one first."""
    fake_server.behave = lambda seen: said(seen, body={"timing_ms": {"inference": 2.0}})
    output = tmp_path / "length.json"
    arguments = ["length", "--url", fake_server.url, "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["vilt-bench", *arguments])

    main()

    found = json.loads(output.read_text())
    assert found["model"]["name"] == "<fake>"
    assert [point["text_tokens"] for point in found["curve"]] == [3, 4, 5]
    assert len({seen.body for seen in fake_server.seen}) == len(fake_server.seen)  # or kept logits would be timed
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_curve_of_one_round_is_that_round() -> None:
    """Not an error after all has been measured."""
    (point,) = length.summarise({"name": "shapes"}, {3: [5.0]}, rounds=1)["curve"]

    assert point == {"text_tokens": 3, "median_ms": 5.0, "p25_ms": 5.0, "p75_ms": 5.0}
