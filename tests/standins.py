"""Builds what stands in for CUDA's libraries (standins.c), as a provider of onnxruntime is linked with them."""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")
DRIVER, DRIVERS = "libcuda.so.1", ("cuTensorMapEncodeTiled", "cuGetProcAddress_v2")


def build(provider: Path, folder: Path) -> None:
    """Write a library for each that the provider needs of NVIDIA's; what standins.c lacks returns 0."""
    if not (shutil.which("gcc") and shutil.which("nm")):
        pytest.skip("there is no gcc to compile what stands in for CUDA")
    wanted = defaultdict(set, {DRIVER: set(DRIVERS)})
    for name, library in re.findall(r"U (\w+)@(lib(?:cuda|cublas)\w*\.so\.\d+)", _told("nm", "-D", provider)):
        wanted[library].add(name)
    for library in re.findall(r"\[(libcu\w*\.so\.\d+)\]", _told("readelf", "-d", provider)):
        wanted[library] |= set()
    own = set(re.findall(r"(\w+)\([^;]*\) \{", SOURCE.read_text()))
    for library, names in wanted.items():
        rest = "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(names - own))
        (folder / "rest.c").write_text(rest)
        (folder / "versions").write_text(f"{library} {{ global: *; }};\n")
        flags = ["-shared", "-fPIC", "-Wall", f"-Wl,-soname,{library}", f"-Wl,--version-script,{folder / 'versions'}"]
        subprocess.run(["gcc", *flags, SOURCE, folder / "rest.c", "-o", folder / library], check=True, timeout=60)


def _told(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
