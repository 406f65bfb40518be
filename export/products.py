"""How much of an inference is matrix products: the whole graphs, and their products alone, timed in turns.

    python -m export.products models/vqa --precision int8 --output docs/benchmarks/products-int8.json

Every product is extracted from the graphs with the tensors that it reads in a run, and computed alone by onnxruntime
and by torch (oneDNN, MKL). The faster of the two shows what the machine can do with these shapes; the rest of an
inference is attention's softmax, layer norms, GELU, quantising and moving data.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from tqdm import tqdm

from export.int8 import by_column
from loadtest.arguments import at_least
from loadtest.stamp import stamp
from loadtest.summary import quartiles
from models.batch import Features, collate
from models.image import ImagePatches
from models.manifest import PARTS, load_artifact
from models.text import TextTokens
from server.engine import session_options

READ = {"MatMul": 2, "Gemm": 2, "MatMulInteger": 2, "Attention": 3}  # inputs that are multiplied
TEXT_TOKENS = 11  # of a question of 8 words
GRID = (12, 16)  # of a picture of 640x480
SIDE = 2048  # of two square matrices, whose product measures the machine's rate
SQUARES = f"two {SIDE:,} x {SIDE:,} matrices"  # "cube" in the results' keys
SETTLED_S = 0.05  # until the previous threads have stopped spinning: OpenMP's go on for milliseconds
KINDS = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.uint8): onnx.TensorProto.UINT8}
Product = tuple[NDArray[Any], NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder written by vilt-export")
    parser.add_argument(
        "--precision", choices=("fp32", "int8"), default="fp32", help="which graphs to time (default %(default)s)"
    )
    add_timing(parser, rounds=30)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args()
    described = stamp()
    torch.set_num_threads(options.threads)
    artifact = load_artifact(options.artifact, options.precision)
    rng = np.random.default_rng(0)
    values = inputs(rng)
    whole = [session(artifact.graphs[part].read_bytes(), options.threads) for part in PARTS]
    products = [found for part in PARTS for found in matrix_products(onnx.load(artifact.graphs[part]), values)]
    square = rng.standard_normal((SIDE, SIDE), np.float32)
    integers = np.abs(square * 20).astype(np.uint8), by_column(square)[0]
    squares = [(square, square) if options.precision == "fp32" else integers]
    timed: dict[str, Callable[[], None]] = {"whole": lambda: run(whole, dict(values))}
    for name, some in (("products", products), ("cube", squares)):
        timed[f"{name}, onnxruntime"] = by_onnxruntime(some, options.threads)
        timed[f"{name}, torch"] = by_torch(some)
    found_ms = measure(timed, options.rounds)
    print(text := describe(found_ms, operations(products)))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {**described, "threads": options.threads, "precision": options.precision}
        result |= {"gflop": operations(products) / 1e9, "products": len(products), "ms": found_ms, "read": text}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def add_timing(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that say how often and on how many threads to time."""
    parser.add_argument(
        "--rounds",
        type=at_least(1),
        default=rounds,
        help="how often each is timed; it is the median that counts (default %(default)s)",
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=os.cpu_count(), help="CPU threads of an inference (default %(default)s)"
    )


