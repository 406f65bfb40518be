"""Quantise fp32 graphs to int8: weights with a scale for each output, activations with one found at run time.

Every product with a weight runs on integers: u8 activations, s8 weights, 32-bit sums. Attention, layer norms and
the rest stay fp32. Patches are u8 already, so visual embedding loses only the last bits of its weights.

An activation tensor has one scale, so in a batch a row's answer would depend on the other rows: int8 runs one request
at a time.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

LARGEST = 127  # symmetric: -128 is not used


def quantise(fp32: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Write int8 graphs of the three parts; text embedding has no products and is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {part: folder / path.name for part, path in fp32.items()}
    shutil.copyfile(fp32["text_embedding"], written["text_embedding"])
    onnx.save(with_integer_patches(onnx.load(fp32["visual_embedding"])), written["visual_embedding"])
    quantise_products(onnx.load(fp32["interaction"]), written["interaction"])
    return written


def quantise_products(fp32: ModelProto, int8: Path, *, nodes: Sequence[str] = (), per_channel: bool = True) -> None:
    """Write a graph with its products on integers: those of the named nodes, or every one that has a weight."""
    # Imported here because it adds a folder with another `models` package to the path; ours is loaded by now.
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    with _without_advice():
        quantize_dynamic(
            fp32,  # given a path, it would write beside that file, which may be read-only
            int8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],  # the name that a Gemm has by then
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
        )


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence onnxruntime's advice, logged by the root logger, to do what the exporter has already done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def with_integer_patches(model: ModelProto) -> ModelProto:
    """Replace `float(patches) @ weight` by an integer product: the patches' scale is 1, whatever is in them."""
    (cast,) = [node for node in model.graph.node if node.op_type == "Cast"]
    (product,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == product.input[1]]
    quantised, scales = by_column(numpy_helper.to_array(weight))
    integers = [numpy_helper.from_array(quantised, "weight_s8"), numpy_helper.from_array(scales, "weight_scale")]
    nodes = [
        helper.make_node("MatMulInteger", [cast.input[0], "weight_s8"], ["sums_s32"]),
        helper.make_node("Cast", ["sums_s32"], ["sums"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["sums", "weight_scale"], [product.output[0]]),
    ]
    place = list(model.graph.node).index(product)
    model.graph.node.remove(product)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    model.graph.node.remove(cast)
    model.graph.initializer.remove(weight)
    model.graph.initializer.extend(integers)
    onnx.checker.check_model(model)
    return model


def by_column(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to s8, with a scale for each column.

    Shapes: weight (rows, columns) -> (rows, columns), (columns,)
    """
    scales = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / LARGEST
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)
