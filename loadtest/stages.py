"""Where one request's time goes: the server's stages as Server-Timing has them, and what the client waits beside them.

One request at a time, each picture different from all others, so that nothing comes out of a cache. Where the artifact
has several precisions, each has a server of its own and they take turns. The started server keeps few pictures: while
its cache fills, each request is slower by new memory, and that is not what is measured.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from loadtest import contract, partial, photo
from loadtest.arguments import at_least
from loadtest.breakdown import Breakdown, draw
from loadtest.launch import server
from loadtest.openloop import Client
from loadtest.peers.servers import ours
from loadtest.rows import Row
from loadtest.stamp import stamp
from loadtest.workload import Request

TURN = 10  # requests
KEPT_MB = 1  # of pictures: one at full size
LEFT_OUT = 2  # more, at the beginning of a turn: another server's threads may still spin, its weights fill the caches


def add_to(commands: Any) -> None:
    """Declare `vilt-bench stages`."""
    parser = commands.add_parser(
        "stages",
        help="where one request's time goes, stage by stage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="of a running, otherwise idle server (default: start vilt-serve)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="artifact that is served (default: shapes)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="JPEG to ask about (default: one of 640x480)")
    parser.add_argument("--repeat", type=at_least(2), default=100, help="requests to each (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot, a PNG (default: beside --output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    picture = photo.read(options.image)
    with servers(options.url, options.model) as urls:
        models = [contract.model_for(url, "vqa") for url in urls]
        rows, ended = uvloop.run(measure(urls, picture, options.repeat))
    found = [Breakdown.of(model, asked) for model, asked in zip(models, rows, strict=True)]
    print(*found, sep="\n")
    size = photo.size_of(picture)
    if options.output:
        result = {
            "benchmark": "vilt-bench stages",
            **described,
            "image": f"{size} JPEG, {len(picture):,} bytes, sent raw",
            "questions": photo.QUESTIONS,
            "repeat": len(rows[0]),
            "ended_early": ended,
            "servers": [asdict(one) for one in found],
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    plot = options.plot or (options.output and options.output.with_suffix(".png"))
    if plot:
        machine = described["machine"]
        draw(found, f"{found[0].model['name']}, {size} JPEG, {machine['cpus']} CPUs: {machine['processor']}", plot)
    if ended:
        sys.exit(f"vilt-bench stages: {ended}; {len(rows[0])} of {options.repeat} requests to each are told above")


@contextlib.contextmanager
def servers(url: str | None, model: Path | None) -> Iterator[list[str]]:
    """Yield the URLs of a running server, of one for each precision of an artifact, or of one of the shipped one."""
    flags = [one.flags for one in ours(model)] if model and url is None else [()]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server(url, (*some, f"--decoded-cache-mb={KEPT_MB}"))) for some in flags]


async def measure(urls: Sequence[str], picture: bytes, repeat: int) -> tuple[list[list[Row]], str | None]:
    """Ask so many times, the servers in turns.

    Where Ctrl-C or a refusal ends it early, what all have been asked counts; also says why it ended.

    Raises: ValueError: one refuses in its first turn.
    """
    requests = [photo.requests(picture) for _ in urls]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(url)) for url in urls]

        async def take_turns(start: int) -> list[list[Row]]:
            count = LEFT_OUT + min(TURN, repeat - start)
            return [
                [await _send(client, next(some)) for _ in range(count)][LEFT_OUT:]
                for client, some in zip(clients, requests, strict=True)
            ]

        starts = tqdm(range(0, repeat, TURN), desc="turn", disable=None, leave=False)
        complete, ended = await partial.each(starts, take_turns)
    return [list(itertools.chain(*turns)) for turns in zip(*complete, strict=True)], ended


async def _send(client: Client, request: Request) -> Row:
    row = await client.send(request)
    if row.status != 200:
        raise ValueError(f"the server did not answer: {row.status or ''} {row.code}".strip())
    return row
