"""The kernels for CUDA, compiled for the CPU: what they compute, and that onnxruntime runs them as its operators.

This shows their arithmetic and who holds what. That NVRTC compiles them is shown in tests/gpu_wheel; what needs a GPU
is in tests/gpu.
"""

import ctypes
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import factories
import numpy as np
import onnx
import onnxruntime
import pytest
from emulated import Emulated
from exported import padded_and_spoilt
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export import checkpoint, fp16, graph, to_onnx
from export import kernels as exported_kernels
from models.manifest import CUDA, KERNELS, STANDARD, FileEntry, Precision, read_manifest
from server.gpu.program import graph_name, open_session
from server.settings import SHAPES

CPU = "CPUExecutionProvider"
operators: Any = pytest.importorskip("server.gpu._operators", reason="it was installed without a C compiler")
Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize(
    ("tokens", "queries", "size"),
    [(208, 208, 64), (75, 75, 32), (130, 1, 64), (3, 3, 64), (64, 64, 32), (289, 70, 64)],
)
def test_attention_is_softmaxs_over_keys_that_are_not_masked(
    emulated: Emulated, tokens: int, queries: int, size: int
) -> None:
    """For whole and cut blocks of queries, one and many steps of keys; what is masked may be anything."""
    batch, heads = 2, 2
    products = normal(batch, tokens, 3, heads, size, scale=0.7).astype(np.float16)
    bias, mask = normal(heads, size, seed=1, scale=0.2), np.random.default_rng(2).random((batch, tokens)) < 0.7
    mask[:, 0] = True
    products[:, :, 1:][~mask] = 1000.0
    attended = np.full((batch, queries, heads, size), np.nan, np.float16)

    blocks = -(-queries // 64)
    emulated.launch(f"attend_{size}", (blocks, heads, batch), 128, products, bias, mask, attended, tokens, queries)

    query, key, value = (products[:, :, one].astype(np.float32) for one in range(3))
    query = (query[:, :queries] + bias).astype(np.float16).astype(np.float32)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) + np.where(mask, 0, -np.inf)[:, None, None]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), value)
    np.testing.assert_allclose(attended, expected, rtol=2e-3, atol=2e-3)


def test_attention_counts_with_keys_that_are_all_masked(emulated: Emulated) -> None:
    """First a whole step of them, then all: a row of padding must not become what a product cannot take."""
    products, bias = normal(2, 100, 3, 1, 32).astype(np.float16), np.zeros((1, 32), np.float32)
    mask = np.zeros((2, 100), bool)
    mask[0, 70:] = True
    attended = np.full((2, 100, 1, 32), np.nan, np.float16)

    emulated.launch("attend_32", (2, 1, 2), 128, products, bias, mask, attended, 100, 100)

    query, key, value = products[0, :, :, 0].astype(np.float32).transpose(1, 0, 2)
    weights = np.exp(query @ key[70:].T)
    expected = weights @ value[70:] / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(attended[0, :, 0], expected, rtol=2e-3, atol=2e-3)
    assert np.isfinite(attended[1]).all()


@pytest.mark.parametrize(("rows", "hidden"), [(5, 768), (9, 192), (4, 8), (3, 1024)])
def test_sum_and_its_norm(emulated: Emulated, rows: int, hidden: int) -> None:
    """In fp32 until the norm is rounded, and with a mean far from zero, too."""
    product, stream = normal(rows, hidden).astype(np.float16), normal(rows, hidden, seed=1, scale=5) + 100
    bias, added = normal(hidden, seed=2), np.full((rows, hidden), np.nan, np.float32)
    normed = np.full((rows, hidden), np.nan, np.float16)

    emulated.launch("add_norm", (rows, 1, 1), 128, product, stream, bias, added, normed, hidden, 1e-12)

    exact = product.astype(np.float64) + stream + bias
    expected = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    np.testing.assert_allclose(added, exact, rtol=1e-6)
    np.testing.assert_allclose(normed, expected, rtol=1e-3, atol=1e-4)


def test_gelu_is_exact_to_the_last_bit_of_a_half_or_nearly(emulated: Emulated) -> None:
    """The error function's own, not tanh's, for every half from -10 to 10."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    product = np.resize(every[np.abs(every) <= 10], (8, 4864))
    bias, found = np.zeros(4864, np.float32), np.full_like(product, np.nan)
    eighths = product.size // 8

    emulated.launch("bias_gelu", (-(-eighths // 256), 1, 1), 256, product, bias, found, eighths, 4864)

    share = 0.5 * np.vectorize(math.erfc)(-product.astype(np.float64) / math.sqrt(2))
    expected = (product * share).astype(np.float16)
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=2 * 2**-11, atol=2 * 2**-24)


def test_bias_is_added_before_gelu(emulated: Emulated) -> None:
    """To each row the same."""
    product, bias = normal(6, 96).astype(np.float16), normal(96, seed=1)
    found = np.empty_like(product)

    emulated.launch("bias_gelu", (1, 1, 1), 256, product, bias, found, product.size // 8, 96)

    exact = product.astype(np.float64) + bias
    np.testing.assert_allclose(found, exact * 0.5 * np.vectorize(math.erfc)(-exact / math.sqrt(2)), atol=2e-3)


@pytest.fixture
def launched(emulated: Emulated) -> Iterator[None]:
    """The operators run the kernels, for the CPU's provider."""
    operators.use(CPU, emulated.launch_address, tuple(map(emulated.address, operators.KERNELS)))
    yield
    operators.use("", 0, (0,) * len(operators.KERNELS))


