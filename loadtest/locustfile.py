"""Locust users who ask a server about pictures and check the answers.

    locust -f loadtest/locustfile.py                                  web page on port 8089; asks the mix
    locust -f loadtest/locustfile.py --headless -u 50 -r 25 -t 30s    50 users, so 50 requests per second
    locust -f loadtest/locustfile.py VqaUser                          or ItmUser, RankUser, MixUser

Each user asks once per second, so the number of users is the offered load as long as answers take less than a second.
If they take longer, users wait for them (a closed loop), and the requests that this delays are missing from the
figures. Where that matters, measure with `vilt-bench load`.

Every sample is first asked alone. An answer that differs from the one given then is a failure, and so is any status but
200, 429 and 503; these two get lines of their own, "vqa refused: overloaded". The stages of Server-Timing are lines,
too, but not requests: Aggregated leaves them out.
"""

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.runners import MasterRunner

from loadtest import credentials, rows, workload
from loadtest.arguments import at_least
from loadtest.launch import bypass_proxy
from loadtest.rows import REFUSED, Reply, Row
from loadtest.workload import Request


class Asker(FastHttpUser):
    """Sends the requests of its scenario, one per second."""

    abstract = True
    host = "http://127.0.0.1:8000"
    wait_time = constant_throughput(1)
    scenario: ClassVar[str]
    requests: ClassVar[Iterator[Request]]
    rows: ClassVar[list[Row]] = []  # of all users

    def on_start(self) -> None:
        """Start at a random time within a second: users that are spawned together would otherwise stay in step."""
        time.sleep(random.random())  # noqa: S311

    @task
    def ask(self) -> None:
        """Send a request, check the answer, and record the stages."""
        request = next(self.requests)
        headers = {"Content-Type": request.content_type, **credentials.headers()}
        deadline_ms = self.environment.parsed_options.deadline_ms
        if deadline_ms:
            headers["X-Deadline-Ms"] = f"{deadline_ms:g}"
        body: Any = request.body  # bytes are accepted, though declared otherwise
        sent_s = time.perf_counter()  # not Locust's clock: its table is checked against the rows
        with self.client.post(request.path, data=body, headers=headers, catch_response=True) as response:
            done_s = time.perf_counter()
            row = rows.row_of(
                request,
                Reply(
                    status=response.status_code,
                    code="" if response.status_code else rows.CONNECTION_FAILED,
                    headers=response.headers or {},
                    body=response.content or b"",
                ),
                scheduled_s=sent_s,
                sent_s=sent_s,
                done_s=done_s,
                deadline_ms=deadline_ms or None,
            )
            response.request_meta["name"] = row.line
            failure = failure_of(row)
            if failure:
                response.failure(failure)
            else:
                response.success()
        for stage, value in row.stages_ms.items():
            self.environment.stats.get(f"stage {stage}", "").log(value, 0)
        if self.environment.parsed_options.rows:
            self.rows.append(row)


class VqaUser(Asker):
    """Asks questions about pictures."""

    scenario = "vqa"


class ItmUser(Asker):
    """Asks whether texts match pictures."""

    scenario = "itm"


class RankUser(Asker):
    """Ranks pictures for texts, and texts for pictures."""

    scenario = "rank"


class MixUser(Asker):
    """Asks all of it: 80 % vqa, 15 % itm, 5 % rank."""

    scenario = "mix"


def failure_of(row: Row) -> str | None:
    """Describe what is wrong with a reply, if anything is; a refusal is not wrong."""
    if row.correct is False:
        return f"under load: {row.answer}; alone: {row.expected}"
    return None if row.status == 200 or row.status in REFUSED else row.outcome


def declare(parser: LocustArgumentParser, **_: Any) -> None:
    """Declare the options that `vilt-bench load` has, too."""
    parser.add_argument(
        "--data", type=Path, default=workload.SAMPLES, help="what to ask, as JSON lines (default: loadtest/samples)"
    )
    parser.add_argument(
        "--deadline-ms", type=at_least(0.0), default=0.0, help="deadline of every request; 0 sends none (default)"
    )
    parser.add_argument("--identical", action="store_true", help="send the same pictures repeatedly")
    parser.add_argument("--rows", type=Path, help="write one line of JSON per request to this file when the test stops")


def prepare(environment: Any, **_: Any) -> None:
    """Use the mix if no user class was named: all four together would be another mix.

    Without the web page, samples are learned here: once the test has started, its clock runs.
    """
    options = environment.parsed_options
    if not options.user_classes and not options.class_picker:
        environment.user_classes = [MixUser]
    if options.headless:
        learn(environment)


def learn_again(environment: Any, **_: Any) -> None:
    """Ask every sample alone before each test that the web page starts, as it may name another host."""
    if not environment.parsed_options.headless:
        learn(environment)


def learn(environment: Any) -> None:
    """Ask every sample alone."""
    if isinstance(environment.runner, MasterRunner):
        return  # its workers ask
    options = environment.parsed_options
    Asker.rows.clear()
    bypass_proxy()
    try:
        for user in environment.user_classes:
            samples = workload.read(options.data, user.scenario)
            learned = workload.learn(environment.host or user.host, samples)
            user.requests = workload.stream(learned.samples, user.scenario, distinct=not options.identical)
            print(f"{user.__name__}: alone, {learned.right} of {learned.known} answers were right")
    except (OSError, ValueError, httpx.HTTPError) as error:
        sys.exit(f"locustfile: {environment.host or Asker.host}: {error}")


def write_rows(environment: Any, **_: Any) -> None:
    """Write the raw rows, if they were asked for."""
    if environment.parsed_options.rows and not isinstance(environment.runner, MasterRunner):
        rows.write(environment.parsed_options.rows, Asker.rows)


for event, listener in (
    (events.init_command_line_parser, declare),
    (events.init, prepare),
    (events.test_start, learn_again),
    (events.test_stop, write_rows),
):
    event.add_listener(listener)  # type: ignore[no-untyped-call]
