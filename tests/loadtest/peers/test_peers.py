"""The comparison: who takes part, who is a peer, whose turn it is, what it comes to."""

import argparse
import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest import photo
from loadtest.peers import agreement, command, plot, result, servers, turns
from loadtest.peers.agreement import TOLERANCE
from loadtest.peers.servers import PADDED, PEERS, TUTORIAL
from loadtest.peers.turns import Timed

REFERENCE = [[("blue", 0.9), ("red", 0.5)], [("red", 0.8), ("blue", 0.6)]]
PICTURE = b"\xff\xd8 a picture"


def test_ours_are_the_precisions_of_the_artifact_that_run_on_a_cpu(tmp_path: Path) -> None:
    """One server each; only int8 may answer a little differently."""
    (tmp_path / "manifest.json").write_text(json.dumps({"precisions": {"fp16": {}, "int8": {}, "fp32": {}}}))

    found = servers.ours(tmp_path)

    assert [(server.name, server.is_exact) for server in found] == [("ours-fp32", True), ("ours-int8", False)]
    assert found[1].flags == ("--model", str(tmp_path), "--precision", "int8")
    assert [server.flags for server in servers.ours(None)] == [()]


@pytest.mark.parametrize("manifest", ["{}", "[]"])
def test_folder_that_is_not_an_artifact_is_refused(tmp_path: Path, manifest: str) -> None:
    """Before anything is started."""
    (tmp_path / "manifest.json").write_text(manifest)

    with pytest.raises(ValueError, match="is not a manifest"):
        servers.ours(tmp_path)


def test_theirs_serve_the_checkpoint_each_once() -> None:
    """With the flags of their kind."""
    found = servers.theirs(["tutorial-padded", "tutorial-padded"], "checkpoint")

    assert [server.flags for server in found] == [("--checkpoint", "checkpoint", "--pad")]


def test_peer_without_its_package_is_left_out_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """The others take part."""
    lacking = replace(TUTORIAL, name="lacking", needs=("no_such_package",))
    present = replace(TUTORIAL, needs=())

    chosen, left_out = command.available([lacking, present])

    assert chosen == [present]
    assert left_out == {"lacking": "no_such_package not installed"}
    assert capsys.readouterr().out.startswith("lacking is left out: no_such_package not installed (")


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_peer_is_a_module_that_exists(peer: servers.Server) -> None:
    """They are named here as strings: this side imports none of them."""
    assert (Path(__file__).parents[3] / f"{peer.module.replace('.', '/')}.py").exists()


def test_same_answers_and_scores_agree_in_full() -> None:
    """But for rounding."""
    found = [[(answer, score + TOLERANCE / 2) for answer, score in answers] for answers in REFERENCE]

    compared = agreement.compare(found, REFERENCE)

    assert compared.is_full
    assert (compared.asked, compared.same_answer) == (2, 2)


@pytest.mark.parametrize(
    "found",
    [
        [REFERENCE[0], [("blue", 0.8), ("red", 0.6)]],
        [REFERENCE[0], [("red", 0.8), ("blue", 0.6 + 2 * TOLERANCE)]],
        [REFERENCE[0], REFERENCE[0]],
    ],
    ids=["another answer", "another score", "the same answer to every question"],
)
def test_other_answers_or_scores_do_not_agree(found: list[agreement.Answers]) -> None:
    """To a single question is enough."""
    compared = agreement.compare(found, REFERENCE)

    assert not compared.is_full
    assert agreement.strangers({"one": compared, "other": agreement.compare(REFERENCE, REFERENCE)}) == ["one"]


def test_other_number_of_answers_does_not_agree() -> None:
    """A server that gives only its best answer cannot be compared score by score."""
    assert not agreement.compare([answers[:1] for answers in REFERENCE], REFERENCE).is_full


def test_either_of_two_answers_with_one_score_is_the_best() -> None:
    """Rounding decides between them."""
    reference = [[("blue", 0.9), ("red", 0.9)]]

    assert agreement.compare([[("red", 0.9), ("blue", 0.9)]], reference).is_full


