"""The command vilt-bench as a person meets it: its help."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from loadtest import command, contract, credentials, openloop, trials, workload
from loadtest.__main__ import main
from loadtest.launch import server, started

from .conftest import FakeServer, Said, right

TRIALS = {path.stem for path in Path(trials.__file__).parent.glob("*.py")} - {"__init__", "process", "trial"}


def help_of(*names: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["vilt-bench", *names, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_help_lists_every_benchmark_and_each_has_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of each, and what it is about and takes: argparse reads a % as a format."""
    names = re.findall(r"^    (\w+)\b", help_of(monkeypatch=monkeypatch, capsys=capsys), re.MULTILINE)

    assert len(names) > 20
    for name in names:
        text = help_of(name, monkeypatch=monkeypatch, capsys=capsys)
        assert text.startswith(f"usage: vilt-bench {name} ")
        assert "--output FILE" in text or "--output DIR" in text, name
        assert "Takes about" in text or name not in TRIALS, name


def test_trials_are_all_carried_out_by_make() -> None:
    """Rollout where there is haproxy."""
    makefile = (Path(command.__file__).parents[1] / "Makefile").read_text()
    (line,) = re.findall(r"^TRIALS \?= .*", makefile, re.MULTILINE)

    assert set(re.findall(r"\w+", line)) >= TRIALS


def test_what_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is there with the server alone, too."""

    def lacking() -> None:
        raise ModuleNotFoundError(name="locust")

    monkeypatch.setattr(command, "measure", lacking)

    with pytest.raises(SystemExit, match=r"^vilt-bench needs locust, .* pip install '\.\[cpu,loadtest\]'"):
        main()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command."""
    monkeypatch.setattr("sys.argv", ["vilt-bench", *arguments])
    main()


@pytest.mark.parametrize("name", ["accuracy", "length", "oracle"])
def test_refusal_ends_a_benchmark_with_the_sentence_of_the_server(
    name: str, monkeypatch: pytest.MonkeyPatch, fake_server: FakeServer, refused: Said
) -> None:
    """Not with a traceback, nor with a link to what a 503 is."""
    fake_server.behave = lambda _: refused
    data = [] if name == "length" else ["--data", str(workload.SAMPLES)]

    with pytest.raises(SystemExit, match=rf"^vilt-bench {name}: the server refused /v1/vqa: Too late\.$"):
        run(monkeypatch, name, "--url", fake_server.url, *data)


@pytest.mark.parametrize("name", ["accuracy --data a", "length", "load --output a", "oracle", "stages"])
def test_running_server_and_a_model_to_start_one_with_exclude_each_other(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model would be ignored, and the server's own measured."""
    with pytest.raises(SystemExit):
        run(monkeypatch, *name.split(), "--url", "http://127.0.0.1:9", "--model", "models/vqa")

    assert "argument --model: not allowed with argument --url" in capsys.readouterr().err


def test_server_that_does_not_answer_ends_a_benchmark_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, fake_server: FakeServer
) -> None:
    """A timeout itself may have no words."""
    monkeypatch.setattr(contract, "TIMEOUT_S", 0.05)
    fake_server.behave = lambda seen: Said(right(seen).body, delay_s=0.3)

    with pytest.raises(SystemExit, match=r"^vilt-bench accuracy: ReadTimeout$"):
        run(monkeypatch, "accuracy", "--url", fake_server.url, "--data", str(workload.SAMPLES))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_server_of_this_machine_is_asked_past_a_proxy(
    host: str, monkeypatch: pytest.MonkeyPatch, fake_server: FakeServer
) -> None:
    """It is no server of the proxy's machine; what else is asked directly stays so."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    fake_server.behave = lambda _: Said({"timing_ms": {"inference": 2.0}})

    run(monkeypatch, "length", "--url", fake_server.url.replace("127.0.0.1", host), "--rounds", "1")

    assert fake_server.seen
    assert os.environ["no_proxy"] == "example.com,127.0.0.1,localhost,::1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["load", "retrieval"])
def test_sigterm_ends_the_server_that_was_started(name: str, tmp_path: Path) -> None:
    """Whether the command is in an event loop or not."""
    flags = {
        "load": ["--output", str(tmp_path), "--rate", "20", "--seconds", "300", "--scenario", "vqa"],
        "retrieval": ["--rounds", "1000"],
    }
    with subprocess.Popen([sys.executable, "-m", "loadtest", name, *flags[name]]) as bench:
        try:
            (server_pid,) = within_s(60, lambda: busy_children(bench.pid))
            bench.terminate()
            bench.wait(60)
        finally:
            bench.kill()

    assert bench.returncode == 128 + signal.SIGTERM
    assert not Path(f"/proc/{server_pid}").exists()


def busy_children(pid: int) -> list[int]:
    """List a process's children that have computed for three seconds: a server that has started and is asked."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = {child: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split() for child in children}
    return [int(child) for child, fields in ticks.items() if int(fields[11]) > 3 * os.sysconf("SC_CLK_TCK")]


def within_s(seconds: float, find: Callable[[], list[int]]) -> list[int]:
    """Return what is found, as soon as it is."""
    until_s = time.monotonic() + seconds
    while not (found := find()) and time.monotonic() < until_s:
        time.sleep(0.1)
    return found


def test_key_is_sent_to_the_server_that_is_measured(monkeypatch: pytest.MonkeyPatch, fake_server: FakeServer) -> None:
    """The first of several; a URL may be given as it is said."""
    monkeypatch.setenv("VILT_API_KEY", "first,second")
    requests = workload.stream(workload.read(workload.SAMPLES, "vqa"), "vqa")

    with server(fake_server.url.removeprefix("http://") + "/") as url:
        workload.learn(url, workload.read(workload.SAMPLES, "vqa")[:1])
        asyncio.run(openloop.run(url, requests, [0.0]))

    assert len(fake_server.seen) >= 2
    assert {seen.headers["Authorization"] for seen in fake_server.seen} == {"Bearer first"}


def test_server_of_our_own_wants_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is exported for another one."""
    monkeypatch.setenv("VILT_API_KEY", "secret")
    monkeypatch.setenv("VILT_WORKERS", "2")

    with started(["--workers", "1"]) as own:
        assert httpx.get(f"{own.url}/v1/models").status_code == 200
    assert credentials.without()["VILT_WORKERS"] == "2"
