"""The server on a GPU: the model alone, torch beside it, HTTP in front of it, and which part is the limit.

The model is timed by `python -m server.gpu`, which first compares its answers with fp32 on the CPU; torch is timed by
`python -m export.gpu_peers`. If a part fails, that is recorded and the others still run. HTTP is measured by a closed
loop of clients on this machine, which take cores from the server unless --server-cpus gives it its own.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from loadtest import closedloop, gpu_chart
from loadtest.arguments import add_command, at_least, positive
from loadtest.launch import started
from loadtest.stamp import save, stamp
from loadtest.summary import or_dash

PROVIDERS = ("cuda", "tensorrt")
CLIENTS = (1, 16, 64, 256)
WAYS = ("eager", "graph", "compile")  # to run torch
READY_WITHIN_S = 3600.0  # TensorRT first builds its engines
TIMED_WITHIN_S = 2 * READY_WITHIN_S  # as above, then thousands of runs on the CPU and the GPU
NEARLY = 0.8  # of its capacity: a part this busy is the limit
PREPARING = ("decode", "preprocess", "tokenize")
CPU_SECONDS = re.compile(r"^process_cpu_seconds_total (\S+)$", re.MULTILINE)  # of all of the server's processes
PATCHES = 192  # of the picture that is sent, here and by the peers
Found = dict[str, Any]
Step = Callable[[Found], None]


def add_to(commands: Any) -> None:
    """Declare `vilt-bench gpu`."""
    parser = add_command(commands, "gpu", "the model on a GPU, torch beside it, HTTP, and the limit", __doc__, run)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="artifact with fp32 and fp16")
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint of the artifact, to time torch as well")
    parser.add_argument(
        "--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS, help="what to measure (default: both)"
    )
    parser.add_argument(
        "--shapes",
        type=at_least(1),
        default=1000,
        help="random shapes to compare with fp32 on the CPU (default %(default)s)",
    )
    parser.add_argument("--repeat", type=at_least(0), default=200, help="timed runs per shape (default %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=15, help="seconds to measure each number of clients (default %(default)s)"
    )
    parser.add_argument("--server-cpus", type=cores, metavar="LIST", help="the server's cores: 0-11,14 (default: all)")
    parser.add_argument(
        "--workers",
        type=at_least(1),
        nargs="+",
        default=[1],
        metavar="N",
        help="the server's --workers; several, to measure each (default: 1)",
    )
    parser.add_argument(
        "--client-processes", type=at_least(1), default=2, help="processes that run the clients (default %(default)s)"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, help="how torch runs the model (default: all three)"
    )
    parser.add_argument(
        "--torch-within-s",
        type=positive,
        default=1200,
        help="seconds after which torch is stopped (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="write the result as JSON, and a chart beside it"
    )


def run(options: argparse.Namespace) -> None:
    steps: dict[str, Step] = {}
    for name in options.providers:
        steps[f"the model on {name}"] = functools.partial(time_model, options, name)
        steps[f"HTTP on {name}"] = functools.partial(time_http, options, name)
    if options.checkpoint:
        steps["torch"] = functools.partial(time_torch, options)
    begun = {**stamp(), "model": {}, "http": {}, "limit": {}, "torch": None, "used": {}}
    found = take(steps, begun, options.output)
    gpu_chart.draw(found, PATCHES, options.output.with_suffix(".png"))
    print(*lines(found), sep="\n")
    if found["failed"]:
        sys.exit(f"vilt-bench gpu: {', '.join(found['failed'])} failed; the rest is in {options.output}")


def take(steps: Mapping[str, Step], found: Found, output: Path) -> Found:
    """Take one step after the other and write the result after each, so that no failure costs another step's result."""
    output.parent.mkdir(parents=True, exist_ok=True)
    found["failed"] = {}
    for name, step in steps.items():
        try:
            step(found)
        except (Exception, SystemExit) as error:  # no error is worth losing an hour on a GPU
            traceback.print_exc()
            found["failed"][name] = why(error)
        save(output, "gpu", found)
    return found


