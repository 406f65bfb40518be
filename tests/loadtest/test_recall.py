"""Recall both ways, on collections small enough to count by hand."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest import contract, recall

COCO = {
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 9, "file_name": "bare.jpg"}],
    "annotations": [
        {"image_id": 3, "caption": "a cat\n"},
        {"image_id": 7, "caption": "a dog"},
        {"image_id": 3, "caption": "a sleeping cat"},
    ],
}


def test_collection_of_a_coco_file_ties_captions_to_images() -> None:
    """By id, not by order; an image that nobody captioned is no candidate."""
    data = recall.read(COCO)

    assert data.images == ["b.jpg", "a.jpg"]
    assert data.captions == ["a cat", "a dog", "a sleeping cat"]
    assert data.image_of == [1, 0, 1]


def test_first_images_keep_their_captions_only() -> None:
    """--limit counts images."""
    assert recall.read(COCO).first(1) == recall.Collection(["b.jpg"], ["a dog"], [0])


@pytest.mark.parametrize("broken", [{"annotations": []}, {"annotations": [{"caption": "x"}], "images": []}], ids=str)
def test_file_of_another_form_is_refused(broken: dict[str, object]) -> None:
    """With the name of what is missing."""
    with pytest.raises(ValueError, match="not a caption file in COCO's form"):
        recall.read(broken)


def test_measure_keeps_one_number_of_each_pair(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, tmp_path: Path
) -> None:
    """The answers of 5,000 images and 25,000 captions would not fit into memory."""
    data = recall.Collection(["a.jpg", "b.jpg"], ["a cat", "a dog"], [0, 1])
    for name in data.images:
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(recall, "CAPTIONS_PER_REQUEST", 1)

    def rank(seen: Any) -> Any:
        is_right = (b"a.jpg" in seen.body) == (b"a cat" in seen.body)
        return said(seen, body={"results": [{"index": 0, "logit": 2.0 if is_right else -1.0}]})

    fake_server.behave = rank
    kept: list[Any] = []

    async def each(*arguments: Any, **options: Any) -> None:
        kept.extend(await contract.each(*arguments, **options))

    monkeypatch.setattr(recall, "contract", SimpleNamespace(each=each))

    rows = asyncio.run(recall.measure(fake_server.url, tmp_path, data, concurrency=2))

    assert [row.at[1] for row in rows] == [1.0, 1.0]
    assert kept == [None] * 4


def test_recall_counts_the_best_caption_of_an_image_and_the_image_of_each_caption() -> None:
    """Two images of two captions each: two of the captions find their image, both images find one of their captions."""
    logits = [
        [3.0, -1.0, 2.0, 0.0],  # its own captions are the first two: one comes first
        [2.0, 1.0, 1.0, 4.0],  # its own are the last two: one comes first
    ]

    images, texts = recall.both_ways(logits, [0, 0, 1, 1])

    # Captions 0 and 3 prefer their own image, 1 and 2 the other one.
    assert (images.queries, images.candidates, images.at[1], images.at[5]) == (4, 2, 0.5, 1.0)
    assert (texts.queries, texts.candidates, texts.at[1]) == (2, 4, 1.0)


def test_right_candidate_in_sixth_place_counts_among_ten_only() -> None:
    """R@5 ends at the fifth."""
    image_of = [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    sixth = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, *[-1.0] * 6]
    first = [0.0] * 5 + [-1.0] + [0.0] * 6

    _, texts = recall.both_ways([sixth, first], image_of)

    assert texts.at == {1: 0.5, 5: 0.5, 10: 1.0}


def test_tie_counts_as_a_miss() -> None:
    """A model that says the same of everything knows nothing."""
    images, texts = recall.both_ways([[1.0, 1.0], [1.0, 1.0]], [0, 1])

    assert (images.at[1], texts.at[1]) == (0.0, 0.0)


def test_table_names_directions_queries_and_shares() -> None:
    """What a person reads: both directions, each with its numbers of queries and candidates."""
    rows = recall.both_ways([[2.0, 1.0], [1.0, 2.0]], [0, 1])

    lines = recall.text_of(rows).splitlines()

    assert lines[0].split() == ["queries", "candidates", "R@1", "R@5", "R@10"]
    assert lines[1].split() == ["image", "for", "text", "2", "2", "100.00", "%", "100.00", "%", "100.00", "%"]
