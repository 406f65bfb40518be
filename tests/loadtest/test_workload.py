"""What is asked: samples of a folder, made into requests that differ."""

import io
import itertools
import json
from collections import Counter
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtest import workload
from loadtest.workload import Sample, answer_of

RECORDS: list[dict[str, Any]] = [
    {"image": "1.png", "question": "what color is it?", "answer": "blue", "kind": "color"},
    {"image": "2.png", "question": "how many are there?", "answer": "2", "kind": "count"},
    {"image": "1.png", "text": "a blue star", "match": True},
    {"image": "2.png", "text": "a red star", "match": False},
    {"image": "2.png", "text": "two red circles", "match": True},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of samples."""
    for number in (1, 2):
        Image.new("RGB", (40, 30), (number, 2, 3)).save(tmp_path / f"{number}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path / "data.jsonl"


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_picture_with_bytes_behind_its_end_has_the_same_pixels(format_name: str) -> None:
    """In every format that the server reads: what makes requests distinct changes no answer."""
    file = io.BytesIO()
    Image.effect_noise((50, 40), 60).convert("RGB").save(file, format_name)
    sample = Sample(kind="vqa", fields=(), images=(("image", "image/x", file.getvalue()),))

    first, second = (sample.request(nonce) for nonce in itertools.islice(workload.nonces(), 2))

    assert first.body != second.body != file.getvalue()
    original = np.asarray(Image.open(file).convert("RGB"))
    assert (np.asarray(Image.open(io.BytesIO(first.body)).convert("RGB")) == original).all()


def test_requests_differ_unless_they_are_to_be_identical(data: Path) -> None:
    """A server joins and remembers identical ones, so they measure its caches."""
    samples = workload.read(data, "vqa")

    distinct = [request.body for request in itertools.islice(workload.stream(samples, "vqa"), 50)]
    again = [request.body for request in itertools.islice(workload.stream(samples, "vqa"), 50)]
    identical = [request.body for request in itertools.islice(workload.stream(samples, "vqa", distinct=False), 50)]

    assert len({*distinct, *again}) == 100
    assert len(set(identical)) == 2


def test_stream_asks_the_same_in_the_same_order_for_the_same_seed(data: Path) -> None:
    """Two servers can be asked alike."""
    samples = workload.read(data, "mix")

    def paths(seed: int) -> list[str]:
        return [request.path for request in itertools.islice(workload.stream(samples, "mix", seed=seed), 100)]

    assert paths(1) == paths(1)
    assert paths(1) != paths(2)


def test_mix_is_mostly_questions(data: Path) -> None:
    """80 % vqa, 15 % itm, 5 % rank."""
    requests = itertools.islice(workload.stream(workload.read(data, "mix"), "mix"), 4000)

    counts = Counter(request.kind for request in requests)

    assert counts["vqa"] == pytest.approx(3200, abs=150)
    assert counts["itm"] == pytest.approx(600, abs=120)
    assert counts["rank"] == pytest.approx(200, abs=75)


def test_question_is_sent_as_a_raw_picture(data: Path) -> None:
    """The question is in the query string, its right answer is known."""
    sample = next(sample for sample in workload.read(data, "vqa") if sample.expected == "2")

    request = sample.request()

    assert request.path == "/v1/vqa?question=how+many+are+there%3F"
    assert (request.content_type, request.body) == ("image/png", (data.parent / "2.png").read_bytes())


def test_rank_is_sent_as_multipart(data: Path) -> None:
    """A text with every picture, or a picture with every text."""
    for sample in workload.read(data, "rank"):
        request = sample.request(b"nonce")
        message = BytesParser().parsebytes(f"Content-Type: {request.content_type}\r\n\r\n".encode() + request.body)
        names = [part.get_param("name", header="content-disposition") for part in message.walk()][1:]

        assert request.path == "/v1/rank"
        assert names in (["query_text", "images", "images"], ["texts", "texts", "texts", "query_image"])
        for part in message.walk():
            if part.get_content_type() == "image/png":
                picture = part.get_payload(decode=True)
                assert isinstance(picture, bytes)
                assert Image.open(io.BytesIO(picture)).size == (40, 30)


def test_ranks_of_the_folder_are_preferred_to_those_made(data: Path) -> None:
    """Their right answer has been verified."""
    with data.open("a") as file:
        file.write(json.dumps({"text": "a blue star", "images": ["2.png", "1.png"], "match": 1}) + "\n")

    (sample,) = workload.read(data, "rank")

    assert sample.expected == "1"


def test_what_is_asked_needs_no_answers(data: Path) -> None:
    """The server says them when it is asked alone; which of them are right nobody knows."""
    records = [{name: record[name] for name in record if name not in ("answer", "match")} for record in RECORDS]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))

    samples = workload.read(data, "mix")

    assert {sample.kind for sample in samples} == {"vqa", "itm", "rank"}
    assert {sample.expected for sample in samples} == {None}


def test_file_of_another_form_is_refused_with_where_the_form_is_told(data: Path) -> None:
    """VQAv2's questions, say, which another command reads with an option that this one has not."""
    data.write_text('{"questions": []}')

    with pytest.raises(ValueError, match=r"line 1: not a question, a match or a rank \(see vilt-bench accuracy --help"):
        workload.read(data, "vqa")


def test_scenario_without_anything_to_ask_is_refused(data: Path) -> None:
    """In a sentence that names what is missing."""
    data.write_text(json.dumps(RECORDS[0]) + "\n")

    with pytest.raises(ValueError, match=r"nothing to ask for itm or rank: choose another scenario"):
        workload.read(data, "mix")


@pytest.mark.parametrize(
    ("kind", "body", "answer"),
    [
        ("vqa", {"answers": [{"answer": "blue", "score": 0.9}, {"answer": "red", "score": 0.1}]}, "blue"),
        ("itm", {"match": True, "score": 0.8}, "match"),
        ("itm", {"match": False, "score": 0.2}, "no match"),
        ("rank", {"results": [{"index": 3}, {"index": 0}]}, "3"),
        ("vqa", {"answers": []}, "not an answer: {'answers': []}"),
        ("vqa", None, "not an answer: None"),
    ],
    ids=["vqa", "match", "no match", "rank", "no answers", "no JSON"],
)
def test_answer_is_read_off_the_body(kind: str, body: Any, answer: str) -> None:
    """What is no answer is never a right one."""
    assert answer_of(kind, body) == answer


def test_server_is_expected_to_answer_under_load_as_it_did_alone(data: Path, fake_server: Any) -> None:
    """The model may be wrong: that is another benchmark's business. How often it was right is told."""
    learned = workload.learn(fake_server.url, workload.read(data, "mix"))

    assert {sample.expected for sample in learned.samples if sample.kind == "vqa"} == {"blue"}
    assert {sample.expected for sample in learned.samples if sample.kind == "rank"} == {"1"}
    assert (learned.right, learned.known) == (3, 5)  # one question, two texts; of ranks nobody knows


def test_server_that_refuses_a_sample_alone_ends_the_measurement(data: Path, fake_server: Any, refused: Any) -> None:
    """A model without that head, say: before a long run, not in the middle of it."""
    fake_server.behave = lambda _: refused

    with pytest.raises(ValueError, match=r"the server refused /v1/vqa: Too late\.$"):
        workload.learn(fake_server.url, workload.read(data, "vqa"))


def test_shipped_samples_have_something_for_every_scenario() -> None:
    """What a fresh clone is measured with."""
    for scenario in workload.SCENARIOS:
        assert workload.read(workload.SAMPLES, scenario)