def test_spread_is_what_the_two_questions_most_alike_differ_by() -> None:
    """A server that ignored the question would be wrong by that."""
    assert agreement.spread([*REFERENCE, [("red", 0.82), ("blue", 0.6)]]) == pytest.approx(0.02)


def vqa(number: int, worse: float) -> dict[str, Any]:
    """Answer each question with a score of its own, and the second server's with a worse one."""
    second, question = divmod(number, len(photo.QUESTIONS))
    return {"answers": [{"answer": "blue", "score": 0.9 - 0.05 * question - worse * second}]}


def test_server_that_answers_something_else_ends_the_run(fake_server: Any, said: Any) -> None:
    """It is no peer, and is not timed."""
    fake_server.behave = lambda seen: said(seen, body=vqa(seen.number, worse=0.1))
    both = [replace(TUTORIAL, name="first"), replace(TUTORIAL, name="other")]

    with pytest.raises(ValueError, match="the answers of other are not those of first"):
        command.check(both, {"first": fake_server.url, "other": fake_server.url}, PICTURE)


def test_questions_that_are_all_answered_alike_end_the_run(fake_server: Any) -> None:
    """A server that ignores the question would agree."""
    both = [replace(TUTORIAL, name="first"), replace(TUTORIAL, name="other")]

    with pytest.raises(ValueError, match="first answers two questions alike"):
        command.check(both, {server.name: fake_server.url for server in both}, PICTURE)


