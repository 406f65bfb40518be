"""Parameters and multiply-accumulates, counted from an ONNX graph."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnxscript.optimizer

DICTIONARIES = ("words", "positions")  # look-ups, which ViLT's Table 6 excludes: 23.47 million for BERT
WEIGHTED = frozenset({"Attention", "Conv", "Gemm", "MatMul", "GRU"})
SMALL = 1024  # elements; smaller constants may be shapes, so they stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The parameters of a graph."""

    parameters: int
    dictionary_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Macs:
    """The work of a graph; a multiply-accumulate (MAC) is two floating point operations."""

    convolution_macs: int
    product_macs: int  # matrix products, recurrent ones included


def count_parameters(model: onnx.ModelProto) -> Weights:
    """Count learned parameters: no causal mask, no table of anchors, and shared weights only once."""
    found = {"learned": 0, "dictionary": 0}
    gathered = {node.input[0] for node in model.graph.node if node.op_type.startswith("Gather")}
    seen = set()
    for tensor in model.graph.initializer:
        constant = tensor.name.endswith("attention_bias") or (
            tensor.name in gathered and tensor.name.startswith("val_")
        )
        digest = hashlib.sha256(tensor.raw_data).digest()
        repeated = math.prod(tensor.dims) > SMALL and digest in seen
        seen.add(digest)
        if tensor.data_type == onnx.TensorProto.FLOAT and not constant and not repeated:
            found["dictionary" if tensor.name.startswith(DICTIONARIES) else "learned"] += math.prod(tensor.dims)
    return Weights(parameters=found["learned"], dictionary_parameters=found["dictionary"])


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without its weights' values, which shape inference does not need."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if math.prod(tensor.dims) > SMALL:
            for values in ("raw_data", "float_data"):
                tensor.ClearField(values)
    return light


def count_macs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Macs:
    """Count a graph's MACs for inputs of given shapes.

    Raises: ValueError: the shape of a weighted operator's output does not follow from the inputs'.
    """
    fixed = _fix(model, shapes)
    found = _shapes(fixed)
    macs = {"convolution": 0, "product": 0}
    for node in fixed.graph.node:
        if node.op_type in WEIGHTED:
            macs["convolution" if node.op_type == "Conv" else "product"] += _macs(node, found)
    return Macs(convolution_macs=macs["convolution"], product_macs=macs["product"])


def _fix(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Give the inputs their shapes, and fold what is computed from shapes into constants."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.ClearField("value_info")
    for tensor in fixed.graph.input:
        dimensions = tensor.type.tensor_type.shape.dim
        for dimension, size in zip(dimensions, shapes[tensor.name], strict=True):
            dimension.Clear()
            dimension.dim_value = size
    for tensor in fixed.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    return onnxscript.optimizer.optimize(fixed)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Infer every tensor's shape; those that stay unknown are left out."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if all(dimension.HasField("dim_value") for dimension in dimensions):
            found[value.name] = tuple(dimension.dim_value for dimension in dimensions)
    return found


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    missing = [name for name in (*node.input[:2], node.output[0] or node.output[1]) if name not in shapes]
    if missing:
        raise ValueError(f"{node.op_type} {node.name}: the shape of {', '.join(missing)} is not known")
    first, second = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "GRU":
        length, batch, word = first
        directions, gates, _ = second
        return length * batch * directions * gates * (word + gates // 3)
    output = math.prod(shapes[node.output[0]])
    if node.op_type == "Attention":  # scores, and values by their weights: both of one width
        return 2 * output * second[1]
    if node.op_type == "Conv":
        return output * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return output * first[0 if transposed else 1]
    return output * first[-1]
