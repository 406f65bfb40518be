"""The comparison of both ways to decode, on real servers, and what it counts."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from loadtest import decode
from loadtest.__main__ import main
from loadtest.decode import Answer
from loadtest.summary import Spread
from loadtest.workload import SAMPLES


def test_enlarged_picture_has_the_pixels_asked_for_and_shows_the_same() -> None:
    """A JPEG, as a telephone makes one."""
    picture = (SAMPLES.parent / json.loads(SAMPLES.read_text().splitlines()[0])["image"]).read_bytes()

    with Image.open(io.BytesIO(decode.enlarged(picture, 3.0))) as large, Image.open(io.BytesIO(picture)) as small:
        assert large.format == "JPEG"
        assert large.width * large.height == pytest.approx(3e6, rel=0.01)
        assert large.width / large.height == pytest.approx(small.width / small.height, rel=0.01)


def test_agreement_and_accuracy_are_counted_over_the_questions_that_they_are_about() -> None:
    """Accuracy only where the right answer is known."""
    times = dict.fromkeys(decode.STAGES, 1.0)
    found = {
        "exact": [Answer({"a": 0.9, "b": 0.1}, times), Answer({"a": 0.6, "b": 0.4}, times)],
        "scaled": [Answer({"a": 0.8, "b": 0.1}, times), Answer({"a": 0.3, "b": 0.7}, times)],
    }

    result = decode.summarise(found, [{"answer": "b"}, {"answer": "b"}])
    unknown = decode.summarise(found, [{}, {"answer": "a"}])

    assert result["agreement"] == 0.5
    assert result["largest_difference"] == pytest.approx(0.3)
    assert result["accuracy"] == {"exact": 0.0, "scaled": 0.5}
    assert unknown["accuracy"] == {"exact": 1.0, "scaled": 0.0}


def test_one_question_has_quartiles() -> None:
    """Its own times, and no error after it was asked."""
    answer = Answer({"a": 0.9, "b": 0.1}, dict.fromkeys(decode.STAGES, 3.0))

    found = decode.summarise({"exact": [answer], "scaled": [answer]}, [{}])

    assert found["ms"]["exact"]["total"] == Spread(p25=3.0, median=3.0, p75=3.0)


@pytest.mark.slow
def test_command_asks_both_and_finds_scaling_to_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real servers; at 24 megapixels the difference is beyond any noise."""
    output = tmp_path / "decode.json"
    arguments = ["decode", "--count", "4", "--megapixels", "24", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["vilt-bench", *arguments])

    main()

    result = json.loads(output.read_text())
    assert result["questions"] == 4
    assert result["ms"]["scaled"]["decode"]["median"] < result["ms"]["exact"]["decode"]["median"]
    assert result["largest_difference"] > 0  # it does decode otherwise
    assert "same answers" in capsys.readouterr().out


def test_data_without_a_question_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any server is started."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"image": "1.png", "text": "a", "match": true}\n')
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "decode", "--data", str(data)])

    with pytest.raises(SystemExit, match="asks no question"):
        main()
