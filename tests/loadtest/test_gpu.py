"""The benchmark of a GPU, without one: what it reads, what it concludes, and its clients against a real server."""

import argparse
import json
from pathlib import Path

import pytest
import uvloop

from loadtest import gpu
from loadtest.launch import server

STAGES = {"decode": 2.0, "preprocess": 3.0, "tokenize": 0.1, "inference": 0.6}


def busiest(answers_per_s: float) -> dict[str, object]:
    return {"answers_per_s": answers_per_s, "stages_ms": STAGES}


@pytest.mark.parametrize(
    ("answers_per_s", "model_per_s", "cpus", "bottleneck"),
    [
        (2900.0, 10_000.0, 16, "decode and preprocess"),
        (2900.0, 3000.0, 64, "model and its copies"),
        (1200.0, 10_000.0, 16, "HTTP and the event loop"),
    ],
)
def test_limit_is_what_the_server_is_near_to(
    answers_per_s: float, model_per_s: float, cpus: int, bottleneck: str
) -> None:
    """5.1 ms on 16 cores are 3,137 a second; where neither model nor cores are used up, it is what is between."""
    assert gpu.limit(busiest(answers_per_s), model_per_s, cpus)["bottleneck"] == bottleneck


def test_shares_of_the_gpu_are_of_what_it_was_measured_to_do() -> None:
    """10,000 pictures of 35 GFLOP are 350 TFLOP/s of 700; 0.2 GB in 0.5 ms are 400 GB/s of 4,000."""
    runs = [
        {"batch": 1, "patches": 192, "p50_ms": 0.5, "images_per_s": 2000.0},
        {"batch": 32, "patches": 192, "p50_ms": 3.2, "images_per_s": 10_000.0},
        {"batch": 32, "patches": 144, "p50_ms": 2.2, "images_per_s": 14_000.0},
    ]
    torch = {"gflop_per_image": 35.0, "matmul_tflops": 700.0, "weights_gb": 0.2, "memory_gb_per_s": 4000.0}

    shares = gpu.used(runs, torch)

    assert shares == pytest.approx({"of_matmul_rate": 0.5, "of_memory_bandwidth": 0.1})


def test_module_that_fails_ends_the_run_with_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    """As on a machine without a GPU."""
    with pytest.raises(SystemExit, match=r"python -m server\.gpu .* failed"):
        gpu.report_of(["server.gpu", "nowhere"])

    said = capfd.readouterr().err
    assert "server.gpu: nowhere is not an artifact" in said
    assert "Traceback" not in said


def test_what_fails_takes_nothing_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A provider that does not run, whatever it raises; what was found before it, and by itself, is in the file."""
    output = tmp_path / "runs" / "gpu.json"

    def succeed(found: gpu.Found) -> None:
        found["model"]["cuda"] = {"runs": []}

    def fail(found: gpu.Found) -> None:
        assert "cuda" in json.loads(output.read_text())["model"]
        found["http"]["cuda"] = [{"clients": 1}]
        raise SystemExit("no such provider")

    found = gpu.take({"the model": succeed, "HTTP": fail, "more HTTP": fail}, {"model": {}, "http": {}}, output)

    assert found == json.loads(output.read_text())
    assert found["failed"] == {"HTTP": "SystemExit: no such provider", "more HTTP": "SystemExit: no such provider"}
    assert found["http"] == {"cuda": [{"clients": 1}]}
    assert "no such provider" in capsys.readouterr().err


def test_steps_go_on_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a machine without a GPU: each step fails for itself, and the file says why."""
    options = argparse.Namespace(
        providers=["cuda"], checkpoint="nowhere", model=tmp_path / "nowhere", shapes=1, repeat=1, seconds=1,
        server_cpus=None, output=tmp_path / "gpu.json",
    )  # fmt: skip

    with pytest.raises(SystemExit, match="the model on cuda, HTTP on cuda, torch failed"):
        gpu.run(options)

    assert "export.gpu_peers nowhere failed" in json.loads(options.output.read_text())["failed"]["torch"]
    capsys.readouterr()


def test_failure_of_a_group_is_its_first() -> None:
    """Of clients that run together; a group says only that there are some."""
    group = ExceptionGroup("unhandled errors", [ValueError("the server did not answer: 503"), ValueError("b")])

    assert gpu.why(ExceptionGroup("outer", [group])) == "ValueError: the server did not answer: 503"
    assert gpu.why(KeyError("cuda")) == "KeyError: 'cuda'"


def test_what_was_found_is_said_line_by_line() -> None:
    """Whole, or in part: a provider that was timed and does not serve, a way of torch's that does not compile."""
    row = {"batch": 1, "tokens": 202, "p50_ms": 0.5, "images_per_s": 2000.0}
    model = {"gpu": "a GPU", "parity": {"status": "passed"}, "runs": [row]}
    torch = {"runs": [{"name": "eager", **row}, {"name": "compiled", **row, "failed": "no gcc"}]}
    http = [{"clients": 1, "p50_ms": 4.0, "p99_ms": 5.0, "answers_per_s": 240.0}]
    found = {
        "model": {"cuda": model},
        "http": {"cuda": http},
        "limit": {"cuda": {"bottleneck": "HTTP"}},
        "torch": torch,
    }

    said = "\n".join(gpu.lines(found))

    assert "cuda on a GPU: answers as fp32 on the CPU: passed" in said
    assert "0.500 ms" in said
    assert "240 answers/s" in said
    assert "no gcc" in said
    assert list(gpu.lines({"model": {}, "http": {}, "limit": {}, "torch": None})) == []


@pytest.mark.slow
def test_clients_in_a_closed_loop_are_answered_and_timed() -> None:
    """Against shapes on the CPU."""
    with server(None) as url:
        found = uvloop.run(gpu.loop(url, 4, 1.0))

    assert found["answers"] > 4
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert set(gpu.PREPARING) <= set(found["stages_ms"])
    assert found["answers_per_s"] == pytest.approx(found["answers"] / 1.0, rel=0.5)
