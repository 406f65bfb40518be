"""Clients in a closed loop: what they sum up, and against real servers, ours and one that refuses."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from loadtest import closedloop
from loadtest.closedloop import Asked
from loadtest.launch import server
from loadtest.rows import OK, Row

STAGES = {"decode": 2.0, "preprocess": 3.0, "tokenize": 0.1, "inference": 0.6}


def row(latency_ms: float) -> Row:
    return Row(
        kind="vqa", scheduled_s=1.0, sent_s=1.0, done_s=1.0 + latency_ms / 1000, status=200, code=OK,
        deadline_ms=None, stages_ms=STAGES, retry_after_ms=None, expected=None, answer=None, correct=None,
        request_id=None,
    )  # fmt: skip


def test_rates_of_processes_add_up_and_the_busiest_tells_of_the_clients() -> None:
    """50 answers in half a second and 100 in one are 200 a second."""
    asked = [Asked([row(10)] * 50, 0.5, 0.2), Asked([row(30)] * 100, 1.0, 0.9)]

    found = closedloop.summarise(asked, clients=16)

    assert found == {
        "clients": 16,
        "client_processes": 2,
        "client_cpu_share": 0.9,
        "answers": 150,
        "answers_per_s": 200,
        "p50_ms": pytest.approx(30),
        "p99_ms": pytest.approx(30),
        "stages_ms": STAGES,
    }


def test_percentiles_are_those_of_the_other_benchmarks() -> None:
    """Values that were measured, and no p99 of fewer than a hundred answers: it would be the slowest."""
    found = closedloop.summarise([Asked([row(10), row(20)] * 49, 1.0, 0.2)], clients=1)
    enough = closedloop.summarise([Asked([row(10), row(20)] * 50, 1.0, 0.2)], clients=1)

    assert (found["p50_ms"], found["p99_ms"]) == (pytest.approx(10), None)
    assert enough["p99_ms"] == pytest.approx(20)


def test_clients_who_were_not_answered_have_no_figures() -> None:
    """In a sentence, not by an index that is out of range."""
    with pytest.raises(ValueError, match="no client was answered"):
        closedloop.summarise([Asked([], 1.0, 0.2)], clients=1)


@pytest.mark.slow
def test_clients_in_several_processes_are_answered_and_timed() -> None:
    """Against shapes on the CPU; there are never more processes than clients."""
    with server(None) as url:
        found = closedloop.drive(url, clients=3, processes=2, seconds=1.0)
        alone = closedloop.drive(url, clients=1, processes=2, seconds=0.2)

    assert found["answers"] > 4
    assert (found["client_processes"], alone["client_processes"]) == (2, 1)
    assert found["p50_ms"] > 0
    assert 0 < found["client_cpu_share"] < 2
    assert set(STAGES) <= set(found["stages_ms"])


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as own:
        threading.Thread(target=own.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{own.server_address[1]}"
        own.shutdown()


@pytest.mark.slow
def test_server_that_refuses_ends_the_loop(refusing: str) -> None:
    """Whichever process is the first to be told."""
    with pytest.raises(ValueError, match="the server did not answer: 503"):
        closedloop.drive(refusing, clients=2, processes=2, seconds=1.0)
