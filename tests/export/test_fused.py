"""What both graphs for CUDA must hold, of onnxruntime's operators and of ours: they are still the model.

They run on the CPU here, in fp32 and without a GPU's kernels.
"""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from exported import Exported, padded_and_spoilt

from export import cuda, fp16, kernels, parity, to_onnx
from export.parity import Runner

CLOSE = 0.03  # of a logit, as for the graph of standard operators


@pytest.fixture(scope="module", params=[cuda, kernels], ids=["onnxruntime's", "ours"])
def own(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture(scope="module")
def run(own: ModuleType, small: Exported, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    path: Path = tmp_path_factory.mktemp("fused") / "model.onnx"
    part = to_onnx.whole(own.fused(fp16.half(small.model)), small.loaded.config)
    to_onnx.write(part, path, functions=own.FUNCTIONS)
    return parity.onnx_runner({"model": path})


def test_answers_alone_and_in_batches_are_those_of_fp32(small: Exported, run: Runner) -> None:
    """Over grids and lengths; batches pad texts in the middle of the sequence and pictures at its end."""
    found = parity.compare(small.loaded, run, parity.torch_runner(small.model), with_batches=True)

    assert found["inputs"] > 12
    assert found["max_logit_difference_to_fp32"] < CLOSE


def test_module_and_its_rounded_copy_answer_as_fp32_does(small: Exported, own: ModuleType) -> None:
    """The copy is what the gate judges."""
    model = own.fused(fp16.half(small.model))

    for one in (model, own.rounded(model)):
        found = parity.compare(small.loaded, parity.torch_runner(one), parity.torch_runner(small.model))
        assert 0 < found["max_logit_difference_to_fp32"] < CLOSE


def test_masked_tokens_change_nothing_wherever_they_are(small: Exported, run: Runner) -> None:
    """After the text as after the picture: a mask taken for a length would let one of them in."""
    feeds, spoilt = padded_and_spoilt(small.loaded)

    for head, logits in run(feeds).items():
        np.testing.assert_array_equal(run(spoilt)[head], logits)
