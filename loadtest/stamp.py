"""Where, when and with what a result was measured: every recorded result carries it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("vilt-server", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "uvicorn"),
    *("fastapi", "torch", "torchvision", "transformers", "litserve"),  # of servers that ours is compared with
)
VARIABLES = ("VILT_", "OMP_", "ONEDNN_", "MKL_", "ORT_", "MALLOC_")  # settings, and what controls threads and memory
SECRETS = "VILT_API_KEY"
ALWAYS = "ORT_DISABLE_TELEMETRY"  # our packages set it themselves
INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"}  # for matrix products on x86


def stamp() -> dict[str, Any]:
    """Describe this run: date, commit, command, environment, machine, versions.

    Call it first: the working tree may have changed by the end of a run.
    """
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)docs")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted": None if changed is None else bool(changed),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and name != ALWAYS and not name.upper().startswith(SECRETS)
        },
        "machine": {
            "processor": _of_processor("model name") or platform.processor() or platform.machine(),
            "instructions": sorted(INSTRUCTIONS & set(_of_processor("flags").split())),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def save(path: Path | None, benchmark: str, described: Mapping[str, Any], **found: Any) -> None:
    """Write a result with its stamp as JSON, if a file was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": f"vilt-bench {benchmark}", **described, **found}
        path.write_text(json.dumps(content, indent=2, default=asdict) + "\n")


def _program() -> list[str]:
    """Name the program as it was called: a command or a module."""
    module = sys.modules["__main__"].__spec__
    if module is None:
        return [Path(sys.argv[0]).name]
    return ["python", "-m", module.name.removesuffix(".__main__")]


def _git(*arguments: str) -> str | None:
    """Ask git about the clone that contains this file; None if there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        return None


def _of_processor(name: str) -> str:
    """Read what Linux says about the first processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
