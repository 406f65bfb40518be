"""How often a served model is right: questions with one answer, texts that match an image or do not.

The data is JSON lines, images relative to the file:

    {"image": "0001.png", "question": "how many circles are there?", "answer": "2", "kind": "count"}
    {"image": "0001.png", "text": "a red circle", "match": true}
"""

import argparse
import asyncio
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from loadtest.launch import server
from loadtest.stamp import stamp

MATCHING = "matching"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: str
    count: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count


def add_to(commands: Any) -> None:
    """Declare `vilt-bench accuracy`."""
    parser = commands.add_parser(
        "accuracy",
        help="how often a model is right, per kind of question",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSON lines, as above")
    parser.add_argument("--url", help="of a running server (default: start vilt-serve for the occasion)")
    parser.add_argument("--model", metavar="DIR", help="artifact that the started server serves (default: shapes)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table as JSON, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    records = [json.loads(line) for line in options.data.read_text().splitlines() if line.strip()]
    flags = ["--model", options.model] if options.model else []
    with server(options.url, flags) as url:
        rights = asyncio.run(ask_all(url, options.data.parent, records, options.concurrency))
    rows = table(records, rights)
    for row in rows:
        print(f"{row.kind:12} {row.count:6} {100 * row.accuracy:6.2f} %")
    if options.output:
        result = {"benchmark": "vilt-bench accuracy", **stamp(), "rows": [asdict(row) for row in rows]}
        options.output.write_text(json.dumps(result, indent=2) + "\n")


async def ask_all(url: str, folder: Path, records: list[dict[str, Any]], concurrency: int) -> list[bool]:
    """Ask about every record; tell of each whether the answer was right.

    Raises: httpx.HTTPStatusError: the server refused one.
    """
    rights = [False] * len(records)
    remaining = iter(range(len(records)))
    bar = tqdm(total=len(records), unit="request", disable=None)

    async def work(client: httpx.AsyncClient) -> None:
        for index in remaining:
            rights[index] = await is_right(client, folder, records[index])
            bar.update()

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(work(client) for _ in range(concurrency)))
    bar.close()
    return rights


async def is_right(client: httpx.AsyncClient, folder: Path, record: dict[str, Any]) -> bool:
    """Ask about one record."""
    files = {"image": (folder / record["image"]).read_bytes()}
    if "question" in record:
        response = await client.post("/v1/vqa", files=files, data={"question": record["question"], "top_k": "1"})
        response.raise_for_status()
        return bool(response.json()["answers"][0]["answer"] == record["answer"])
    response = await client.post("/v1/itm", files=files, data={"text": record["text"]})
    response.raise_for_status()
    return bool(response.json()["match"] == record["match"])


def table(records: list[dict[str, Any]], rights: list[bool]) -> list[Row]:
    """Count per kind of question, over all questions, and over texts to match."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for record, right in zip(records, rights, strict=True):
        by_kind[record.get("kind", "question") if "question" in record else MATCHING].append(right)
    matching = by_kind.pop(MATCHING, [])
    rows = [Row(kind, len(found), sum(found)) for kind, found in sorted(by_kind.items())]
    if rows:
        rows.append(Row("all questions", sum(row.count for row in rows), sum(row.right for row in rows)))
    return rows + ([Row(MATCHING, len(matching), sum(matching))] if matching else [])
