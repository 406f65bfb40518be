"""What a GPU makes of the server: the model alone, torch beside it, HTTP in front of it, and which is the limit.

The model is timed by `python -m server.gpu`, which first compares its answers with fp32 on the CPU and fails if they
differ; torch by `python -m export.gpu_peers`. What fails is noted, and the rest goes on. HTTP is a closed loop of
clients on this machine, which take cores from the server: give each its own with --server-cpus.
"""

import argparse
import asyncio
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop

from loadtest import photo
from loadtest.launch import started
from loadtest.openloop import Client
from loadtest.rows import Row
from loadtest.stamp import stamp
from loadtest.workload import Request

PROVIDERS = ("cuda", "tensorrt")
CLIENTS = (1, 16, 64, 256)
READY_WITHIN_S = 3600.0  # TensorRT builds its engines first
PREPARING = ("decode", "preprocess", "tokenize")
PATCHES = 192  # of the picture that is asked about, and of the peers'
Found = dict[str, Any]
Step = Callable[[Found], None]


def add_to(commands: Any) -> None:
    """Declare `vilt-bench gpu`."""
    parser = commands.add_parser(
        "gpu",
        help="an NVIDIA GPU: the model alone, torch beside it, HTTP, and what limits it",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="artifact with fp32 and fp16")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="what it was made of, for torch (default: torch is left out)"
    )
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS), metavar="NAME")
    parser.add_argument("--shapes", type=int, default=1000, help="random ones to compare (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=200, help="timed runs of each shape (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of each number of clients (default %(default)s)")
    parser.add_argument("--server-cpus", metavar="LIST", help="cores of the server, as taskset takes them: 0-15")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="write the result as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    steps: dict[str, Step] = {}
    for name in options.providers:
        steps[f"the model on {name}"] = functools.partial(time_model, options, name)
        steps[f"HTTP on {name}"] = functools.partial(time_http, options, name)
    if options.checkpoint:
        steps["torch"] = functools.partial(time_torch, options.checkpoint)
    begun = {"benchmark": "vilt-bench gpu", **stamp(), "model": {}, "http": {}, "limit": {}, "torch": None, "used": {}}
    found = take(steps, begun, options.output)
    print(*lines(found), sep="\n")
    if found["failed"]:
        sys.exit(f"vilt-bench gpu: {', '.join(found['failed'])} failed; what was found is in {options.output}")


def take(steps: Mapping[str, Step], found: Found, output: Path) -> Found:
    """Take one step after the other, and write what each has found by then: none takes another's result with it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    found["failed"] = {}
    for name, step in steps.items():
        try:
            step(found)
        except (Exception, SystemExit) as error:  # whatever it is, an hour on a GPU is worth more
            traceback.print_exc()
            found["failed"][name] = why(error)
        output.write_text(json.dumps(found, indent=1) + "\n")
    return found


def why(error: BaseException) -> str:
    """Say what an error is, or the first of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def time_model(options: argparse.Namespace, name: str, found: Found) -> None:
    """Time a provider without a server.

    Raises: SystemExit: its answers are not fp32's.
    """
    command = ["server.gpu", str(options.model), "--provider", name, "--shapes", str(options.shapes)]
    found["model"][name] = report_of([*command, "--repeat", str(options.repeat)])


def time_http(options: argparse.Namespace, name: str, found: Found) -> None:
    """Time HTTP in front of a provider with more and more clients, and say what is the limit.

    Raises: SystemExit: there is no server. ExceptionGroup: it refused a request. KeyError: the model was not timed.
    """
    flags = ["--model", str(options.model), "--provider", name, "--precision", "fp16"]
    loops = found["http"][name] = []
    with started(flags, ready_within_s=READY_WITHIN_S) as server:
        cpus = pin(server.process.pid, options.server_cpus)
        for clients in CLIENTS:
            figures = uvloop.run(loop(server.url, clients, options.seconds))
            loops.append({"server_cpus": cpus, **figures})
    best = max(row["images_per_s"] for row in found["model"][name]["runs"] if row["patches"] == PATCHES)
    found["limit"][name] = limit(max(loops, key=lambda one: one["answers_per_s"]), best, cpus)


def time_torch(checkpoint: str, found: Found) -> None:
    """Time torch beside it, and say what share of the GPU's rates each provider reaches.

    Raises: SystemExit: there is no GPU.
    """
    torch = found["torch"] = report_of(["export.gpu_peers", checkpoint])
    for name, one in found["model"].items():
        found["used"][name] = used(one["runs"], torch)


def report_of(module: Sequence[str]) -> dict[str, Any]:
    """Run a module of another package and read the JSON that it prints.

    Raises: SystemExit: it failed; what it said is on standard error.
    """
    done = subprocess.run([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        print(done.stdout, end="")
        sys.exit(f"vilt-bench gpu: python -m {' '.join(module)} failed: the lines above say why")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def pin(process: int, cpus: str | None) -> int:
    """Give a server cores of its own, with all of its threads, and count them."""
    if cpus:
        subprocess.run(["taskset", "--all-tasks", "--cpu-list", "--pid", cpus, str(process)], check=True)  # noqa: S603, S607
    return len(os.sched_getaffinity(process))


async def loop(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Let so many clients ask, each again as soon as it is answered; every picture is a new one.

    Raises: ValueError: the server refused, or failed.
    """
    requests = photo.requests(photo.draw())
    rows: list[Row] = []
    async with Client(url) as client:
        await _ask(client, requests, [], client.now_s() + seconds / 10)  # not counted
        began_s = time.perf_counter()
        until_s = client.now_s() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(_ask(client, requests, rows, until_s))
        taken_s = time.perf_counter() - began_s
    return summarise(rows, clients, taken_s)


async def _ask(client: Client, requests: Iterator[Request], rows: list[Row], until_s: float) -> None:
    while client.now_s() < until_s:
        row = await client.send(next(requests))
        if row.status != httpx.codes.OK:
            raise ValueError(f"the server did not answer: {row.status or ''} {row.code}".strip())
        rows.append(row)


def summarise(rows: Sequence[Row], clients: int, taken_s: float) -> dict[str, Any]:
    """Take the figures of one closed loop."""
    latencies_ms = [row.latency_ms for row in rows]
    p50, p99 = np.quantile(latencies_ms, (0.5, 0.99))
    return {
        "clients": clients,
        "answers": len(rows),
        "answers_per_s": len(rows) / taken_s,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "stages_ms": {stage: statistics.median(row.stages_ms[stage] for row in rows) for stage in rows[0].stages_ms},
    }


def limit(busiest: dict[str, Any], model_per_s: float, cpus: int) -> dict[str, Any]:
    """Name what keeps the server from more: the model at its best, preparing on all cores, or what is left, HTTP."""
    preparing_ms = sum(busiest["stages_ms"][stage] for stage in PREPARING)
    could = {"model and its copies": model_per_s, "decode and preprocess": 1000 * cpus / preparing_ms}
    name, rate = min(could.items(), key=lambda item: item[1])
    reached = busiest["answers_per_s"] / rate
    return {
        "answers_per_s": busiest["answers_per_s"],
        "could_per_s": could,
        "bottleneck": name if reached >= 0.8 else "HTTP and the event loop",  # neither of the others is near its limit
        "share_of_it": reached,
    }


def used(runs: Sequence[dict[str, Any]], torch: dict[str, Any]) -> dict[str, float]:
    """Say what share of the GPU's measured rates the model reaches: of products when full, of memory when alone."""
    full = max((row for row in runs if row["patches"] == PATCHES), key=lambda row: float(row["images_per_s"]))
    alone = next(row for row in runs if row["patches"] == PATCHES and row["batch"] == 1)
    return {
        "of_matmul_rate": full["images_per_s"] * torch["gflop_per_image"] / 1000 / torch["matmul_tflops"],
        "of_memory_bandwidth": torch["weights_gb"] / (alone["p50_ms"] / 1000) / torch["memory_gb_per_s"],
    }


def lines(found: Found) -> Iterator[str]:
    """Say what was found."""
    for name, model in found["model"].items():
        yield f"{name} on {model['gpu']}: answers as fp32 on the CPU: {model['parity']['status']}"
        for row in model["runs"]:
            shape = f"{row['batch']:3} x {row['tokens']} tokens"
            yield f"  {shape}  {row['p50_ms']:8.3f} ms  {row['images_per_s']:8.0f} images/s"
    for name, loops in found["http"].items():
        yield f"HTTP on {name}"
        for row in loops:
            yield (
                f"  {row['clients']:4} clients  p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:7.2f} ms"
                f"  {row['answers_per_s']:7.0f} answers/s"
            )
    for name, one in found["limit"].items():
        yield f"the limit of {name}: {one['bottleneck']}"
    for row in (found["torch"] or {}).get("runs", []):
        took = row["failed"] if "failed" in row else f"{row['p50_ms']:8.3f} ms"
        yield f"{row['name']:42} {row['batch']:3} x {row['tokens']} tokens  {took}"
