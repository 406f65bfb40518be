"""How often a served model is right.

--data is one of:

JSON lines, with image paths relative to the file: questions, texts to match with an image, candidates to rank:

    {"image": "1.png", "question": "how many circles are there?", "answer": "2", "kind": "count"}
    {"image": "1.png", "text": "a red circle", "match": true}
    {"text": "a red circle", "images": ["1.png", "2.png"], "match": 0}
    {"image": "1.png", "texts": ["a red circle", "a blue star"], "match": 0}

VQAv2's questions (v2_OpenEnded_mscoco_val2014_questions.json), with --annotations and --images: scored by its official
rule.

COCO's captions (captions_val2017.json), with --images: every image with every caption, recall both ways.
"""

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from loadtest import contract, recall, vqav2
from loadtest.arguments import add_command, add_output, add_server, at_least
from loadtest.contract import accepted
from loadtest.launch import server
from loadtest.stamp import save, stamp

ALL_QUESTIONS = "all questions"
MATCHING = "matching"
IMAGE_FOR_TEXT = "image for text"
TEXT_FOR_IMAGE = "text for image"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: how many were asked, and the sum of their scores of 0 to 1."""

    kind: str
    count: int
    right: float

    @property
    def accuracy(self) -> float:
        return self.right / self.count


def add_to(commands: Any) -> None:
    """Declare `vilt-bench accuracy`."""
    parser = add_command(commands, "accuracy", "how often a model answers, matches and ranks rightly", __doc__, run)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="one of the three forms above")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="VQAv2's annotations of the questions in --data"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: that of --data)")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N questions, or images to rank")
    add_server(parser)
    parser.add_argument("--concurrency", type=at_least(1), default=4, help="requests in flight (default %(default)s)")
    add_output(parser)


def run(options: argparse.Namespace) -> None:
    described = stamp()
    folder = options.images or options.data.parent
    data = load(options.data, options.annotations, options.limit)
    check_images(data, folder)
    with server(options.url, options.model) as url:
        if isinstance(data, recall.Collection):
            rows: Sequence[Any] = asyncio.run(recall.measure(url, folder, data, options.concurrency))
            print(recall.text_of(rows))
        else:
            ask = partial(score, folder=folder)
            rows = table(data, asyncio.run(contract.each(url, data, ask, concurrency=options.concurrency)))
            for row in rows:
                print(f"{row.kind:14} {row.count:7,} {100 * row.accuracy:6.2f} %")
    save(options.output, "accuracy", described, rows=rows)


def load(data: Path, annotations: Path | None, limit: int | None = None) -> list[Record] | recall.Collection:
    """Read the data, or the first `limit` of it, in any of the three forms.

    Raises: ValueError: it is in none of them; OSError: a file cannot be read.
    """
    try:
        whole = json.loads(data.read_text())
    except ValueError:
        whole = None  # more than one line of JSON
    if isinstance(whole, dict) and "questions" in whole:
        if annotations is None:
            raise ValueError(f"{data} holds VQAv2's questions: give --annotations, the file of their answers")
        return vqav2.read(whole, json.loads(annotations.read_text()))[:limit]
    if isinstance(whole, dict) and "annotations" in whole:
        return recall.read(whole).first(limit)
    return read_lines(data, answers_needed=True)[:limit]


def read_lines(data: Path, *, answers_needed: bool = False) -> list[Record]:
    """Read JSON lines; they need answers only if these are to be counted.

    Raises: ValueError: a line is of none of the four kinds, or there is no line; OSError: the file cannot be read.
    """
    records = []
    for number, line in enumerate(data.read_text().split("\n"), start=1):
        if line.strip():
            try:
                records.append(_record(json.loads(line), answers_needed))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = "a question, a match or a rank" + (" with its answer" if answers_needed else "")
                raise ValueError(f"{data}, line {number}: not {what} (see vilt-bench accuracy --help)") from error
    if not records:
        raise ValueError(f"{data} is empty")
    return records


def _record(record: Record, answer_needed: bool) -> Record:
    """Check a record, and turn answers that are numbers into text, as a server gives them.

    Raises: KeyError, TypeError, AttributeError: it is of no known kind.
    """
    kind_of(record)
    asked = [record["image"], record["question"]] if "question" in record else images_of(record)
    lists = [record[name] for name in ("images", "texts") if name in record]
    texts = [*asked, *record.get("texts", ()), record.get("text", "")]
    if not (all(isinstance(one, list) for one in lists) and all(isinstance(one, str) for one in texts)):
        raise TypeError("not a list, or not a text")
    if answer_needed and not is_answered(record):
        raise KeyError("answer")
    if record.get("answer") is not None:
        record["answer"] = str(record["answer"])
    if "answers" in record:
        record["answers"] = [str(answer) for answer in record["answers"]]
    return record


def questions(data: Path) -> list[Record]:
    """Read the questions among JSON lines, answered or not.

    Raises: ValueError: there is none, a line is of no kind, or a picture is missing; OSError: a file cannot be read.
    """
    found = [record for record in read_lines(data) if "question" in record]
    if not found:
        raise ValueError(f"{data} asks no question")
    check_images(found, data.parent)
    return found


def check_images(data: list[Record] | recall.Collection, folder: Path) -> None:
    """Check that every image exists, before a long run begins.

    Raises: ValueError: an image is missing.
    """
    names = data.images if isinstance(data, recall.Collection) else [name for one in data for name in images_of(one)]
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{len(missing):,} images are not in {folder}, the first is {missing[0]}")


def kind_of(record: Record) -> str:
    """Name the row of the table that a record counts in.

    Raises: KeyError, TypeError: it is of no known kind.
    """
    if "question" in record:
        return str(record.get("kind", "question"))
    if "images" in record and "text" in record:
        return IMAGE_FOR_TEXT
    return TEXT_FOR_IMAGE if "texts" in record else MATCHING if record["text"] else ""


def is_answered(record: Record) -> bool:
    """Tell whether a record has its right answer."""
    return any(record.get(name) is not None for name in (("answer", "answers") if "question" in record else ("match",)))


def images_of(record: Record) -> list[str]:
    """List the image files that a record needs.

    Raises: KeyError, TypeError: it names none.
    """
    return list(record["images"]) if "images" in record else [record["image"]]


async def score(client: httpx.AsyncClient, record: Record, *, folder: Path) -> float:
    """Ask about one record and score the answer, 0 to 1."""
    field = "images" if "images" in record else "query_image" if "texts" in record else "image"
    files = [(field, (folder / name).read_bytes()) for name in images_of(record)]
    if "question" in record:
        response = await client.post("/v1/vqa", files=files, data={"question": record["question"], "top_k": "1"})
        answer = str(accepted(response).json()["answers"][0]["answer"])
        return vqav2.accuracy(answer, record["answers"]) if "answers" in record else float(answer == record["answer"])
    if "images" in record or "texts" in record:
        fields = {"texts": record["texts"]} if "texts" in record else {"query_text": record["text"]}
        response = await client.post("/v1/rank", files=files, data={**fields, "top_k": "1"})
        return float(accepted(response).json()["results"][0]["index"] == record["match"])
    response = await client.post("/v1/itm", files=files, data={"text": record["text"]})
    return float(accepted(response).json()["match"] == record["match"])


def table(records: Sequence[Record], scores: Sequence[float]) -> list[Row]:
    """Summarise each kind of question, all questions, matching, and ranking in both directions."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for record, value in zip(records, scores, strict=True):
        by_kind[kind_of(record)].append(value)
    others = [(kind, by_kind.pop(kind)) for kind in (MATCHING, IMAGE_FOR_TEXT, TEXT_FOR_IMAGE) if kind in by_kind]
    rows = [Row(kind, len(found), sum(found)) for kind, found in sorted(by_kind.items())]
    if rows:
        rows.append(Row(ALL_QUESTIONS, sum(row.count for row in rows), sum(row.right for row in rows)))
    return rows + [Row(kind, len(found), sum(found)) for kind, found in others]
