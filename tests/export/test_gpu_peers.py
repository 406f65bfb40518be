"""The peers on a GPU are the same model; what they take cannot be shown without one."""

import json
from collections.abc import Iterator

import pytest
import torch
from exported import Exported

from export import gpu_peers, parity

HALF_PRECISION = 0.05  # of a hidden value of size 1


def test_our_module_with_torchs_attention_is_still_the_model(small: Exported) -> None:
    """Over grids, lengths and padded batches, as the exported graph."""
    module = gpu_peers.our_module(small.loaded)

    found = parity.compare(
        small.loaded, parity.torch_runner(module), parity.torch_runner(small.model), with_batches=True
    )

    assert found["max_logit_difference_to_fp32"] < 0.03


def test_peers_on_a_cpu_are_those_that_need_no_gpu(small: Exported) -> None:
    """Each runs, and transformers' has the weights of the checkpoint."""
    device = torch.device("cpu")

    found = dict(gpu_peers.peers(small.loaded, 2, (12, 16), 5, device))

    assert list(found) == ["transformers, eager", "our module, eager"]
    assert found["transformers, eager"]().shape == (2, small.loaded.config.hidden_size)
    logits = found["our module, eager"]()
    assert [one.shape[0] for one in logits] == [2] * len(small.model.interaction.heads)
    assert torch.isfinite(logits[0]).all()
    weight = "encoder.layer.0.intermediate.dense.weight"
    theirs = gpu_peers.transformers_model(small.loaded).state_dict()[weight]
    assert torch.equal(theirs, small.loaded.state[f"vilt.{weight}"])


def test_way_that_does_not_run_takes_no_other_with_it(
    small: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A compiler that is missing is told of in the place of a time."""

    def peers(*_: object) -> Iterator[tuple[str, gpu_peers.Run]]:
        yield "compiled", lambda: torch.nowhere
        yield "eager", lambda: None

    monkeypatch.setattr("sys.argv", ["gpu_peers", "small", "--device", "cpu", "--batch", "1", "--repeat", "2"])
    monkeypatch.setattr(gpu_peers.checkpoint, "load", lambda _: small.loaded)
    monkeypatch.setattr(gpu_peers, "peers", peers)

    gpu_peers.main()

    failed, timed = json.loads(capsys.readouterr().out)["runs"]
    assert failed["name"] == "compiled"
    assert failed["failed"].startswith("AttributeError: ")
    assert timed["p50_ms"] >= 0


def test_work_of_a_row_is_counted(small: Exported) -> None:
    """Nearly all of it products with the layers' weights: two operations for each weight and token."""
    config = small.loaded.config
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * 96
    layers = 2 * layer * config.num_layers * (5 + 1 + 144) / 1e9

    found = gpu_peers.work(small.loaded, (12, 12), 5)

    assert 0.5 * layers < found["gflop_per_image"] < 4 * layers
    assert found["weights_gb"] > 0


def test_without_a_gpu_the_command_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And times nothing."""
    monkeypatch.setattr("sys.argv", ["gpu_peers", "nowhere"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(SystemExit, match="finds no GPU"):
        gpu_peers.main()

    assert capsys.readouterr().out == ""
