"""The onnxruntime-gpu wheel that we pin, and NVRTC, which comes with it.

They have 256 and 90 MB; pip's cache keeps them. Where they cannot be had, these tests are skipped.
"""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WITHIN_S = 300


def brought(requirement: str, folder: Path) -> zipfile.ZipFile:
    """Download one wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    try:
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False, timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not bring {requirement} within {WITHIN_S} s")
    if done.returncode:
        pytest.skip(f"pip cannot bring {requirement}: {done.stderr.strip().splitlines()[-1]}")
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="session")
def extras() -> dict[str, list[str]]:
    return EXTRAS


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    (pinned,) = (Requirement(text) for text in EXTRAS["gpu"])
    return brought(f"{pinned.name}{pinned.specifier}", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def needs(wheel: zipfile.ZipFile) -> dict[str, str]:
    """The major versions that the wheel's own extras ask for, by package."""
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return dict(re.findall(r"^Requires-Dist: (nvidia-[\w-]+)~=(\d+)", wheel.read(metadata).decode(), re.MULTILINE))


@pytest.fixture(scope="session")
def packages(wheel: zipfile.ZipFile, needs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages is, with the wheel and NVRTC in it."""
    folder = tmp_path_factory.mktemp("packages")
    wheel.extractall(folder)
    nvrtc = brought(f"nvidia-cuda-nvrtc~={needs['nvidia-cuda-nvrtc']}.0", tmp_path_factory.mktemp("nvrtc"))
    nvrtc.extractall(folder)
    return folder
