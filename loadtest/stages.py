"""Where one request's time goes: the server's stages from Server-Timing, and what the client waits beside them.

Requests are sent one at a time, each with a different picture so that no cache helps; the server should be idle
otherwise. An artifact with several precisions gets a server for each, and they take turns. A started server gets a
cache of one picture: while a larger cache fills, each request also pays for fresh memory, which is not what is measured
here.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from loadtest import contract, partial, photo
from loadtest.arguments import add_command, add_output, add_server, at_least
from loadtest.breakdown import Breakdown, draw
from loadtest.launch import server, started
from loadtest.openloop import Client
from loadtest.peers.servers import ours
from loadtest.rows import Row
from loadtest.stamp import save, stamp

TURN = 10  # requests
KEPT_MB = 1  # decoded pictures: one at full size
WARM_UP = 2  # requests before each turn: another server's threads may still spin, and its weights fill the CPU caches


def add_to(commands: Any) -> None:
    """Declare `vilt-bench stages`."""
    parser = add_command(commands, "stages", "where one request's time goes, stage by stage", __doc__, run)
    add_server(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="JPEG to ask about (default: one of 640x480)")
    parser.add_argument("--repeat", type=at_least(2), default=100, help="requests to each server (default %(default)s)")
    add_output(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="write the plot here, as PNG (default: beside --output)"
    )


def run(options: argparse.Namespace) -> None:
    described = stamp()
    picture = photo.read(options.image)
    with servers(options.url, options.model) as urls:
        models = [contract.model_for(url, "vqa") for url in urls]
        rows, ended = uvloop.run(measure(urls, picture, options.repeat))
    found = [Breakdown.of(model, asked) for model, asked in zip(models, rows, strict=True)]
    print(*found, sep="\n")
    size = photo.size_of(picture)
    save(
        options.output,
        "stages",
        described,
        image=f"{size} JPEG, {len(picture):,} bytes, sent raw",
        questions=photo.QUESTIONS,
        repeat=len(rows[0]),
        ended_early=ended,
        servers=found,
    )
    plot = options.plot or (options.output and options.output.with_suffix(".png"))
    if plot:
        machine = described["machine"]
        draw(found, f"{found[0].model['name']}, {size} JPEG, {machine['cpus']} CPUs: {machine['processor']}", plot)
    if ended:
        sys.exit(
            f"vilt-bench stages: {ended}; {len(rows[0])} of {options.repeat} requests to each server are reported above"
        )


@contextlib.contextmanager
def servers(url: str | None, model: Path | None) -> Iterator[list[str]]:
    """Yield the URL of a running server, or those of one server for each precision of an artifact."""
    with contextlib.ExitStack() as stack:
        if url:
            yield [stack.enter_context(server(url))]
        else:
            flags = [(*one.flags, f"--decoded-cache-mb={KEPT_MB}") for one in ours(model)]
            yield [stack.enter_context(started(some)).url for some in flags]


async def measure(urls: Sequence[str], picture: bytes, repeat: int) -> tuple[list[list[Row]], str | None]:
    """Send so many requests to each server, the servers in turns.

    If Ctrl-C or a refusal ends it early, return the turns that all servers have had, and why it ended.

    Raises: ValueError: a server refuses in its first turn.
    """
    requests = [photo.requests(picture) for _ in urls]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(url)) for url in urls]

        async def take_turns(start: int) -> list[list[Row]]:
            count = WARM_UP + min(TURN, repeat - start)
            return [
                [await client.answered(next(some)) for _ in range(count)][WARM_UP:]
                for client, some in zip(clients, requests, strict=True)
            ]

        starts = tqdm(range(0, repeat, TURN), desc="turn", disable=None, leave=False)
        complete, ended = await partial.each(starts, take_turns)
    return [list(itertools.chain(*turns)) for turns in zip(*complete, strict=True)], ended
