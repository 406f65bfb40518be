"""Prometheus takes our files, finds what they ask for, and tells of an overload and of its end."""

import asyncio
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import httpx
import pytest
import yaml

from loadtest import openloop, workload
from loadtest.launch import started

from .watching import FOLDER, Prometheus, prometheus, quicker

DASHBOARD = json.loads((FOLDER.parent / "grafana" / "dashboards" / "vilt.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
COMPARISON = re.compile(r"\s*(>|==)\s*[\d.]+(\s*\*\s*[\d.]+)?")
QUEUE = 8  # entries: so little that a few dozen clients are too many
CROWD = 32
OVERLOAD_S, WITHIN_S = 12.0, 40.0
FEW_MS = (1, 4)  # the patience of those who hang up

needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus") or not shutil.which("promtool"), reason="no prometheus here: make tools installs it"
)
pytestmark = [needs_prometheus]


def promtool(*arguments: str, given: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *arguments], check=False, input=given, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"]
)
def test_promtool_is_content(command: str) -> None:
    """With the configuration, with the rules, and with what the rules make of made-up series."""
    *words, file = command.split()

    done = promtool(*words, str(FOLDER / file))

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    """In which it fires; promtool compares all that do, so others do not."""
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]

    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


@dataclass(frozen=True, slots=True)
class Watched:
    """What Prometheus saw of a server that was overloaded for a while."""

    prometheus: Prometheus
    began_s: float
    ended_s: float
    fired: set[str]
    cleared: bool
    exposition: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Serve a little, too much, and a little again."""
    folder = tmp_path_factory.mktemp("prometheus")
    expected = {"ViltRefuses", "ViltBurnsItsBudget"}
    flags = ["--max-queue-entries", str(QUEUE), "--logits-cache-entries", "100", "--cache-dir", str(folder)]
    with started(flags) as own, prometheus(folder, own.url.removeprefix("http://")) as found:
        began_s = time.time()
        asyncio.run(_serve(own.url, 3.0, people=1))
        assert not found.firing() & expected
        fired: set[str] = set()

        def fires() -> bool:
            fired.update(found.firing())
            return expected <= fired

        asyncio.run(_overload(own.url, lambda: found.wait(fires, WITHIN_S)))
        ended_s = time.time()
        asyncio.run(_serve(own.url, OVERLOAD_S, people=1))
        cleared = found.wait(lambda: not found.firing() & expected, WITHIN_S)
        yield Watched(found, began_s, ended_s, fired, cleared, httpx.get(f"{own.url}/metrics").text)


async def _serve(url: str, seconds: float, *, people: int, hasty: bool = False) -> None:
    """Ask all kinds of things for a while: some twice, and some without the patience to wait."""
    rng = random.Random(0)  # noqa: S311 a workload, not a secret
    samples = workload.read(workload.SAMPLES, "mix")
    requests = workload.stream(samples, "mix")
    async with openloop.Client(url) as client:

        async def person() -> None:
            while client.now_s() < seconds:
                request = next(requests)
                if hasty and rng.random() < 0.2:
                    request = replace(request, abandon_after_s=rng.uniform(*FEW_MS) / 1000)
                await asyncio.gather(client.send(request), client.send(request))

        await asyncio.gather(*(person() for _ in range(people)))


async def _overload(url: str, until: Callable[[], bool]) -> None:
    crowd = asyncio.create_task(_serve(url, WITHIN_S, people=CROWD, hasty=True))
    await asyncio.sleep(OVERLOAD_S)
    await asyncio.to_thread(until)
    crowd.cancel()
    await asyncio.gather(crowd, return_exceptions=True)


@pytest.mark.slow
def test_overload_is_told_and_its_end_too(watched: Watched) -> None:
    """By the alerts that are meant for it."""
    assert watched.fired >= {"ViltRefuses", "ViltBurnsItsBudget"}
    assert not watched.fired & {"ViltIsNotReady", "ViltFails"}
    assert watched.cleared


QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}


@pytest.mark.slow
@pytest.mark.parametrize("title", QUERIES)
def test_query_of_the_dashboard_finds_data(watched: Watched, title: str) -> None:
    """In a server that has been through everything but a fault."""
    query = QUERIES[title].replace("$__rate_interval", "5s").replace("$instance", ".*")

    assert watched.prometheus.values(query, watched.began_s, watched.ended_s), query


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_query_of_a_rule_finds_data(watched: Watched, rule: dict[str, str]) -> None:
    """What an alert compares is there whether it fires or not; faults there should be none of."""
    query = quicker(COMPARISON.sub("", rule["expr"])).replace('code=~"engine_fault|internal_error"', 'code="ok"')

    assert watched.prometheus.values(query, watched.began_s, watched.ended_s), query


@pytest.mark.slow
def test_query_of_the_autoscaler_finds_data(watched: Watched) -> None:
    """As prometheus-adapter fills it in."""
    adapter = yaml.safe_load((FOLDER.parent / "kubernetes" / "prometheus-adapter.yaml").read_text())
    query = adapter["rules"]["custom"][0]["metricsQuery"]
    for template, value in (("Series", "vilt_work_seconds"), ("LabelMatchers", 'job="vilt"'), ("GroupBy", "instance")):
        query = query.replace(f"<<.{template}>>", value)

    assert max(watched.prometheus.values(quicker(query), watched.began_s, watched.ended_s)) > 0


@pytest.mark.slow
def test_metrics_are_named_as_prometheus_advises(watched: Watched) -> None:
    """promtool check metrics has nothing to say."""
    done = promtool("check", "metrics", given=watched.exposition)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
