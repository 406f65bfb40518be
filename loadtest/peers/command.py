"""This server beside those that one would write instead, over HTTP, with the same pictures and questions.

They are transformers behind FastAPI as tutorials do it, the same padded to 40 tokens, the same behind LitServe, a plain
ONNX export behind FastAPI, and ours in every precision of the artifact. All are started, and all but the one whose turn
it is stay idle. Before anything is timed, all are asked the same questions; a server that gives other answers ends the
run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from loadtest import photo
from loadtest.arguments import add_command, add_output, at_least
from loadtest.peers import agreement, plot, result, turns
from loadtest.peers.agreement import Agreement
from loadtest.peers.servers import PEERS, Server, missing, ours, running, theirs
from loadtest.peers.turns import Timed
from loadtest.stamp import save, stamp


def add_to(commands: Any) -> None:
    """Declare `vilt-bench peers`."""
    parser = add_command(commands, "peers", "compare this server with those that one would write", __doc__, run)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder or hub id that the peers serve")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="artifact exported from it")
    parser.add_argument("--image", type=Path, metavar="FILE", help="JPEG to ask about (default: one of 640x480)")
    parser.add_argument(
        "--rounds", type=at_least(1), default=10, help="rounds, each with one turn per server (default %(default)s)"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="peers to compare with (default: all)"
    )
    add_output(parser, ", with a plot beside it")


def run(options: argparse.Namespace) -> None:
    described = stamp()
    picture = photo.read(options.image)
    chosen, left_out = available([*theirs(options.peers, options.checkpoint), *ours(options.model)])
    agreements, timed, ended = compare(chosen, picture, options.rounds)
    measured = result.summarise(chosen, agreements, timed)
    rounds = next(iter(timed.values())).rounds
    print(result.text_of(measured))
    size = photo.size_of(picture)
    save(
        options.output,
        "peers",
        described,
        image=f"{size} JPEG, {len(picture):,} bytes, sent as multipart",
        questions=photo.QUESTIONS,
        rounds=rounds,
        ended_early=ended,
        requests_of_a_turn=turns.REQUESTS,
        left_out=left_out,
        servers=measured,
    )
    if options.output:
        machine = described["machine"]
        title = f"One {size} JPEG and a question; {machine['cpus']} CPUs, {machine['processor']}"
        plot.draw(measured, title, options.output.with_suffix(".png"))
    if ended:
        sys.exit(f"vilt-bench peers: {ended}; {rounds} of {options.rounds} rounds are complete and reported above")


def compare(
    servers: Sequence[Server], picture: bytes, rounds: int
) -> tuple[dict[str, Agreement], dict[str, Timed], str | None]:
    """Start the servers, compare their answers, and let them take turns; also return why these ended early, if so.

    Raises: ValueError: a server refuses, or gives other answers.
    """
    with running(servers) as urls:
        agreements = check(servers, urls, picture)
        requests = {name: photo.requests(picture, multipart=True) for name in urls}
        return agreements, *uvloop.run(turns.take(urls, requests, rounds))


def available(servers: Sequence[Server]) -> tuple[list[Server], dict[str, str]]:
    """Leave out servers whose packages are not installed; return the others, and why each was left out."""
    left_out = {}
    for server in servers:
        if lacking := missing(server):
            left_out[server.name] = f"{' and '.join(lacking)} not installed"
            print(f"{server.name} is left out: {left_out[server.name]} (pip install '.[export,peers]').")
    return [server for server in servers if server.name not in left_out], left_out


def check(servers: Sequence[Server], urls: Mapping[str, str], picture: bytes) -> dict[str, Agreement]:
    """Ask all servers the same questions, compare them with the first, and print how far they agree.

    Raises: ValueError: a server that should be exact gives other answers, or two questions are answered alike.
    """
    answers = {name: agreement.ask(url, picture) for name, url in urls.items()}
    first, reference = next(iter(answers.items()))
    found = {name: agreement.compare(theirs, reference) for name, theirs in answers.items()}
    spread = agreement.spread(reference)
    print(f"{len(photo.QUESTIONS)} questions; two of them differ by at least {spread:.1e} in score")
    if spread <= agreement.TOLERANCE:
        raise ValueError(
            f"{first} answers two questions alike (within {agreement.TOLERANCE:g} in score), as a server would that"
            " ignores the question; ask about a picture with more different answers (--image), or take another"
            " checkpoint; nothing was timed"
        )
    for name, one in found.items():
        print(
            f"{name:16} the same answer as {first} to {one.same_answer} of {one.asked},"
            f" scores within {one.max_score_difference:.1e}"
        )
    exact = {server.name: found[server.name] for server in servers if server.is_exact}
    if strangers := agreement.strangers(exact):
        raise ValueError(
            f"the answers of {' and '.join(strangers)} are not those of {first}, so they cannot be compared (see the"
            " lines above); nothing was timed"
        )
    return found
