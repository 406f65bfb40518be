"""Nobody is told that the server runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENGINE = "import onnxruntime; onnxruntime.get_available_providers(); onnxruntime.SessionOptions()"


@pytest.mark.parametrize("package", ["server", "export"])
def test_onnxruntime_when_we_load_it_reports_nothing(package: str, tmp_path: Path) -> None:
    """It gives the machine no identifier, and keeps no events to send; without our package it does both."""
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    kept = []

    for name, command in (("ours", f"import {package}; {ENGINE}"), ("plain", ENGINE)):
        home = tmp_path / name
        home.mkdir()
        its_own = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_DATA_HOME": str(home)}
        subprocess.run([sys.executable, "-c", command], env={**environment, **its_own}, check=True)
        kept.append([path.name for path in home.rglob("*") if path.is_file()])

    if "deviceid" not in kept[1]:
        pytest.skip("this onnxruntime reports nothing of itself, or not here")
    assert kept[0] == []
