"""What onnxruntime is told, and when an engine that was built is another one."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.spec import ViltSpec
from server.gpu import options
from server.gpu.buckets import Bucket, buckets_of, profiles_of

PROFILE, OTHER = profiles_of(ViltSpec(), 32)[2:4]
KEY = options.EngineKey(
    gpu="NVIDIA H200 9.0", tensorrt="101601", onnxruntime="1.31.1", graph="ab" * 32, profile=PROFILE
)


def test_tensorrt_is_told_the_range_of_every_input() -> None:
    """As `name:AxB`, smallest, tuned and largest."""
    told = options.tensorrt(KEY, Path("/cache"), 3072)

    assert told["trt_profile_min_shapes"] == ("input_ids:1x15,patches:1x192x3072,position_ids:1x192,mask:1x208")
    assert told["trt_profile_opt_shapes"] == told["trt_profile_min_shapes"]
    assert told["trt_profile_max_shapes"] == ("input_ids:4x40,patches:4x199x3072,position_ids:4x199,mask:4x240")
    assert told["trt_engine_cache_path"] == f"/cache/tensorrt/{KEY.name}"
    assert told["trt_engine_cache_enable"] == told["trt_timing_cache_enable"] == "1"


def test_tensorrt_captures_no_graph() -> None:
    """onnxruntime has one for a whole session: every later shape would get the first one's answers."""
    assert options.tensorrt(KEY, Path("/cache"), 3072)["trt_cuda_graph_enable"] == "0"
    assert options.cuda(captures=False)["enable_cuda_graph"] == "0"


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "NVIDIA A100 8.0"},
        {"tensorrt": "101500"},
        {"onnxruntime": "1.32.0"},
        {"graph": "cd" * 32},
        {"profile": OTHER},
    ],
    ids=lambda change: next(iter(change)),
)
def test_engine_of_anything_else_is_another(change: dict[str, str]) -> None:
    """None is loaded for what it was not built for."""
    other = replace(KEY, **change)

    assert other.name != KEY.name
    assert options.engine_folder(Path("/cache"), other) != options.engine_folder(Path("/cache"), KEY)
    assert replace(KEY).name == KEY.name


def test_no_two_shapes_or_slots_share_a_graph() -> None:
    """A graph that is replayed for another shape answers wrongly, and nothing checks it; 0 and -1 mean other things."""
    buckets = buckets_of(ViltSpec(), 32)

    numbers = [options.graph_id(buckets, bucket, slot, 2) for bucket in buckets for slot in range(2)]

    assert len(set(numbers)) == len(numbers) == 2 * len(buckets)
    assert min(map(int, numbers)) == 1


def test_cuda_uses_tensor_cores_for_fp32_and_captures_graphs() -> None:
    """The weights of the patches' product are TF32's already; the gate rounds what goes into the others."""
    assert options.cuda()["use_tf32"] == "1"
    assert options.cuda()["enable_cuda_graph"] == "1"


def test_shapes_are_written_for_any_bucket() -> None:
    """The mask spans text, the picture's cls token and patches."""
    assert options.shapes(Bucket(2, 3, 4), 12) == "input_ids:2x3,patches:2x4x12,position_ids:2x4,mask:2x8"
