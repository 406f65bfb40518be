"""requirements-serve.txt: exact versions and hashes of what the serving install needs, as pyproject.toml says it."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([\w.-]+)==([\w.]+)([^\n]*)\n((?:    --hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", re.MULTILINE)


def test_lock_has_every_dependency_in_a_version_that_is_allowed() -> None:
    """make lock renews it; whoever changes pyproject.toml has to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements-serve.txt").read_text()
    pins = PIN.findall(lock)
    pinned = {canonicalize_name(name): version for name, version, *_ in pins}

    for wanted in map(Requirement, (*project["dependencies"], *project["optional-dependencies"]["cpu"])):
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted
    assert len(pins) == len(re.findall(r"^[a-z]", lock, re.MULTILINE))  # none without a version and a hash
    assert not re.search(r"https?:|--index|--find-links|torch|transformers", lock)