def why(error: BaseException) -> str:
    """Describe an error, or the first of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def time_model(options: argparse.Namespace, name: str, found: Found) -> None:
    """Time a provider without a server; the times are kept even if its answers are not those of fp32.

    Raises: SystemExit: they are not, or the provider does not run.
    """
    said = options.output.with_suffix(f".{name}.json")
    command = ["server.gpu", str(options.model), "--provider", name, "--shapes", str(options.shapes)]
    failure = run_module([*command, "--repeat", str(options.repeat)], said, TIMED_WITHIN_S)
    if text := said.read_text():
        found["model"][name] = json.loads(text)
    if failure:
        sys.exit(failure)


def time_http(options: argparse.Namespace, name: str, found: Found) -> None:
    """Time HTTP in front of a provider with more and more clients, and name the limit.

    Raises: SystemExit: the model or the server did not run. ExceptionGroup: the server refused a request.
    """
    if name not in found["model"]:
        sys.exit("the model did not run alone, so no server was started")
    loops = found["http"][name] = []
    everything = os.sched_getaffinity(0)
    own = options.server_cpus or everything
    for workers in options.workers:
        flags = ["--provider", name, "--precision", "fp16", "--workers", str(workers)]
        with contextlib.ExitStack() as stack:
            with on_cores(own):
                server = stack.enter_context(started(flags, model=options.model, ready_within_s=READY_WITHIN_S))
            stack.enter_context(on_cores(everything - own or everything))
            for clients in CLIENTS:
                before_s = cpu_seconds(server.url)
                figures = closedloop.drive(server.url, clients, options.client_processes, options.seconds)
                each_s = (cpu_seconds(server.url) - before_s) / figures["answers"]  # and warm-up, a tenth at most
                shares = {
                    "server_cpu_ms": 1000 * each_s,
                    "server_cpu_share": each_s * figures["answers_per_s"] / len(own),
                }
                loops.append({"server_cpus": len(own), "workers": workers, **figures, **shares})
    rates = [row["images_per_s"] for row in found["model"][name]["runs"] if row["patches"] == PATCHES]
    if rates:
        found["limit"][name] = limit(loops, max(rates), len(own))


def cpu_seconds(url: str) -> float:
    """Read how much CPU time the server's processes have used.

    Raises: ValueError: it does not say.
    """
    found = CPU_SECONDS.search(httpx.get(f"{url}/metrics").text)
    if not found:
        raise ValueError(f"{url}/metrics has no process_cpu_seconds_total")
    return float(found[1])


def time_torch(options: argparse.Namespace, found: Found) -> None:
    """Time torch, and compute what share of the GPU's rates each provider reaches.

    Raises: SystemExit: there is no GPU, or it took too long; the complete rows are kept.
    """
    said = options.output.with_suffix(".torch.jsonl")
    command = ["export.gpu_peers", options.checkpoint, "--ways", *options.ways]
    failure = run_module(command, said, options.torch_within_s)
    told = [json.loads(line) for line in said.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if told:
        torch = found["torch"] = {**told[0], "runs": told[1:]}
        timed = {name: one["runs"] for name, one in found["model"].items() if one["runs"]}
        found["used"] |= {name: used(runs, torch) for name, runs in timed.items()}
    if failure:
        sys.exit(failure)


def run_module(module: Sequence[str], said: Path, within_s: float) -> str | None:
    """Run a module of another package with its standard output in a file; return how it failed, if it did."""
    name = f"python -m {' '.join(module)}"
    with said.open("w") as file:
        try:
            done = subprocess.run([sys.executable, "-m", *module], stdout=file, check=False, timeout=within_s)  # noqa: S603
        except subprocess.TimeoutExpired:
            return f"{name} was stopped after {within_s:g} s"
    return f"{name} failed: see the lines above" if done.returncode else None


def cores(text: str) -> set[int]:
    """Read a list of cores, such as 0-11,14.

    Raises: ValueError: it is not a list of cores.
    """
    ends = [part.partition("-") for part in text.split(",")]
    return {core for first, _, last in ends for core in range(int(first), int(last or first) + 1)}


@contextlib.contextmanager
def on_cores(own: set[int]) -> Iterator[None]:
    """Keep this thread to some cores; processes that it starts meanwhile stay on them for good.

    Raises: OSError: the machine has none of these cores.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def limit(loops: Sequence[dict[str, Any]], model_per_s: float, cpus: int) -> dict[str, Any]:
    """Name the limit of the server: the model at its best, preparing on all cores, all cores, the clients, or HTTP.

    The time to prepare is taken from one client: with many, decode is mostly the wait for a thread.
    """
    alone, busiest = loops[0], max(loops, key=lambda one: float(one["answers_per_s"]))
    preparing_ms = sum(alone["stages_ms"][stage] for stage in PREPARING)
    could = {"model and its copies": model_per_s, "decode and preprocess": 1000 * cpus / preparing_ms}
    name, rate = min(could.items(), key=lambda item: item[1])
    reached = busiest["answers_per_s"] / rate
    if reached < NEARLY:  # neither of them
        shares = {
            "the server's cores": busiest["server_cpu_share"],
            "the clients of this benchmark": busiest["client_cpu_share"],
        }
        name = next((one for one, share in shares.items() if share >= NEARLY), "HTTP and the event loop")
    return {
        "answers_per_s": busiest["answers_per_s"],
        "could_per_s": could,
        "server_cpu_share": busiest["server_cpu_share"],
        "client_cpu_share": busiest["client_cpu_share"],
        "bottleneck": name,
        "share_of_it": reached,
    }