def session(model: Path | bytes, *, registers: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it logs errors that it raises
    if registers:
        options.register_custom_ops_library(operators.__file__)
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=[CPU], enable_fallback=0
    )


@pytest.fixture(scope="module", params=[1, 2], ids=["heads of 64", "heads of 32"])
def small(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[checkpoint.Checkpoint, Path]:
    """A checkpoint, and its graph for the kernels."""
    config = factories.small_config(hidden_size=64, num_attention_heads=request.param)
    folder = tmp_path_factory.mktemp("kernels")
    loaded = checkpoint.load(str(factories.write_checkpoint(folder / "hf", config, factories.redrawn_state(config))))
    model = exported_kernels.fused(fp16.half(graph.build(loaded.config, loaded.state)))
    path = folder / "kernels.onnx"
    to_onnx.write(to_onnx.whole(model, loaded.config), path, functions=exported_kernels.FUNCTIONS)
    return loaded, path


@pytest.mark.usefixtures("launched")
def test_whole_graph_answers_with_kernels_as_with_standard_operators(
    small: tuple[checkpoint.Checkpoint, Path],
) -> None:
    """And nothing that is masked changes an answer, in the middle or at the end."""
    loaded, path = small
    feeds, spoilt = (
        {key: value[:2] for key, value in dataclasses.asdict(one).items()} for one in padded_and_spoilt(loaded)
    )
    ours, standard = open_session(path, [(CPU, {})], Path(operators.__file__)), session(path, registers=False)

    found, same, expected = ours.run(None, feeds), ours.run(None, spoilt), standard.run(None, feeds)

    for one, other, reference in zip(found, same, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, reference, atol=3e-3)
        assert not np.array_equal(one, reference)  # the same kernels would give the same


@pytest.mark.parametrize(
    ("provider", "graphs", "chosen"),
    [
        ("cuda", (CUDA, STANDARD), CUDA),
        ("cuda", (KERNELS, STANDARD), KERNELS),
        ("tensorrt", (CUDA, STANDARD), STANDARD),
        ("tensorrt", (KERNELS, STANDARD), STANDARD),
    ],
)
def test_cuda_runs_the_graph_with_kernels_if_the_artifact_has_one(
    provider: str, graphs: tuple[str, ...], chosen: str
) -> None:
    """And TensorRT the standard one in any case."""
    manifest = read_manifest(SHAPES)
    entries = dict.fromkeys(graphs, FileEntry(file="", sha256="", size_bytes=0))
    half = Precision(graphs=entries, opset=23)

    assert graph_name(dataclasses.replace(manifest, precisions={"fp16": half}), provider) == chosen


def attention(size: int, heads: int = 1, *, bias: int = 0) -> bytes:
    """A model of one attention."""
    node = helper.make_node("Attention", ["p", "b", "m"], ["a"], domain="vilt", heads=heads, queries=2**62)
    inputs = [
        helper.make_tensor_value_info("p", TensorProto.FLOAT16, ["b", "n", 3 * size]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [bias or size]),
        helper.make_tensor_value_info("m", TensorProto.BOOL, ["b", "n"]),
    ]
    output = helper.make_tensor_value_info("a", TensorProto.FLOAT16, ["b", "q", size])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("vilt", 1)]
    one = helper.make_graph([node], "one", inputs, [output])
    return helper.make_model(one, opset_imports=opsets, ir_version=10).SerializeToString()


def asked(size: int) -> dict[str, np.ndarray]:
    return {"p": np.ones((1, 4, 3 * size), np.float16), "b": np.zeros(size, np.float32), "m": np.ones((1, 4), bool)}


@pytest.mark.usefixtures("launched")
def test_sizes_that_no_kernel_has_are_an_error_that_says_so() -> None:
    """The export refuses them first."""
    with pytest.raises(Exception, match=r"vilt\.Attention: heads have to be 32 or 64 wide, not 48"):
        session(attention(48)).run(None, asked(48))
    with pytest.raises(Exception, match=r"vilt\.Attention: heads: 0"):
        session(attention(64, heads=0))
    with pytest.raises(Exception, match=r"the bias or the mask does not fit products of width 192"):
        session(attention(64, bias=32)).run(None, asked(64) | {"b": np.zeros(32, np.float32)})


def test_failed_launch_is_an_error_of_the_run() -> None:
    """With CUDA's number."""
    arguments = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
    launch = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(lambda *_: 700)
    operators.use(CPU, ctypes.cast(launch, ctypes.c_void_p).value, (1, 1, 1, 1))
    try:
        with pytest.raises(Exception, match=r"CUDA cannot launch its kernel: error 700"):
            session(attention(64)).run(None, asked(64))
    finally:
        operators.use("", 0, (0, 0, 0, 0))


def test_library_without_kernels_cannot_be_registered() -> None:
    """Rather than crash at the first run."""
    with pytest.raises(Exception, match="the kernels have not been loaded"):
        session(attention(64))


def test_functions_in_a_graph_are_named_as_the_operators(launched: None, small: tuple[Any, Path]) -> None:
    """A graph may hold no function that the library does not replace."""
    model = onnx.load(small[1])

    assert {one.name for one in model.functions} == {node.op_type for node in model.graph.node if node.domain == "vilt"}
    assert {one.name for one in exported_kernels.FUNCTIONS} == {one.name for one in model.functions}
