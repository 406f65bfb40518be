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

    found = {name: run for name, batch, run in gpu_peers.peers(small.loaded, [2], (12, 16), 5, device) if batch == 2}

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

    def peers(*_: object, **__: object) -> Iterator[tuple[str, int, gpu_peers.Run]]:
        yield "compiled", 1, lambda: torch.nowhere
        yield "eager", 1, lambda: None

    monkeypatch.setattr("sys.argv", ["gpu_peers", "small", "--device", "cpu", "--batch", "1", "--repeat", "2"])
    monkeypatch.setattr(gpu_peers.checkpoint, "load", lambda _: small.loaded)
    monkeypatch.setattr(gpu_peers, "peers", peers)

    gpu_peers.main()

    _, failed, timed = map(json.loads, capsys.readouterr().out.splitlines())
    assert failed["name"] == "compiled"
    assert failed["failed"].startswith("AttributeError: ")
    assert timed["p50_ms"] >= 0


def test_what_is_found_is_told_before_the_next_way_is_tried(
    small: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is cut off keeps it: compiling may take longer than the GPU is there."""
    told: list[list[str]] = []

    def peers(*_: object, **__: object) -> Iterator[tuple[str, int, gpu_peers.Run]]:
        told.append(capsys.readouterr().out.splitlines())
        yield "eager", 1, lambda: None
        told.append(capsys.readouterr().out.splitlines())

    monkeypatch.setattr("sys.argv", ["gpu_peers", "small", "--device", "cpu", "--repeat", "2"])
    monkeypatch.setattr(gpu_peers.checkpoint, "load", lambda _: small.loaded)
    monkeypatch.setattr(gpu_peers, "peers", peers)

    gpu_peers.main()

    (head,), (row,) = told
    assert json.loads(head)["torch"] == torch.__version__
    assert json.loads(row)["name"] == "eager"


def test_ways_that_compile_come_last_and_can_be_left_out(small: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every batch: a cold compiler takes minutes for each."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, _: self)
    monkeypatch.setattr(gpu_peers, "_pixels", lambda *_: {})
    monkeypatch.setattr(gpu_peers, "our_feeds", lambda *_: ())
    device = torch.device("cuda")

    found = [(name, batch) for name, batch, _ in gpu_peers.peers(small.loaded, [1, 8], (12, 16), 5, device)]
    fewer = [name for name, _, _ in gpu_peers.peers(small.loaded, [1], (12, 16), 5, device, ways=["graph", "eager"])]

    assert len(found) == len(set(found)) == 12
    assert all("torch.compile" in name for name, _ in found[-6:])
    assert fewer == ["transformers, eager", "our module, eager", "our module, CUDA graph"]


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
