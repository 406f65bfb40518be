"""A real Prometheus, with our configuration and rules, an hour of which passes in a minute."""

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
QUICKER = 60  # times
READY_WITHIN_S = 60.0
POLL_S = 0.2
SECONDS = {"s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(\[|offset |for: )(\d+)([smh])")


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def values(self, query: str, start_s: float, end_s: float) -> list[float]:
        """List every value that a query had in a span of time, of all series; NaN is none."""
        data = self.get("query_range", query=query, start=start_s, end=end_s, step=1)
        found = [float(value) for series in data["result"] for _, value in series["values"]]
        return [value for value in found if value == value]  # noqa: PLR0124 all but NaN

    def firing(self) -> set[str]:
        alerts = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Wait until something holds, or the time is over."""
        until_s = time.monotonic() + within_s
        while not (held := holds()) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        return held


def quicker(rules: str) -> str:
    """Shorten every duration in rules."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * SECONDS[found[3]] * 1000 // QUICKER}ms"

    return DURATION.sub(shorter, rules)


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Start Prometheus on our configuration, quicker, and yield it once it has seen the target."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text(quicker((FOLDER / "rules.yml").read_text()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            found = Prometheus(f"http://{address}")
            assert found.wait(lambda: _sees_target(found), READY_WITHIN_S), (folder / "log").read_text()
            yield found
        finally:
            process.terminate()


def _sees_target(found: Prometheus) -> bool:
    with contextlib.suppress(httpx.TransportError, AssertionError):
        return any(target["health"] == "up" for target in found.get("targets")["activeTargets"])
    return False