def test_int8_may_answer_a_little_differently_and_by_how_much_is_said(
    fake_server: Any, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it costs in accuracy is for its artifact to say."""
    fake_server.behave = lambda seen: said(seen, body=vqa(seen.number, worse=0.01))
    both = [replace(TUTORIAL, name="first"), replace(TUTORIAL, name="ours-int8", is_exact=False)]

    found = command.check(both, {server.name: fake_server.url for server in both}, PICTURE)

    assert found["ours-int8"].max_score_difference == pytest.approx(0.01)
    assert re.search(r"ours-int8 .* to 9 of 9, scores within 1.0e-02", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [({"error": "No."}, 422, r"refused /v1/vqa: No\."), ({"label": "blue"}, 200, "in another form")],
    ids=["refused", "another form"],
)
def test_server_that_speaks_another_contract_is_refused(
    fake_server: Any, said: Any, body: dict[str, Any], status: int, sentence: str
) -> None:
    """With what it said."""
    fake_server.behave = lambda seen: said(seen, body=body, status=status)

    with pytest.raises(ValueError, match=sentence):
        agreement.ask(fake_server.url, PICTURE)


def take(fake_server: Any, rounds: int) -> dict[str, Timed]:
    """Let two names take turns at one server."""
    names = ("one", "other")
    requests = {name: photo.requests(PICTURE) for name in names}
    timed, _ = asyncio.run(turns.take(dict.fromkeys(names, fake_server.url), requests, rounds))
    return timed


def test_turns_alternate_and_ask_every_server_the_same(fake_server: Any) -> None:
    """The same questions in the same order, as many of each number of clients; the order turns round every time."""
    rounds = 2

    timed = take(fake_server, rounds)

    for found in timed.values():
        assert {clients: len(values) for clients, values in found.latencies_ms.items()} == {
            clients: rounds * count for clients, count in turns.REQUESTS.items()
        }
        assert all(len(rates) == rounds for rates in found.rates_per_s.values())
    length = turns.REQUESTS[1] + 1
    first, second = ([seen.path for seen in fake_server.seen[start : start + length]] for start in (0, length))
    assert first == second


@pytest.mark.slow
def test_throughput_of_a_server_that_answers_one_at_a_time_is_its_rate(fake_server: Any, said: Any) -> None:
    """Whatever the number of clients: a turn ends with the last answer, and nothing is lost at its ends."""
    fake_server.one_at_a_time = True
    fake_server.behave = lambda seen: said(seen, delay_s=0.02)

    timed = take(fake_server, 1)

    assert timed["one"].latencies_ms[8][-1] > 80
    for rates in timed["one"].rates_per_s.values():
        assert 35 < rates[0] < 51


def test_server_that_fails_ends_the_turns(fake_server: Any, refused: Any) -> None:
    """A refusal is quick, and must not count as an answer."""
    fake_server.behave = lambda _: refused

    with pytest.raises(ValueError, match="one did not answer: 503"):
        take(fake_server, 1)


def test_server_that_fails_while_several_ask_ends_the_turns_with_its_sentence(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, said: Any, refused: Any
) -> None:
    """As ValueError, which the commands print: a group of errors would be a traceback."""
    monkeypatch.setattr(turns, "REQUESTS", {4: 12})
    fake_server.behave = lambda seen: refused if seen.number >= 4 else said(seen)

    with pytest.raises(ValueError, match="one did not answer: 503"):
        take(fake_server, 1)


def test_rounds_before_a_failure_are_kept_and_it_is_told(fake_server: Any, said: Any, refused: Any) -> None:
    """An incomplete round counts for nobody."""
    of_a_round = 2 * sum(count + 1 for count in turns.REQUESTS.values())
    fake_server.behave = lambda seen: refused if seen.number >= 2 * of_a_round + 50 else said(seen)
    requests = {name: photo.requests(PICTURE) for name in ("one", "other")}

    timed, ended = asyncio.run(turns.take(dict.fromkeys(requests, fake_server.url), requests, 5))

    assert ended is not None
    assert ended.endswith("did not answer: 503 deadline_unreachable")
    assert [one.rounds for one in timed.values()] == [2, 2]
    assert len(timed["one"].latencies_ms[1]) == 2 * turns.REQUESTS[1]


def timed(latency_ms: float, rate_per_s: float, answers: int = 100) -> Timed:
    """Make a server's turns, all alike but for one slow answer in fifty."""
    found = Timed()
    for clients in turns.REQUESTS:
        found.latencies_ms[clients] = ([latency_ms] * 49 + [2 * latency_ms]) * (answers // 50)
        found.rates_per_s[clients] = [rate_per_s, rate_per_s, 3 * rate_per_s]
    return found


def test_ratios_are_to_both_of_the_tutorials_servers(tmp_path: Path) -> None:
    """Above 1 is faster: of latency the base's over ours, of throughput ours over the base's."""
    found = {"tutorial": timed(200, 5), "tutorial-padded": timed(250, 4), "ours-fp32": timed(100, 15)}
    ours = replace(TUTORIAL, name="ours-fp32", what="this server, fp32")
    full = agreement.compare(REFERENCE, REFERENCE)

    measured = result.summarise([TUTORIAL, PADDED, ours], dict.fromkeys(found, full), found)

    tutorial, _, own = measured
    assert (own.p50_ms, own.p99_ms) == (100, 200)
    assert own.throughput_per_s[8] == result.Throughput(median=15, lowest=15, highest=45, turns=[15, 15, 45])
    assert own.faster_than["tutorial"].p50 == 2
    assert own.faster_than["tutorial"].throughput[8] == 3
    assert own.faster_than["tutorial-padded"].p50 == 2.5
    assert set(tutorial.faster_than) == {"tutorial-padded"}
    assert "times as fast as tutorial:" in result.text_of(measured)
    plot.draw(measured, "a title", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_few_answers_have_no_p99(tmp_path: Path) -> None:
    """It would be the slowest of them."""
    found = {"tutorial": timed(200, 5, 50), "ours-fp32": timed(100, 15, 50)}
    ours = replace(TUTORIAL, name="ours-fp32", what="this server, fp32")
    full = agreement.compare(REFERENCE, REFERENCE)

    measured = result.summarise([TUTORIAL, ours], dict.fromkeys(found, full), found)

    assert (measured[1].answers, measured[1].p99_ms) == (50, None)
    assert measured[1].faster_than["tutorial"].p99 is None
    assert re.search(r"ours-fp32 +50 +100\.0 +- +15\.00", result.text_of(measured))
    plot.draw(measured, "a title", tmp_path / "peers.png")


def test_turns_of_one_client_are_enough_for_a_p99() -> None:
    """In as many rounds as there are unless somebody says otherwise."""
    parser = argparse.ArgumentParser()
    command.add_to(parser.add_subparsers())
    options = parser.parse_args(["peers", "--checkpoint", "a", "--model", "b"])

    assert options.rounds * turns.REQUESTS[1] >= 2 * 100