def used(runs: Sequence[dict[str, Any]], torch: dict[str, Any]) -> dict[str, float]:
    """Compute the share of the GPU's measured rates: of matrix products for a full batch, of memory for one image."""
    full = max((row for row in runs if row["patches"] == PATCHES), key=lambda row: float(row["images_per_s"]))
    alone = next(row for row in runs if row["patches"] == PATCHES and row["batch"] == 1)
    return {
        "of_matmul_rate": full["images_per_s"] * torch["gflop_per_image"] / 1000 / torch["matmul_tflops"],
        "of_memory_bandwidth": torch["weights_gb"] / (alone["graph_p50_ms"] / 1000) / torch["memory_gb_per_s"],
    }


def lines(found: Found) -> Iterator[str]:
    """Format the result for a terminal, line by line."""
    for name, model in found["model"].items():
        yield f"{name} on {model['gpu']}: answers as fp32 on the CPU: {model['parity']['status']}"
        for row in model["runs"]:
            shape = f"{row['batch']:3} x {row['tokens']} tokens"
            yield (
                f"  {shape}  {row['p50_ms']:8.3f} ms, {row['graph_p50_ms']:8.3f} without copies"
                f"  {row['images_per_s']:8.0f} images/s"
            )
    for name, loops in found["http"].items():
        yield f"HTTP on {name}"
        for row in loops:
            yield (
                f"  {row['workers']:2} workers  {row['clients']:4} clients  p50 {row['p50_ms']:7.2f} ms"
                f"  p99 {or_dash(row['p99_ms'], 7, 2)} ms"
                f"  {row['answers_per_s']:7.0f} answers/s"
            )
    for name, one in found["limit"].items():
        yield f"the limit of {name}: {one['bottleneck']}"
    for row in (found["torch"] or {}).get("runs", []):
        took = row["failed"] if "failed" in row else f"{row['p50_ms']:8.3f} ms"
        yield f"{row['name']:42} {row['batch']:3} x {row['tokens']} tokens  {took}"
