"""Memory: limits of both kinds of control groups, and a sentence before the kernel's silence."""

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import artifact

from models.errors import ArtifactError
from models.manifest import CUDA, STANDARD, FileEntry
from server.memory import OWN_BYTES, check_fits, memory_limit_bytes

LOADING = """
import resource

import numpy as np

from server.memory import returning_what_is_freed

def resident_mb():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 1e6

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def picture(size):
    return b"x" * size

weight = np.ones(1_000_000)
del weight  # from now on glibc has blocks of 8 MB in its heap
with returning_what_is_freed():
    weights, packed = [], []
    for _ in range(20):
        weights.append(np.ones(400_000))
        packed.append(np.ones(1_000))
    before_mb = resident_mb()
    del weights
    print(before_mb - resident_mb())
picture(20_000_000)
before = faults()
picture(20_000_000)
print(faults() - before)
"""


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"memory.max": "512000000"}, "0::/", 512_000_000),
        ({"memory.max": "max"}, "0::/", None),
        ({"memory.max": "max", "a/b/memory.max": "300000000"}, "0::/a/b", 300_000_000),
        ({"memory/memory.limit_in_bytes": "512000000"}, "5:cpu:/x\n4:memory:/not/seen/here", 512_000_000),
        ({"memory/a/memory.limit_in_bytes": "7"}, "4:hugetlb,memory:/a\n0::/", 7),
        ({}, "0::/", None),
    ],
    ids=["container", "no limit", "own group", "old kind, container", "old kind, own group", "nothing there"],
)
def test_memory_limit_is_the_least_of_the_process_s_groups(
    tmp_path: Path, files: dict[str, str], own: str, limit: int | None
) -> None:
    """Whether a container shows its own group as the root, or not."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")

    assert memory_limit_bytes(tmp_path, tmp_path / "own") == limit
    assert memory_limit_bytes(tmp_path / "missing", tmp_path / "missing") is None


def test_artifact_that_does_not_fit_is_refused_in_one_sentence() -> None:
    """Before anything of it is loaded; where there is no limit, nothing is."""
    check_fits([artifact()], None)
    check_fits([artifact()], 2 * OWN_BYTES)

    with pytest.raises(ArtifactError, match=r"^shapes in fp32 needs about 1\d\d MB of memory, and 145 MB is the limit"):
        check_fits([artifact()], OWN_BYTES)


def test_of_a_gpus_precision_only_the_graph_that_a_cpu_opens_has_to_fit() -> None:
    """It has two, each the whole model."""
    fp32 = artifact().manifest.precisions["fp32"]
    large = FileEntry(file="fp16/x.onnx", sha256="", size_bytes=OWN_BYTES)
    fp16 = replace(fp32, graphs={CUDA: large, STANDARD: replace(large, size_bytes=1)})
    half = replace(artifact(), precision="fp16", manifest=replace(artifact().manifest, precisions={"fp16": fp16}))

    check_fits([half], OWN_BYTES + 10)
    with pytest.raises(ArtifactError, match="is the limit"):
        check_fits([half], OWN_BYTES)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_what_is_freed_goes_back_while_a_model_is_loaded_and_stays_afterwards() -> None:
    """20 weights of 3.2 MB, with packed ones between them; then pictures of 20 MB, which are 4,883 pages each."""
    told = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True).stdout

    returned_mb, new_pages = told.split()
    assert float(returned_mb) > 60
    assert int(new_pages) < 100
