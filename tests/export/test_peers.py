"""Every peer, as a process with a small checkpoint: it answers what our server does with an artifact made of it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import factories
import pytest

from export import checkpoint
from export.artifact import write_artifact
from loadtest import __main__ as command
from loadtest import photo
from loadtest.launch import started
from loadtest.peers import agreement, servers
from loadtest.peers.agreement import Answers
from loadtest.peers.servers import PEERS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for questions."""
    config = factories.small_config()
    state = factories.only(factories.redrawn_state(config), "vilt.", "classifier.")
    return factories.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, state)


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its artifact."""
    folder = tmp_path_factory.mktemp("artifact") / "small"
    write_artifact(
        checkpoint.load(str(source)), folder, name="small", description="", tasks=["vqa"], report=lambda _: None
    )
    return folder


@pytest.fixture(scope="module")
def reference(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Answers]]:
    """What our server answers."""
    flags = ["--model", str(artifact), "--cache-dir", str(tmp_path_factory.mktemp("cache"))]
    with started(flags) as own:
        yield agreement.ask(own.url, photo.draw())


@pytest.mark.parametrize("name", PEERS)
def test_peer_answers_what_our_server_does(name: str, source: Path, reference: list[Answers]) -> None:
    """To every question, the same answers with the same scores; and questions differ by more than the tolerance."""
    (peer,) = servers.theirs([name], str(source))
    if lacking := servers.missing(peer):
        pytest.skip(f"{lacking} not installed")

    with servers.running([peer]) as urls:
        found = agreement.ask(urls[name], photo.draw())

    assert agreement.compare(found, reference).is_full
    assert agreement.spread(reference) > agreement.TOLERANCE


def test_command_compares_and_writes_what_it_found(
    source: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of every server, ratios to the tutorial's, and a plot."""
    monkeypatch.setenv("VILT_CACHE_DIR", str(tmp_path / "cache"))
    flags = ["--checkpoint", str(source), "--model", str(artifact), "--peers", "tutorial", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["vilt-bench", "peers", *flags, "--output", str(tmp_path / "peers.json")])

    command.main()

    found = json.loads((tmp_path / "peers.json").read_text())
    assert [one["name"] for one in found["servers"]] == ["tutorial", "ours-fp32"]
    assert found["servers"][1]["faster_than"]["tutorial"]["p50"] > 0
    assert found["versions"]["transformers"]
    assert (tmp_path / "peers.png").exists()
