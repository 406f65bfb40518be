"""The documents say what is: every setting, metric, error code and file."""

import json
import re
from pathlib import Path

import pytest

from server.metrics import Metrics
from server.settings import Settings, shown_default

ROOT = Path(__file__).parents[1]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_documented_with_its_default(name: str) -> None:
    """docs/settings.md has a row for each flag."""
    row = next((line for line in SETTINGS.splitlines() if line.startswith(f"| `--{name.replace('_', '-')}` |")), "")

    assert Settings.model_fields[name].description
    assert row.replace("`", "").startswith(f"| --{name.replace('_', '-')} | {shown_default(name)} | ")


def test_metric_is_documented() -> None:
    """docs/metrics.md has a row for each metric, as it is exposed."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    exposed = {metric.name + ("_total" if metric.type == "counter" else "") for metric in Metrics().registry.collect()}

    documented = set(re.findall(r"^\| `((?:vilt|process)_\w+)`", text, re.MULTILINE))
    assert {name for name in documented if name.startswith("vilt_")} <= exposed <= documented  # process_: where it can


def test_error_code_is_documented() -> None:
    """docs/api.md lists every code that the sources raise."""
    sources = "".join(path.read_text() for package in ("server", "models") for path in (ROOT / package).rglob("*.py"))
    raised = set(
        re.findall(
            r"(?:BadRequest|NotFound|MethodNotAllowed|TooLarge|UnsupportedMediaType|Unusable|Overloaded|Unavailable"
            r"|EngineFault|ServerError|InvalidInput|InputTooLarge|__init__)\(\s*\"([a-z]+(?:_[a-z0-9]+)+|overloaded)\"",
            sources,
        )
    )

    documented = set(re.findall(r"`([a-z0-9_]+)`", API))
    assert len(raised) > 20
    assert raised - documented == set()


@pytest.mark.parametrize("document", [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_link_to_a_file_leads_somewhere(document: Path) -> None:
    """No document points at a file that is not there."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_source_file_is_on_the_code_map() -> None:
    """docs/architecture.md names every module."""
    text = (ROOT / "docs" / "architecture.md").read_text()

    for package in ("server", "models", "export", "loadtest"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or f"`{path.name}`" in text, path


def test_source_file_of_the_claims_is_on_their_code_map() -> None:
    """docs/claims.md names every module of both halves."""
    text = (ROOT / "docs" / "claims.md").read_text()

    for package in ("export", "loadtest"):
        for path in (ROOT / package / "claims").glob("*.py"):
            assert path.name == "__init__.py" or f"`{path.name}`" in text, path


def test_record_is_listed_with_where_it_was_made() -> None:
    """docs/benchmarks/README.md has a row for each file: processor, commit, day."""
    folder = ROOT / "docs" / "benchmarks"
    text = (folder / "README.md").read_text()

    for path in sorted(folder.rglob("*.json")):
        found = json.loads(path.read_text())
        made = f"| {found['machine']['processor']} | {found['commit']} | {found['date']} |"
        assert f"| [{path.relative_to(folder)}]({path.relative_to(folder)}) {made}" in text
