"""The dashboard is one that Grafana reads, and finds where it looks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from server.settings import Settings

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "vilt.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """List what is not the same in theirs; what they add is a default."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [one for key, value in ours.items() for one in lost(value, theirs.get(key), f"{path}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            one for index, pair in enumerate(zip(ours, theirs, strict=True)) for one in lost(*pair, f"{path}/{index}")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


def test_dashboard_is_read_by_grafanas_own_types() -> None:
    """Which are made from its published schemas: a field that they do not know would be lost on the way."""
    register_default_plugins()

    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))

    assert lost(DASHBOARD, read) == []
    assert lost({**DASHBOARD, "panelz": []}, read)  # it would be noticed


def test_panels_lie_side_by_side() -> None:
    """None on top of another, none beyond the right edge, and each says what it shows."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        assert panel["type"] == "row" or panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_mounts_what_is_there(service: str) -> None:
    """A path that is not would be made, as an empty folder."""
    for volume in COMPOSE["services"][service]["volumes"]:
        source = re.sub(r"\$\{\w+:-(.*)\}", r"\1", volume).split(":")[0]  # what it is unless the variable is set
        assert source in COMPOSE["volumes"] or (ROOT / source).is_dir(), volume


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    """Paths and addresses in three files agree."""
    mounted = dict(volume.split(":")[:2][::-1] for volume in COMPOSE["services"]["grafana"]["volumes"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "vilt.yml").read_text())["providers"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]

    assert (ROOT / mounted[provider["options"]["path"]] / "vilt.json").is_file()
    assert (ROOT / mounted["/etc/grafana/provisioning"]).samefile(GRAFANA / "provisioning")
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in COMPOSE["services"]
    assert scraped[0]["static_configs"][0]["targets"] == ["server:8000"]
    assert "server" in COMPOSE["services"]


def test_compose_gives_the_server_the_time_that_a_drain_takes() -> None:
    """Nothing is killed while a request that was accepted can still be answered."""
    server = COMPOSE["services"]["server"]
    pause_s, timeout_s = (float(server["environment"][f"VILT_DRAIN_{name}_S"]) for name in ("PAUSE", "TIMEOUT"))

    assert Settings().deadline_ms / 1000 <= timeout_s
    assert pause_s + timeout_s < int(server["stop_grace_period"].removesuffix("s"))
