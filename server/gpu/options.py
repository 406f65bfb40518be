"""The options of onnxruntime's GPU providers, and the names under which TensorRT engines are kept.

Sources: onnxruntime.ai, CUDA and TensorRT execution providers.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from server.gpu.buckets import Bucket, Profile

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
NAMES = {"cuda": CUDA, "tensorrt": TENSORRT}
WORKSPACE_BYTES = 4 * 2**30
Options = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that a TensorRT engine depends on; if any of it differs, another engine is built."""

    gpu: str  # name and compute capability
    tensorrt: str
    onnxruntime: str
    graph: str  # its SHA-256
    profile: Profile

    @property
    def name(self) -> str:
        """The name of the engine's files; TensorRT's own check of them covers neither graph nor profile."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"vilt-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def cuda(*, captures: bool = True) -> Options:
    """Return the options of CUDA: it captures graphs unless it only backs TensorRT up.

    fp32 products may be computed in TF32; the gate has counted that.
    """
    return {
        "device_id": "0",
        "enable_cuda_graph": str(int(captures)),
        "use_tf32": "1",
        "arena_extend_strategy": "kSameAsRequested",
    }


def tensorrt(key: EngineKey, cache: Path, patch_values: int) -> Options:
    """Return the options to build or load one engine for one profile; the session may run no other shapes.

    Graphs are not captured: onnxruntime keeps a single one per TensorRT session, whatever id is given, and would
    replay the first shape's for all others.
    """
    ends = {"min": key.profile.smallest, "opt": key.profile.tuned, "max": key.profile.largest}
    return {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_max_workspace_size": str(WORKSPACE_BYTES),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engine_folder(cache, key)),
        "trt_engine_cache_prefix": key.name,
        "trt_timing_cache_enable": "1",  # timings of one profile are reused for the next
        "trt_timing_cache_path": str(cache / "tensorrt"),
        "trt_cuda_graph_enable": "0",
        **{f"trt_profile_{end}_shapes": shapes(bucket, patch_values) for end, bucket in ends.items()},
    }


def engine_folder(cache: Path, key: EngineKey) -> Path:
    """Return the folder of an engine; each has its own."""
    return cache / "tensorrt" / key.name


def shapes(bucket: Bucket, patch_values: int) -> str:
    """Write the shape of every input as the provider reads it: `input_ids:1x15,patches:1x192x3072,...`."""
    found = bucket.shapes(patch_values)
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in found.items())


def graph_id(buckets: list[Bucket], bucket: Bucket, slot: int, slots: int) -> str:
    """Return the id of the CUDA graph of a bucket and a slot: unique, and not 0, which is onnxruntime's own."""
    return str(1 + buckets.index(bucket) * slots + slot)
