"""The benchmark of a GPU, without one: what it reads, what it concludes, and its clients against a real server."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtest import closedloop, gpu

STAGES = {"decode": 2.0, "preprocess": 3.0, "tokenize": 0.1, "inference": 0.6}


def loops(
    answers_per_s: float, client_cpu_share: float = 0.5, server_cpu_share: float = 0.5
) -> list[dict[str, object]]:
    """One client, and so many that most of decode is waiting."""
    waiting = STAGES | {"decode": 700.0}
    return [
        {"answers_per_s": 150.0, "stages_ms": STAGES, "client_cpu_share": 0.1, "server_cpu_share": 0.1},
        {
            "answers_per_s": answers_per_s,
            "stages_ms": waiting,
            "client_cpu_share": client_cpu_share,
            "server_cpu_share": server_cpu_share,
        },
    ]


def asked(output: Path, **changed: object) -> argparse.Namespace:
    """What `vilt-bench gpu` may be asked for."""
    options = {
        "providers": ["cuda"], "checkpoint": "nowhere", "model": output.parent / "nowhere", "shapes": 1, "repeat": 1,
        "seconds": 1, "server_cpus": None, "workers": [1], "client_processes": 1, "ways": ["eager"],
        "torch_within_s": 100, "output": output,
    }  # fmt: skip
    return argparse.Namespace(**(options | changed))


def say(monkeypatch: pytest.MonkeyPatch, text: str, ended: int | None) -> list[list[str]]:
    """Let every module say a text and end with a status, or not end in time; tells what was run."""
    ran: list[list[str]] = []

    def run(command: list[str], *, stdout: object, timeout: float, check: bool) -> SimpleNamespace:
        ran.append(command)
        stdout.write(text)  # type: ignore[attr-defined]
        if ended is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=ended)

    monkeypatch.setattr(subprocess, "run", run)
    return ran


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
    assert gpu.limit(loops(answers_per_s), model_per_s, cpus)["bottleneck"] == bottleneck


def test_limit_is_the_clients_where_they_have_a_core_for_themselves_and_the_server_has_not() -> None:
    """What they cannot ask no server can answer; where the server is used up it is the server all the same."""
    assert gpu.limit(loops(1200.0, 0.95), 10_000.0, 16)["bottleneck"] == "the clients of this benchmark"
    assert gpu.limit(loops(2900.0, 0.95), 10_000.0, 16)["bottleneck"] == "decode and preprocess"


def test_limit_is_the_servers_cores_where_they_are_used_up_by_more_than_preparing() -> None:
    """HTTP takes its part, and virtual cores that share a physical one are slower together."""
    assert gpu.limit(loops(1600.0, server_cpu_share=0.9), 10_000.0, 16)["bottleneck"] == "the server's cores"


def test_cpu_time_is_read_from_the_servers_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all its processes; another server may have none."""
    text = "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 12.5\n"
    monkeypatch.setattr(gpu.httpx, "get", lambda url: SimpleNamespace(text=text if "ours" in url else ""))

    assert gpu.cpu_seconds("http://ours") == 12.5
    with pytest.raises(ValueError, match="no process_cpu_seconds_total"):
        gpu.cpu_seconds("http://theirs")


def test_shares_of_the_gpu_are_of_what_it_was_measured_to_do() -> None:
    """10,000 pictures of 35 GFLOP are 350 TFLOP/s of 700; 0.2 GB in 0.5 ms are 400 GB/s of 4,000."""
    runs = [
        {"batch": 1, "patches": 192, "graph_p50_ms": 0.5, "images_per_s": 2000.0},
        {"batch": 32, "patches": 192, "graph_p50_ms": 3.2, "images_per_s": 10_000.0},
        {"batch": 32, "patches": 144, "graph_p50_ms": 2.2, "images_per_s": 14_000.0},
    ]
    torch = {"gflop_per_image": 35.0, "matmul_tflops": 700.0, "weights_gb": 0.2, "memory_gb_per_s": 4000.0}

    shares = gpu.used(runs, torch)

    assert shares == pytest.approx({"of_matmul_rate": 0.5, "of_memory_bandwidth": 0.1})


def test_module_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As on a machine without a GPU."""
    failure = gpu.run_module(["server.gpu", "nowhere"], tmp_path / "said", 100)

    assert failure == "python -m server.gpu nowhere failed: see the lines above"
    said = capfd.readouterr().err
    assert "server.gpu: nowhere is not an artifact" in said
    assert "Traceback" not in said


def test_times_of_a_provider_whose_answers_are_not_fp32s_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is a failure all the same."""
    report = {"parity": {"status": "failed"}, "runs": [{"batch": 1}]}
    say(monkeypatch, json.dumps(report), ended=1)
    found: gpu.Found = {"model": {}}

    with pytest.raises(SystemExit, match="failed"):
        gpu.time_model(asked(tmp_path / "gpu.json"), "cuda", found)

    assert found["model"] == {"cuda": report}


