"""What is asked is what the benchmarks say they ask."""

import io
import itertools
from pathlib import Path

import factories
import pytest
from PIL import Image

from export.random_checkpoint import vocabulary
from loadtest import photo


def test_questions_have_6_to_14_words_each_one_token() -> None:
    """One of each length, so that none is dearer in one vocabulary than in another."""
    known = set(vocabulary())

    assert [len(question.split()) for question in photo.QUESTIONS] == list(range(6, 15))
    for question in photo.QUESTIONS:
        assert question.endswith("?")
        assert set(question.removesuffix("?").split()) <= known


def test_requests_put_the_questions_in_turn_and_share_no_picture() -> None:
    """All decode to the same pixels, but no cache knows them again."""
    asked = list(itertools.islice(photo.requests(photo.draw()), 2 * len(photo.QUESTIONS)))

    assert len({request.body for request in asked}) == len(asked)
    assert asked[0].path == asked[len(photo.QUESTIONS)].path
    assert len({request.path for request in asked}) == len(photo.QUESTIONS)
    pictures = {Image.open(io.BytesIO(request.body)).tobytes() for request in asked[:3]}
    assert len(pictures) == 1
    assert photo.size_of(asked[0].body) == "640x480"


def test_requests_as_multipart_carry_picture_and_question() -> None:
    """The form that other servers read."""
    request = next(photo.requests(photo.draw(), multipart=True))

    assert request.path == "/v1/vqa"
    assert request.content_type.startswith("multipart/form-data; boundary=")
    assert b'name="question"\r\n\r\n' + photo.QUESTIONS[0].encode() in request.body
    assert photo.draw() in request.body


def test_picture_of_another_format_is_refused(tmp_path: Path) -> None:
    """The results say JPEG."""
    path = tmp_path / "1.png"
    path.write_bytes(factories.encoded(factories.noise(8, 8), "PNG"))

    with pytest.raises(ValueError, match=r"1\.png is not a JPEG"):
        photo.read(path)
