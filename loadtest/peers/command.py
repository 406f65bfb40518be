"""This server beside those that one would write instead, over HTTP, with the same pictures and questions.

All are started and stay idle but the one whose turn it is: transformers behind FastAPI as tutorials do it, the same
padded to 40 tokens, the same behind LitServe, a plain ONNX export behind FastAPI, and ours in every precision of the
artifact. Before anything is timed, all are asked the same: whoever answers something else is no peer, and ends the run.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from loadtest import photo
from loadtest.arguments import at_least
from loadtest.peers import agreement, plot, result, turns
from loadtest.peers.agreement import Agreement
from loadtest.peers.servers import PEERS, Server, missing, ours, running, theirs
from loadtest.peers.turns import Timed
from loadtest.stamp import stamp


def add_to(commands: Any) -> None:
    """Declare `vilt-bench peers`."""
    parser = commands.add_parser(
        "peers",
        help="this server beside transformers behind FastAPI and LitServe, and a plain ONNX export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="what the peers serve: a folder or hub id")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="artifact made of it by vilt-export")
    parser.add_argument("--image", type=Path, metavar="FILE", help="JPEG to ask about (default: one of 640x480)")
    parser.add_argument("--rounds", type=at_least(1), default=10, help="of turns (default %(default)s)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="NAME", help=f"of {', '.join(PEERS)}"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON, and a plot beside it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    picture = photo.read(options.image)
    chosen, left_out = available([*theirs(options.peers, options.checkpoint), *ours(options.model)])
    agreements, timed, ended = compare(chosen, picture, options.rounds)
    measured = result.summarise(chosen, agreements, timed)
    rounds = next(iter(timed.values())).rounds
    print(result.text_of(measured))
    if options.output:
        size = photo.size_of(picture)
        found = {
            "benchmark": "vilt-bench peers",
            **described,
            "image": f"{size} JPEG, {len(picture):,} bytes, sent as multipart",
            "questions": photo.QUESTIONS,
            "rounds": rounds,
            "ended_early": ended,
            "requests_of_a_turn": turns.REQUESTS,
            "left_out": left_out,
            "servers": [asdict(one) for one in measured],
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")
        machine = described["machine"]
        title = f"One {size} JPEG and a question; {machine['cpus']} CPUs, {machine['processor']}"
        plot.draw(measured, title, options.output.with_suffix(".png"))
    if ended:
        sys.exit(f"vilt-bench peers: {ended}; of {options.rounds} rounds {rounds} are complete, and told above")


def compare(
    servers: Sequence[Server], picture: bytes, rounds: int
) -> tuple[dict[str, Agreement], dict[str, Timed], str | None]:
    """Start all, check that they answer the same, let them take turns; where these end early, say why.

    Raises: ValueError: one refuses, or answers something else.
    """
    with running(servers) as urls:
        agreements = check(servers, urls, picture)
        requests = {name: photo.requests(picture, multipart=True) for name in urls}
        return agreements, *uvloop.run(turns.take(urls, requests, rounds))


def available(servers: Sequence[Server]) -> tuple[list[Server], dict[str, str]]:
    """Tell those that can be started from those whose packages are not installed, and say which."""
    left_out = {}
    for server in servers:
        if lacking := missing(server):
            left_out[server.name] = f"{' and '.join(lacking)} not installed"
            print(f"{server.name} is left out: {left_out[server.name]} (pip install '.[export,peers]').")
    return [server for server in servers if server.name not in left_out], left_out


def check(servers: Sequence[Server], urls: Mapping[str, str], picture: bytes) -> dict[str, Agreement]:
    """Ask all the same, compare them with the first, print how far they agree.

    Raises: ValueError: one that is exact answers something else.
    """
    answers = {name: agreement.ask(url, picture) for name, url in urls.items()}
    first, reference = next(iter(answers.items()))
    found = {name: agreement.compare(theirs, reference) for name, theirs in answers.items()}
    print(
        f"{len(photo.QUESTIONS)} questions; two of them differ by at least {agreement.spread(reference):.1e} in score"
    )
    for name, one in found.items():
        print(
            f"{name:16} the same answer as {first} to {one.same_answer} of {one.asked},"
            f" scores within {one.max_score_difference:.1e}"
        )
    exact = {server.name: found[server.name] for server in servers if server.is_exact}
    if strangers := agreement.strangers(exact):
        raise ValueError(f"{' and '.join(strangers)} answers something else than {first}: not a peer, and not timed")
    return found