@pytest.mark.parametrize(("ended", "sentence"), [(None, "was stopped after 100 s"), (1, "failed")])
def test_rows_that_torch_told_before_its_end_are_kept(
    ended: int | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole ones; also in a file of their own, for when all is cut off."""
    ran = say(monkeypatch, '{"torch": "3"}\n{"name": "eager"}\n{"name": "com', ended)
    found: gpu.Found = {"model": {"cuda": {"runs": []}}, "torch": None, "used": {}}

    with pytest.raises(SystemExit, match=sentence):
        gpu.time_torch(asked(tmp_path / "gpu.json"), found)

    assert found["torch"] == {"torch": "3", "runs": [{"name": "eager"}]}
    assert "eager" in (tmp_path / "gpu.torch.jsonl").read_text()
    assert ran == [[sys.executable, "-m", "export.gpu_peers", "nowhere", "--ways", "eager"]]


def test_module_that_does_not_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler may take longer than anybody has."""
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(100)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert gpu.run_module(["endless"], tmp_path / "said", 0.5) == "python -m endless was stopped after 0.5 s"


def test_no_server_is_started_for_a_provider_that_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT would build its engines again, for minutes, to fail again."""
    monkeypatch.setattr(gpu, "started", None)

    with pytest.raises(SystemExit, match="no server was started"):
        gpu.time_http(asked(tmp_path / "gpu.json"), "cuda", {"model": {}, "http": {}})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux keeps processes to cores")
def test_server_and_clients_keep_to_their_own_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start on, with whatever the server starts; and its workers and theirs are told of."""
    everything = os.sched_getaffinity(0)
    own, kept = {min(everything)}, {}

    @contextlib.contextmanager
    def started(flags: list[str], **_: object) -> Iterator[SimpleNamespace]:
        kept["server"] = os.sched_getaffinity(0)
        assert flags[-2] == "--workers"
        yield SimpleNamespace(url="http://nowhere")

    def drive(url: str, clients: int, processes: int, seconds: float) -> dict[str, object]:
        kept["clients"] = os.sched_getaffinity(0)
        used_s.append(used_s[-1] + 2.0)
        return {"clients": clients, "client_processes": processes, "answers": 200, **loops(100.0)[1]}

    used_s = [10.0]
    monkeypatch.setattr(gpu, "cpu_seconds", lambda _: used_s[-1])
    monkeypatch.setattr(gpu, "started", started)
    monkeypatch.setattr(closedloop, "drive", drive)
    runs = [{"patches": gpu.PATCHES, "images_per_s": 1000.0}]
    found: gpu.Found = {"model": {"cuda": {"runs": runs}, "untimed": {"runs": []}}, "http": {}, "limit": {}}
    options = asked(tmp_path / "gpu.json", server_cpus=own, workers=[1, 3], client_processes=2)

    gpu.time_http(options, "cuda", found)
    gpu.time_http(options, "untimed", found)

    assert kept == {"server": own, "clients": everything - own or everything}
    assert os.sched_getaffinity(0) == everything
    rows = found["http"]["cuda"]
    assert [row["workers"] for row in rows] == [1] * len(gpu.CLIENTS) + [3] * len(gpu.CLIENTS)
    assert {row["server_cpus"] for row in rows} == {1}
    assert {(row["server_cpu_ms"], row["server_cpu_share"]) for row in rows} == {(10.0, 1.0)}
    assert set(found["limit"]) == {"cuda"}


def test_cores_are_read_as_lists_and_ranges() -> None:
    """As taskset takes them."""
    assert gpu.cores("0-3,8") == {0, 1, 2, 3, 8}
    with pytest.raises(ValueError, match="invalid literal"):
        gpu.cores("all")


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

    assert {"benchmark": "vilt-bench gpu", **found} == json.loads(output.read_text())
    assert found["failed"] == {"HTTP": "SystemExit: no such provider", "more HTTP": "SystemExit: no such provider"}
    assert found["http"] == {"cuda": [{"clients": 1}]}
    assert "no such provider" in capsys.readouterr().err


def test_steps_go_on_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a machine without a GPU: each step fails for itself, and the file says why."""
    options = asked(tmp_path / "gpu.json")

    with pytest.raises(SystemExit, match="the model on cuda, HTTP on cuda, torch failed"):
        gpu.run(options)

    assert "export.gpu_peers nowhere --ways eager failed" in json.loads(options.output.read_text())["failed"]["torch"]
    capsys.readouterr()


def test_failure_of_a_group_is_its_first() -> None:
    """Of clients that run together; a group says only that there are some."""
    group = ExceptionGroup("unhandled errors", [ValueError("the server did not answer: 503"), ValueError("b")])

    assert gpu.why(ExceptionGroup("outer", [group])) == "ValueError: the server did not answer: 503"
    assert gpu.why(KeyError("cuda")) == "KeyError: 'cuda'"


def test_what_was_found_is_said_line_by_line() -> None:
    """Whole, or in part: a provider that was timed and does not serve, a way of torch's that does not compile."""
    row = {"batch": 1, "tokens": 202, "p50_ms": 0.5, "graph_p50_ms": 0.4, "images_per_s": 2000.0}
    model = {"gpu": "a GPU", "parity": {"status": "passed"}, "runs": [row]}
    torch = {"runs": [{"name": "eager", **row}, {"name": "compiled", **row, "failed": "no gcc"}]}
    http = [{"workers": 1, "clients": 1, "p50_ms": 4.0, "p99_ms": None, "answers_per_s": 240.0}]
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
