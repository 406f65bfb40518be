"""What the Dockerfile must not say."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_are_pyprojects_and_its_locks() -> None:
    """No package is named here, nor a version but Python's, which is the least that pyproject.toml allows."""
    installed = re.findall(r"pip install (.*?)(?: && | \\\n|\n|$)", INSTRUCTIONS)
    named = {
        extra
        for arguments in installed
        for found in re.findall(r"\.\[(.*?)\]", arguments)
        for extra in found.split(",")
    }
    python = re.search(r"^ARG BASE=python:(\d+\.\d+)-", INSTRUCTIONS, re.MULTILINE)

    assert "--require-hashes --requirement requirements-serve.txt" in installed
    assert named == {"gpu", "tensorrt"} <= PROJECT["optional-dependencies"].keys()
    assert len(installed) == 3
    assert not re.search(r"[=<>~]=\s*\d", INSTRUCTIONS)
    assert python is not None
    assert PROJECT["requires-python"] == f">={python[1]}"


def test_code_comes_after_packages() -> None:
    """So that a change of code leaves the layer of packages as it was."""
    stages = re.split(r"^FROM ", INSTRUCTIONS, flags=re.MULTILINE)
    (cpu,) = (stage for stage in stages if stage.startswith("runtime AS cpu"))

    assert cpu.index("--from=cpu-packages") < cpu.index("--from=code")
    assert stages[-1].strip() == "cpu"
