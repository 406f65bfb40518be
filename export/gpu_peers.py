"""Time ViLT on a GPU as torch runs it, for `vilt-bench gpu`: eager, compiled and in a CUDA graph.

Weights, batches and tokens are the same as ours. The models are transformers' own and our module with torch's own
attention. Only ours can be captured: transformers' draws patches at random and looks at the mask from Python.

Each result is printed as a line of JSON as soon as it is there: first what the GPU can do and what a picture takes,
then each way of running each batch. Those that compile come last, because they take minutes.

    python -m export.gpu_peers CHECKPOINT --batch 1 8 32 --patches 12 16 --text 9 --ways eager graph
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViltConfig, ViltModel

from export import checkpoint, fp16
from export.graph import Fused, build

WARM_UP = 10  # runs that are not timed
SQUARE = 8192  # of the product that measures the GPU's rate
COPIED_BYTES = 2**30
WAYS = ("eager", "graph", "compile")

Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.gpu_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="as for vilt-export")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="batch sizes (default 1 8 32)")
    parser.add_argument(
        "--patches",
        type=int,
        nargs=2,
        default=(12, 16),
        metavar=("ROWS", "COLUMNS"),
        help="size of every picture, in patches (default 12 16)",
    )
    parser.add_argument(
        "--text", type=int, default=9, metavar="TOKENS", help="length of every text (default %(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=100, help="timed runs of each (default %(default)s)")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        metavar="WAY",
        help="how torch runs the model: eager, graph (CUDA graph), compile (torch.compile) (default: all)",
    )
    parser.add_argument(
        "--device", default="cuda", help="cpu runs only eager, to check this command (default %(default)s)"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"gpu_peers: torch {torch.__version__} finds no GPU")
    loaded = checkpoint.load(options.checkpoint)
    device, grid = torch.device(options.device), tuple(options.patches)
    told: dict[str, Any] = {"torch": torch.__version__, **work(loaded, grid, options.text)}
    if device.type == "cuda":
        told |= _limits()
    _tell(told)
    tokens = options.text + 1 + grid[0] * grid[1]
    for name, batch, run in peers(loaded, options.batch, grid, options.text, device, ways=options.ways):
        _tell({"name": name, "batch": batch, "tokens": tokens, **_tried(run, options.repeat, device)})


def _tell(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


@torch.inference_mode()
def peers(
    loaded: checkpoint.Checkpoint,
    batches: Collection[int],
    grid: tuple[int, int],
    text: int,
    device: torch.device,
    *,
    ways: Collection[str] = WAYS,
) -> Iterator[tuple[str, int, Run]]:
    """Yield each way to run each batch, one at a time because compiling takes memory; compiled for its shape only."""
    theirs, ours = transformers_model(loaded).to(device).half(), our_module(loaded).to(device)
    for way in (way for way in WAYS if way in ways and (way == "eager" or device.type == "cuda")):
        for batch in batches:
            torch._dynamo.reset()  # or the second batch size would be compiled for any, which is slower
            pixels, feeds = _pixels(batch, grid, text, device), our_feeds(loaded, batch, grid, text, device)
            for name, run in _runs(way, theirs, ours, pixels, feeds):
                yield name, batch, run


def _runs(
    way: str, theirs: nn.Module, ours: nn.Module, pixels: dict[str, Tensor], feeds: tuple[Tensor, ...]
) -> Iterator[tuple[str, Run]]:
    if way == "eager":
        yield "transformers, eager", _without_gradients(lambda: theirs(**pixels).pooler_output)
        yield "our module, eager", _without_gradients(lambda: ours(*feeds))
    elif way == "graph":
        yield "our module, CUDA graph", _captured(lambda: ours(*feeds))
    else:
        compiled_theirs = torch.compile(theirs, dynamic=False)
        yield "transformers, torch.compile", _without_gradients(lambda: compiled_theirs(**pixels).pooler_output)
        compiled = torch.compile(ours, mode="max-autotune-no-cudagraphs", dynamic=False)
        yield "our module, torch.compile", _without_gradients(lambda: compiled(*feeds))
        yield "our module, torch.compile and CUDA graph", _captured(lambda: compiled(*feeds))


@torch.inference_mode()
def work(loaded: checkpoint.Checkpoint, grid: tuple[int, int], text: int) -> dict[str, float]:
    """Count what one row costs: operations, and the weights that must be read."""
    module = our_module(loaded)
    with FlopCounterMode(display=False) as counter:
        module(*our_feeds(loaded, 1, grid, text, torch.device("cpu")))
    held = sum(one.numel() * one.element_size() for one in module.interaction.parameters())
    return {"gflop_per_image": counter.get_total_flops() / 1e9, "weights_gb": held / 1e9}


def transformers_model(loaded: checkpoint.Checkpoint) -> nn.Module:
    """Load transformers' model without a head, which would be a thousandth of the work."""
    model = ViltModel(ViltConfig(**loaded.raw_config))
    state = {name.removeprefix("vilt."): value for name, value in loaded.state.items() if name.startswith("vilt.")}
    model.load_state_dict(state, strict=False)
    return model.eval()


