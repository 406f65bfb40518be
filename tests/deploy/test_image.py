"""The image answers, is small, holds nothing that serving does not need, and runs with no rights and no disk."""

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import factories
import httpx
import pytest

from .building import ROOT
from .conftest import Built
from .container import Container, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first build on a machine makes a base image, too
MOST_MB = 300  # that the image adds to its base
CANDIDATES = 800  # so many take a second or more
SIGTERM_BIT = 1 << 14
MB = 1e6
LOOK = "import importlib.util as of; print([name for name in ('torch', 'export', 'pip') if of.find_spec(name)])"


@pytest.fixture(scope="module")
def container(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with started(built.root, built.image.config, log=tmp_path_factory.mktemp("container") / "log") as running:
        yield running


def test_image_answers_the_readmes_question(container: Container) -> None:
    """Word for word, but for the port."""
    commands = re.search(r"^( {4}curl .*\\\n.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands is not None
    command = commands[1].replace("localhost:8000", container.url.removeprefix("http://"))

    done = subprocess.run(
        shlex.split(command.replace("\\\n", " ")), check=False, capture_output=True, text=True, cwd=ROOT
    )

    assert '"answer":"blue"' in done.stdout, done
    assert '"model":"shapes"' in done.stdout


def test_image_listens_to_every_address(built: Built) -> None:
    """Or a published port would lead nowhere."""
    assert "VILT_HOST=0.0.0.0" in built.image.config["Env"]
    assert "8000/tcp" in built.image.config["ExposedPorts"]


def test_process_has_no_rights(container: Container) -> None:
    """A user of its own, no capability, and no way to gain any."""
    status = container.status()

    assert status["NSpid"].split()[-1] == "1"
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"10001"}
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("path", ["/file", "/opt/vilt/file", "/tmp/file", "/opt/vilt/bin/vilt-serve"])  # noqa: S108
def test_root_file_system_is_read_only(container: Container, path: str) -> None:
    """All of it but the cache, and the server does without: it has answered."""
    done = container.run("sh", "-c", f"echo > {path}")

    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_cache_is_kept_where_it_may_be_written(container: Container) -> None:
    """What was measured of the model is there for the next start."""
    done = container.run("sh", "-c", "ls /var/cache/vilt")

    assert done.stdout.startswith("latency-")


def test_health_check_tells_ready_from_not(container: Container, built: Built) -> None:
    """It needs no program but Python, and no shell."""
    kind, *command = built.image.config["Healthcheck"]["Test"]
    elsewhere = [part.replace("readyz", "nothing") for part in command]

    assert kind == "CMD"
    assert container.run(*command).returncode == 0
    assert container.run(*elsewhere).returncode == 1


def test_image_holds_neither_torch_nor_what_builds(container: Container) -> None:
    """Nor any command that would not work."""
    found = container.run("python3", "-c", LOOK)

    assert found.stdout.strip() == "[]", found
    assert container.run("sh", "-c", "ls /opt/vilt/bin | grep ^vilt").stdout.split() == ["vilt-serve"]


def test_image_tells_nothing_of_the_machine_that_built_it(built: Built) -> None:
    """Neither pip's configuration nor the authority is left behind."""
    for name in ("etc/pip.conf", "run/secrets", "source", "tools", "root/.config"):
        assert not (built.root / name).exists(), name


def test_image_is_small(built: Built) -> None:
    """What it adds to its base is downloaded at every update."""
    base_mb = _bytes(built.base_root) / MB
    added_mb = _bytes(built.root) / MB - base_mb

    print(f"the image adds {added_mb:.0f} MB to its base of {base_mb:.0f} MB")  # noqa: T201 make image-test shows it
    assert 100 < added_mb <= MOST_MB


def test_change_of_code_rebuilds_only_the_last_layer(built: Built) -> None:
    """Whoever has the image downloads that one."""
    with (built.source / "server" / "__init__.py").open("a") as file:
        file.write("# changed\n")

    again = built.builder.build(built.source, "localhost/vilt-server:changed", *built.flags)

    same = [ours == theirs for ours, theirs in zip(built.image.layers, again.layers, strict=True)]
    assert all(same[:-2])  # the code, and the look for torch, which leaves nothing
    assert not all(same)


def test_sigterm_lets_a_request_in_flight_end_and_exits_with_0(built: Built, tmp_path: Path) -> None:
    """As process 1, which no signal ends by default."""
    picture = factories.encoded(factories.noise(64, 64), "PNG")
    images = [("images", picture + index.to_bytes(2)) for index in range(CANDIDATES)]  # no two the same
    with started(built.root, built.image.config, log=tmp_path / "log") as container, ThreadPoolExecutor(1) as pool:
        request = pool.submit(
            httpx.post,
            f"{container.url}/v1/rank",
            data={"query_text": "a star", "top_k": "1000"},
            files=images,
            timeout=60,
        )
        while "vilt_in_flight_entries 0.0" in httpx.get(f"{container.url}/metrics").text:
            assert not request.done()
        status = container.stop()

        assert request.result().status_code == 200
        assert len(request.result().json()["results"]) == CANDIDATES
    assert status == 0


def test_sigterm_before_it_is_ready_ends_it_at_once(built: Built, tmp_path: Path) -> None:
    """An engine that stops a container which is still loading need not wait to kill it."""
    log = tmp_path / "log"
    with started(built.root, built.image.config, ready=False, log=log) as container:
        until_s = time.monotonic() + 30
        while not int(container.status()["SigCgt"], 16) & SIGTERM_BIT:
            assert time.monotonic() < until_s
        is_loaded = "serving shapes" in log.read_text()
        status = container.stop(within_s=5)

    assert not is_loaded
    assert status == 0


def _bytes(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
