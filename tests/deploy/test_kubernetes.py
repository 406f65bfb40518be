"""The manifests are what Kubernetes takes, and agree with what the server does."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.metrics import Metrics
from server.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = {name: yaml.safe_load((FOLDER / name).read_text()) for name in KUSTOMIZATION["resources"]}
POD = MANIFESTS["deployment.yaml"]["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
ENVIRONMENT = {one["name"]: one["value"] for one in SERVER["env"]}
VERSION = "1.33"  # of the API


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_valid(name: str) -> None:
    """By itself, with nothing that the API does not know."""
    kubernetes_validate.validate(MANIFESTS[name], VERSION, strict=True)

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**MANIFESTS[name], "specs": {}}, VERSION, strict=True)


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Render as kubectl apply would."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(folder)], check=True, capture_output=True, text=True)
            return list(yaml.safe_load_all(done.stdout))
    pytest.skip("neither kubectl nor kustomize is here")


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(one for one in manifests if one["kind"] == kind)


def test_kustomization_renders_what_is_valid() -> None:
    """The labels that it adds are those that are selected."""
    found = rendered(FOLDER)

    for manifest in found:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    assert len(found) == len(MANIFESTS)
    deployment = of_kind(found, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert of_kind(found, "Service")["spec"]["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"].items() <= labels.items()


def test_documented_kustomization_brings_its_image_and_settings(tmp_path: Path) -> None:
    """As docs/deploy.md has it, but for where the manifests come from."""
    block = re.search(r"```yaml\n(resources:.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "kustomization.yaml").write_text(re.sub(r"https://[^\]]+", os.path.relpath(FOLDER, tmp_path), block[1]))

    (server,) = of_kind(rendered(tmp_path), "Deployment")["spec"]["template"]["spec"]["containers"]

    assert server["image"] == "registry.example.com/vilt-vqa:1"
    assert server["env"] == [*SERVER["env"], {"name": "VILT_MODEL", "value": "/artifact"}]


def test_environment_is_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is a setting, and its value one that the server takes."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert {name.removeprefix("VILT_").lower() for name in ENVIRONMENT} <= settings.model_fields_set


def test_pod_is_given_the_time_that_a_drain_takes() -> None:
    """It is taken off the list before it stops serving, and killed only when nothing is left to wait for."""
    pause_s, timeout_s = float(ENVIRONMENT["VILT_DRAIN_PAUSE_S"]), float(ENVIRONMENT["VILT_DRAIN_TIMEOUT_S"])
    ready = SERVER["readinessProbe"]

    assert ready["periodSeconds"] * ready["failureThreshold"] < pause_s
    assert float(ENVIRONMENT["VILT_DEADLINE_MS"]) / 1000 < timeout_s
    assert pause_s + timeout_s < POD["terminationGracePeriodSeconds"]


def test_start_is_given_the_time_that_measuring_takes() -> None:
    """And as much again to load the model."""
    start = SERVER["startupProbe"]

    assert start["periodSeconds"] * start["failureThreshold"] > 2 * Settings().calibration_s


def test_probes_ask_what_the_server_answers() -> None:
    """Ready on /readyz, alive on /livez, on the port that the image listens on."""
    paths = {probe: SERVER[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    (port,) = SERVER["ports"]
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert {SERVER[probe]["httpGet"]["port"] for probe in paths} == {port["name"]}
    assert f"VILT_PORT={port['containerPort']}" in dockerfile
    assert MANIFESTS["service.yaml"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_pod_has_no_rights() -> None:
    """What the restricted Pod Security Standard asks for, and a read-only root file system."""
    own, pod = SERVER["securityContext"], POD["securityContext"]

    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["runAsNonRoot"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {pod['runAsUser']}:{pod['runAsGroup']}" in (ROOT / "Dockerfile").read_text()
    assert POD["automountServiceAccountToken"] is False


def test_pod_has_whole_processors_of_its_own() -> None:
    """As many threads as the limit says compute together."""
    resources = SERVER["resources"]

    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1


def test_autoscaler_goes_by_a_metric_that_there_is() -> None:
    """Under the name by which prometheus-adapter finds it."""
    (metric,) = MANIFESTS["autoscaling.yaml"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]

    name = metric["pods"]["metric"]["name"]
    assert name in {one.name for one in Metrics().registry.collect()}
    assert re.match(r"\w+", rule["seriesQuery"])[0] == name  # type: ignore[index]


def test_manifests_are_all_applied() -> None:
    """Every file is a resource, or says that it is not."""
    aside: set[Any] = {"kustomization.yaml", "prometheus-adapter.yaml"}

    assert {path.name for path in FOLDER.iterdir()} == MANIFESTS.keys() | aside
