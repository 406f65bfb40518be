"""Retrieval over a collection of captioned images: every image with every caption, recall both ways.

One logit serves both directions, so each image is sent once per batch of captions, and no pair is computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest import contract
from loadtest.contract import accepted

TOP = (1, 5, 10)
CAPTIONS_PER_REQUEST = 50


@dataclass(frozen=True, slots=True)
class Collection:
    """Image files, captions, and the image that each caption belongs to."""

    images: list[str]
    captions: list[str]
    image_of: list[int]

    def first(self, limit: int | None) -> "Collection":
        """Keep the first images and their captions."""
        kept = [index for index, image in enumerate(self.image_of) if limit is None or image < limit]
        return Collection(
            self.images[:limit], [self.captions[index] for index in kept], [self.image_of[index] for index in kept]
        )


@dataclass(frozen=True, slots=True)
class Recall:
    """One direction: the share of queries whose right candidate is among the first 1, 5 and 10."""

    direction: str
    queries: int
    candidates: int
    at: dict[int, float]


def read(file: dict[str, Any]) -> Collection:
    """Read COCO's caption file, without the images that have no caption.

    Raises: ValueError: it is in another form.
    """
    try:
        captions = [(note["image_id"], str(note["caption"]).strip()) for note in file["annotations"]]
        captioned = {image for image, _ in captions}
        files = {image["id"]: str(image["file_name"]) for image in file["images"] if image["id"] in captioned}
        index_of = {image: index for index, image in enumerate(files)}
        return Collection(
            list(files.values()), [caption for _, caption in captions], [index_of[image] for image, _ in captions]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a caption file in COCO's form: no {error}") from error


async def measure(url: str, folder: Path, data: Collection, concurrency: int) -> list[Recall]:
    """Rank every caption for every image and compute recall in both directions.

    Raises: ValueError, httpx.HTTPError: the server refused a request, or failed.
    """

    async def ask(client: httpx.AsyncClient, pairs: tuple[int, int]) -> None:
        image, start = pairs
        files = {"query_image": (folder / data.images[image]).read_bytes()}
        texts = data.captions[start : start + CAPTIONS_PER_REQUEST]
        response = await client.post("/v1/rank", files=files, data={"texts": texts})
        for result in accepted(response).json()["results"]:
            logits[image][start + result["index"]] = result["logit"]

    starts = range(0, len(data.captions), CAPTIONS_PER_REQUEST)
    asked = [(image, start) for image in range(len(data.images)) for start in starts]
    logits = [[0.0] * len(data.captions) for _ in data.images]  # (images, captions)
    await contract.each(url, asked, ask, concurrency=concurrency)
    return both_ways(logits, data.image_of)


def both_ways(logits: Sequence[Sequence[float]], image_of: Sequence[int]) -> list[Recall]:
    """Compute recall from the logits of all pairs: image for caption, and any of its captions for an image.

    Shapes: logits (images, captions), image_of (captions,). A tie counts as a miss.
    """
    text_ranks = [_rank(logits[image], [caption for caption, of in enumerate(image_of) if of == image])
                  for image in range(len(logits))]  # fmt: skip
    image_ranks = [_rank([row[caption] for row in logits], [of]) for caption, of in enumerate(image_of)]
    return [
        Recall("image for text", len(image_ranks), len(logits), _share(image_ranks)),
        Recall("text for image", len(text_ranks), len(image_of), _share(text_ranks)),
    ]


def text_of(rows: Sequence[Recall]) -> str:
    """Format the table."""
    lines = [f"{'':14} {'queries':>8} {'candidates':>11}" + "".join(f"{f'R@{top}':>9}" for top in TOP)]
    for row in rows:
        shares = "".join(f"{100 * row.at[top]:7.2f} %" for top in TOP)
        lines.append(f"{row.direction:14} {row.queries:8,} {row.candidates:11,}{shares}")
    return "\n".join(lines)


def _rank(scores: Sequence[float], right: Sequence[int]) -> int:
    """Count the wrong candidates that score at least as high as the best right one."""
    best, among = max(scores[index] for index in right), set(right)
    return sum(score >= best for index, score in enumerate(scores) if index not in among)


def _share(ranks: Sequence[int]) -> dict[int, float]:
    return {top: sum(rank < top for rank in ranks) / len(ranks) for top in TOP}