def inputs(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Draw what the graphs read for one question."""
    count = GRID[0] * GRID[1]
    patches = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    image = ImagePatches(patches, np.arange(1, count + 1, dtype=np.int64), GRID)
    feeds = collate([Features(image, TextTokens(rng.integers(0, 50, TEXT_TOKENS), truncated=False))])
    return {name: getattr(feeds, name) for name in ("input_ids", "patches", "position_ids", "mask")}


def session(graph: bytes, threads: int, *, as_it_is: bool = False) -> onnxruntime.InferenceSession:
    """Load a graph with the server's options."""
    options = session_options(threads)
    if as_it_is:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(sessions: list[onnxruntime.InferenceSession], values: dict[str, NDArray[Any]]) -> None:
    """Run graphs one after the other, each on what those before it made."""
    for one in sessions:
        names = [tensor.name for tensor in one.get_outputs()]
        wanted = {tensor.name: values[tensor.name] for tensor in one.get_inputs()}
        values.update(zip(names, one.run(names, wanted), strict=True))


def matrix_products(model: ModelProto, values: dict[str, NDArray[Any]]) -> list[Product]:
    """Run a graph, add its outputs to `values` for the next graph, and list the operands of each of its products."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in READ]
    made = {name for node in model.graph.node for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input[: READ[node.op_type]] if name in made)
    own = [output.name for output in model.graph.output]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in read if name not in own)
    one = session(model.SerializeToString(), 1, as_it_is=True)
    wanted = {tensor.name: values[tensor.name] for tensor in one.get_inputs()}
    names = [*own, *(name for name in read if name not in own)]
    found = {**weights, **values, **dict(zip(names, one.run(names, wanted), strict=True))}
    values.update({name: found[name] for name in own})
    return [product for node in nodes for product in _operands(node, found)]


def _operands(node: NodeProto, found: dict[str, NDArray[Any]]) -> list[Product]:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    read = [found[name] for name in node.input[: READ[node.op_type]]]
    if node.op_type == "Attention":
        return attention(*read, heads=attributes["q_num_heads"])
    left, right = read
    return [(left, np.ascontiguousarray(right.T) if attributes.get("transB") else right)]


def attention(
    query: NDArray[np.float32], key: NDArray[np.float32], value: NDArray[np.float32], *, heads: int
) -> list[Product]:
    """Extract attention's two products from its node; nothing is masked in a batch of one.

    Shapes: query (1, N or 1, hidden), key and value (1, N, hidden).
    """
    query, key, value = (
        np.ascontiguousarray(one.reshape(*one.shape[:2], heads, -1).swapaxes(1, 2)) for one in (query, key, value)
    )  # (1, heads, N or 1, hidden / heads)
    keys = np.ascontiguousarray(key.swapaxes(2, 3))
    scores = query @ keys
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return [(query, keys), (weights / weights.sum(axis=-1, keepdims=True), value)]


def operations(products: list[Product]) -> int:
    """Count multiplications and additions."""
    return sum(2 * left.size * right.shape[-1] for left, right in products)


def by_onnxruntime(products: list[Product], threads: int) -> Callable[[], None]:
    """Compute products in one graph; a weight is a constant there, as it is in the whole graph."""
    nodes, reads, makes, constants, feeds = [], [], [], [], {}
    for index, (left, right) in enumerate(products):
        integer = left.dtype == np.uint8
        names = f"left{index}", f"right{index}", f"out{index}"
        nodes.append(helper.make_node("MatMulInteger" if integer else "MatMul", names[:2], names[2:]))
        reads.append(helper.make_tensor_value_info(names[0], KINDS[left.dtype], left.shape))
        feeds[names[0]] = left
        if right.ndim == 2:
            constants.append(numpy_helper.from_array(right, names[1]))
        else:
            reads.append(helper.make_tensor_value_info(names[1], KINDS[right.dtype], right.shape))
            feeds[names[1]] = right
        kind = onnx.TensorProto.INT32 if integer else onnx.TensorProto.FLOAT
        makes.append(helper.make_tensor_value_info(names[2], kind, None))
    graph = helper.make_graph(nodes, "products", reads, makes, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    one = session(model.SerializeToString(), threads)
    binding = one.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for tensor in makes:
        binding.bind_output(tensor.name)
    return lambda: one.run_with_iobinding(binding)


def by_torch(products: list[Product]) -> Callable[[], None]:
    """Compute products with oneDNN or MKL, whichever torch uses; u8 becomes s8, which costs the same."""
    pairs = []
    for left, right in products:
        if left.dtype == np.uint8:
            flat = (left.reshape(-1, left.shape[-1]) // 2).astype(np.int8)
            pairs.append((torch._int_mm, torch.from_numpy(flat), torch.tensor(right)))
        else:
            pairs.append((torch.matmul, torch.tensor(left), torch.tensor(right)))

    def compute() -> None:
        for multiply, left, right in pairs:
            multiply(left, right)

    return compute


def measure(timed: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Time everything in turns.

    Units: milliseconds.
    """
    took: dict[str, list[float]] = {name: [] for name in timed}
    for count in tqdm(range(2 + rounds), desc="round", disable=None, leave=False):
        for name, compute in timed.items():
            time.sleep(SETTLED_S)
            began_s = time.perf_counter()
            compute()
            if count >= 2:  # the first rounds warm up
                took[name].append(1000 * (time.perf_counter() - began_s))
    return {name: dict(zip(("p25", "median", "p75"), quartiles(values), strict=True)) for name, values in took.items()}


def describe(found_ms: dict[str, dict[str, float]], count: int) -> str:
    """Describe the times in words, with ratios of medians."""
    lines = [
        f"{name.replace('cube', SQUARES):39s} {one['median']:8.2f} ms ({one['p25']:.2f} to {one['p75']:.2f})"
        for name, one in found_ms.items()
    ]
    medians = {name: one["median"] for name, one in found_ms.items()}
    best = min(value for name, value in medians.items() if name.startswith("products"))
    rate = 2 * SIDE**3 / min(value for name, value in medians.items() if name.startswith("cube")) / 1e6
    lines.append(f"whole / products: {medians['whole'] / best:.2f}")
    lines.append(f"products at {count / best / 1e6:.0f} GOP/s, {SQUARES} at {rate:.0f}")
    lines.append(f"whole / products at the rate of the square matrices: {medians['whole'] / (count / rate / 1e6):.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