def our_module(loaded: checkpoint.Checkpoint) -> Fused:
    """Build the module of the fp16 graph, with torch's fused attention instead of ONNX's node."""
    model = fp16.half(build(loaded.config, loaded.state))
    model.interaction.bias_dtype = torch.half  # MASKED becomes -inf, which is safe: no row has every key masked
    for layer in model.interaction.layers:
        layer.attend = attend
        layer.key_value.both = layer.key_value.both[0]  # without its cast
    return model


def attend(query: Tensor, key: Tensor, value: Tensor, attention_bias: Tensor, heads: int) -> Tensor:
    """Attend as export.graph.attend does, in half precision and as fast as a user of torch could.

    Shapes: query (B, N or 1, hidden), key and value (B, N, hidden), attention_bias (B, 1, N, N) -> as query
    """
    split = [one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value)]
    mask = attention_bias[:, :, : query.shape[1]]
    return nn.functional.scaled_dot_product_attention(*split, attn_mask=mask, scale=1.0).transpose(1, 2).flatten(2)


def _pixels(batch: int, grid: tuple[int, int], text: int, device: torch.device) -> dict[str, Tensor]:
    """Make a batch for transformers, without padding."""
    height, width = 32 * grid[0], 32 * grid[1]
    return {
        "input_ids": torch.ones(batch, text, dtype=torch.long, device=device),
        "attention_mask": torch.ones(batch, text, dtype=torch.long, device=device),
        "pixel_values": torch.zeros(batch, 3, height, width, dtype=torch.half, device=device),
        "pixel_mask": torch.ones(batch, height, width, dtype=torch.long, device=device),
    }


def our_feeds(
    loaded: checkpoint.Checkpoint, batch: int, grid: tuple[int, int], text: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Make a batch that has no padding."""
    count = grid[0] * grid[1]
    return (
        torch.ones(batch, text, dtype=torch.long, device=device),
        torch.zeros(batch, count, loaded.config.spec.patch_values, dtype=torch.uint8, device=device),
        torch.ones(batch, count, dtype=torch.long, device=device),
        torch.ones(batch, text + 1 + count, dtype=torch.bool, device=device),
    )


def _without_gradients(run: Run) -> Run:
    @torch.inference_mode()
    def quietly() -> Any:
        return run()

    return quietly


def _captured(run: Run) -> Run:
    """Capture a run in a CUDA graph the first time, and replay it from then on."""
    quietly, graphs = _without_gradients(run), []

    def replay() -> None:
        if not graphs:
            graphs.append(_capture(quietly))
        graphs[0].replay()

    return replay


def _capture(run: Run) -> torch.cuda.CUDAGraph:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _tried(run: Run, repeat: int, device: torch.device) -> dict[str, Any]:
    """Time a way, or say why it cannot be timed: one that fails to compile must not cost the others' figures."""
    try:
        return _timed(run, repeat, device)
    except Exception as error:  # compilers raise their own types
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def _timed(run: Run, repeat: int, device: torch.device) -> dict[str, float]:
    """Time single runs, each to its end, and then many without waiting in between."""
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    for _ in range(WARM_UP):
        run()
    wait()
    times_ms = []
    for _ in range(repeat):
        began_s = time.perf_counter()
        run()
        wait()
        times_ms.append(1000 * (time.perf_counter() - began_s))
    began_s = time.perf_counter()
    for _ in range(repeat):
        run()
    wait()
    taken_ms = 1000 * (time.perf_counter() - began_s)
    return {"p50_ms": statistics.median(times_ms), "mean_ms_back_to_back": taken_ms / repeat}


def _nothing() -> None:
    """Wait for a CPU, which has no queue."""


def _limits() -> dict[str, float | str]:
    """Measure the rates of a large fp16 product and of a copy, to compare the model's with."""
    left, right = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=torch.half) for _ in range(2))
    source = torch.empty(COPIED_BYTES, device="cuda", dtype=torch.uint8)
    target, device = torch.empty_like(source), torch.device("cuda")
    product = _timed(lambda: torch.matmul(left, right), 20, device)
    copy = _timed(lambda: target.copy_(source), 20, device)
    return {
        "gpu": torch.cuda.get_device_name(),
        "matmul_tflops": 2 * SQUARE**3 / product["mean_ms_back_to_back"] / 1e9,
        "memory_gb_per_s": 2 * COPIED_BYTES / copy["mean_ms_back_to_back"] / 1e6,
    }


if __name__ == "__main__":
    main()
