"""What to ask: pictures with questions, texts and candidates, made into an endless stream of requests.

They are read from JSON lines like those of `vilt-bench accuracy`, with or without answers. If there are no ranks, they
are made from the texts that match. This module knows what a request looks like, but not how or when it is sent.
"""

import argparse
import itertools
import mimetypes
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from tqdm import tqdm

from loadtest import accuracy, credentials
from loadtest.accuracy import Record
from loadtest.contract import TIMEOUT_S, accepted

SAMPLES = Path(__file__).parent / "samples" / "data.jsonl"
SCENARIOS = {"vqa": {"vqa": 1}, "itm": {"itm": 1}, "rank": {"rank": 1}, "mix": {"vqa": 16, "itm": 3, "rank": 1}}
CANDIDATES = 8  # of each rank that is made here
MOST = 100  # samples of each kind
BOUNDARY = "vilt-bench-1d0c7a5e9f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A POST request, and its right answer."""

    kind: str
    path: str
    content_type: str
    body: bytes
    expected: str | None = None  # None: not known
    abandon_after_s: float | None = None  # hang up so long after sending; None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Something to ask many times: vqa and itm as the raw picture, which is fastest to read, ranks as multipart.

    With `multipart`, all are sent that way: other servers read no other form.
    """

    kind: str
    fields: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str, bytes], ...]  # field, media type, file
    expected: str | None = None
    multipart: bool = False

    def request(self, nonce: bytes = b"") -> Request:
        """Make a request, with these bytes appended to every picture, where decoders ignore them."""
        images = [(field, media_type, data + nonce) for field, media_type, data in self.images]
        if self.kind == "rank" or self.multipart:
            path, content_type, body = (
                f"/v1/{self.kind}",
                f"multipart/form-data; boundary={BOUNDARY}",
                _multipart(self, images),
            )
        else:
            ((_, content_type, body),) = images
            path = f"/v1/{self.kind}?{urlencode(self.fields)}"
        return Request(kind=self.kind, path=path, content_type=content_type, body=body, expected=self.expected)


@dataclass(frozen=True, slots=True)
class Learned:
    """Samples with the answers that the server gave alone, and how many of the known answers were right."""

    samples: list[Sample]
    right: int
    known: int


def add_data(parser: argparse.ArgumentParser) -> None:
    text = "what to ask, as JSON lines: see vilt-bench accuracy (default: loadtest/samples)"
    parser.add_argument("--data", type=Path, default=SAMPLES, metavar="FILE", help=text)


def answer_of(kind: str, body: Any) -> str:
    """Read the answer from the JSON of a 200: the best answer, match or no match, the index of the best candidate."""
    try:
        if kind == "vqa":
            return str(body["answers"][0]["answer"])
        if kind == "itm":
            return "match" if body["match"] else "no match"
        return str(body["results"][0]["index"])
    except (KeyError, IndexError, TypeError):
        return f"not an answer: {str(body)[:80]}"


def read(data: Path, scenario: str) -> list[Sample]:
    """Read the samples of a scenario, at most MOST of each kind, as all are asked alone before a run.

    Raises: ValueError: the file has nothing of a kind that the scenario needs; OSError: it or a picture cannot be read.
    """
    records = accuracy.read_lines(data)
    accuracy.check_images(records, data.parent)
    by_kind: dict[str, list[Record]] = {"vqa": [], "itm": [], "rank": []}
    for record in records:
        by_kind["vqa" if "question" in record else "rank" if {"images", "texts"} & record.keys() else "itm"].append(
            record
        )
    by_kind["rank"] = by_kind["rank"] or list(_ranks(by_kind["itm"]))
    kinds = SCENARIOS[scenario]
    missing = [kind for kind in kinds if not by_kind[kind]]
    if missing:
        raise ValueError(f"{data} has nothing to ask for {' or '.join(missing)}: choose another scenario")
    rng = random.Random(0)  # noqa: S311 a choice, not a secret
    chosen = [(kind, rng.sample(by_kind[kind], min(MOST, len(by_kind[kind])))) for kind in kinds]
    return [_sample(kind, record, data.parent) for kind, some in chosen for record in some]


def learn(url: str, samples: Sequence[Sample]) -> Learned:
    """Ask each sample alone; the answer that it gets is the one that is expected under load.

    Raises: ValueError: the server refused one.
    """
    learned, right = [], 0
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=credentials.headers()) as client:
        for sample in tqdm(samples, desc="alone", unit="request", disable=None, leave=False):
            request = sample.request()
            headers = {"Content-Type": request.content_type}
            response = client.post(request.path, content=request.body, headers=headers)
            answer = answer_of(sample.kind, accepted(response).json())
            right += sample.expected == answer
            learned.append(replace(sample, expected=answer))
    return Learned(learned, right, sum(sample.expected is not None for sample in samples))


def stream(samples: Sequence[Sample], scenario: str, *, seed: int = 0, distinct: bool = True) -> Iterator[Request]:
    """Draw requests without end: kinds by the scenario's weights, samples evenly.

    Distinct requests share no picture, so the server neither finds them in its caches nor joins them.
    """
    rng = random.Random(seed)  # noqa: S311 a workload, not a secret
    weights = SCENARIOS[scenario]
    by_kind = {kind: [sample for sample in samples if sample.kind == kind] for kind in weights}
    nonce = nonces() if distinct else itertools.repeat(b"")
    while True:
        (kind,) = rng.choices(list(weights), list(weights.values()))
        yield rng.choice(by_kind[kind]).request(next(nonce))


def nonces() -> Iterator[bytes]:
    """Count up behind random bytes, so that no two runs have a nonce in common."""
    run = os.urandom(8)
    for number in itertools.count():
        yield run + number.to_bytes(8, "big")


def _sample(kind: str, record: Record, folder: Path) -> Sample:
    texts = [str(text) for text in record.get("texts", [])]
    text_field = {"vqa": "question", "itm": "text", "rank": "query_text"}[kind]
    fields = [("texts", text) for text in texts] or [(text_field, str(record["question" if kind == "vqa" else "text"]))]
    image_field = "query_image" if texts else "images" if "images" in record else "image"
    right = record.get("answer" if kind == "vqa" else "match")
    if kind == "itm" and right is not None:
        right = "match" if right else "no match"
    return Sample(
        kind=kind,
        fields=tuple(fields),
        images=tuple(_image(image_field, folder / name) for name in accuracy.images_of(record)),
        expected=None if right is None else str(right),
    )


def _image(field: str, path: Path) -> tuple[str, str, bytes]:
    return field, mimetypes.guess_type(path.name)[0] or "image/png", path.read_bytes()


def _ranks(matches: Sequence[Record]) -> Iterator[Record]:
    """Make ranks, both ways, from pictures and texts that match; other candidates may match too: no answer is known."""
    rng = random.Random(0)  # noqa: S311
    images = sorted({match["image"] for match in matches})
    texts = sorted({match["text"] for match in matches})
    for match in (match for match in matches if match.get("match") is None or match["match"]):
        for many, own, all_of_them in (("images", match["image"], images), ("texts", match["text"], texts)):
            others = [other for other in all_of_them if other != own]
            candidates = [own, *rng.sample(others, min(CANDIDATES - 1, len(others)))]
            query = {"text": match["text"]} if many == "images" else {"image": match["image"]}
            yield {**query, many: rng.sample(candidates, len(candidates)), "match": None}


def _multipart(sample: Sample, images: Sequence[tuple[str, str, bytes]]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in sample.fields
    ]
    for field, media_type, data in images:
        head = f'Content-Disposition: form-data; name="{field}"; filename="image"\r\nContent-Type: {media_type}'
        parts += [f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode(), data, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
