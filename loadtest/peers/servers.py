"""The servers that are compared, each started as a process of its own and driven over HTTP."""

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest.launch import started

PRECISIONS = ("fp32", "int8")  # of ours, on a CPU
READY_WITHIN_S = 600.0  # plain-onnx first exports its graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server to start."""

    name: str
    what: str
    module: str = "server"
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # packages
    is_exact: bool = True  # gives the answers of the checkpoint, up to rounding in fp32


TRANSFORMERS = ("torch", "transformers")
TUTORIAL = Server(
    name="tutorial", what="transformers behind FastAPI", module="export.peers.tutorial", needs=TRANSFORMERS
)
PADDED = replace(TUTORIAL, name="tutorial-padded", what=f"{TUTORIAL.what}, padded to 40 tokens", flags=("--pad",))
LITSERVE = Server(
    name="litserve",
    what="transformers behind LitServe",
    module="export.peers.lit",
    needs=("litserve", *TRANSFORMERS),
)
PLAIN_ONNX = Server(
    name="plain-onnx",
    what="torch.onnx.export behind FastAPI",
    module="export.peers.plain_onnx",
    needs=("onnxruntime", "onnxscript", *TRANSFORMERS),
)
PEERS = {peer.name: peer for peer in (TUTORIAL, PADDED, LITSERVE, PLAIN_ONNX)}


def ours(model: Path | None) -> list[Server]:
    """List our server once for each precision of an artifact that runs on a CPU; without one, the shipped artifact.

    Raises: OSError: there is no manifest; ValueError: it is not one.
    """
    if model is None:
        return [Server(name="ours", what="this server")]
    path = model / "manifest.json"
    try:
        offered = json.loads(path.read_text())["precisions"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest: it lists no precisions") from error
    return [
        Server(
            name=f"ours-{precision}",
            what=f"this server, {precision}",
            flags=("--model", str(model), "--precision", precision),
            is_exact=precision == "fp32",
        )
        for precision in PRECISIONS
        if precision in offered
    ]


def theirs(names: Sequence[str], checkpoint: str) -> list[Server]:
    """Return the peers with these names, serving a checkpoint."""
    chosen = [PEERS[name] for name in dict.fromkeys(names)]
    return [replace(peer, flags=("--checkpoint", checkpoint, *peer.flags)) for peer in chosen]


def missing(server: Server) -> list[str]:
    """List the packages that a server needs and that are not installed."""
    return [package for package in server.needs if importlib.util.find_spec(package) is None]


@contextlib.contextmanager
def running(servers: Sequence[Server]) -> Iterator[dict[str, str]]:
    """Start the servers one after the other and yield their URLs by name.

    Raises: SystemExit: a server does not become ready; the message says why.
    """
    with contextlib.ExitStack() as stack:
        yield {
            server.name: stack.enter_context(
                started(server.flags, module=server.module, ready_within_s=READY_WITHIN_S)
            ).url
            for server in servers
        }
