"""How much memory this process may use, how much an artifact needs, and what malloc does with freed memory."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from models.errors import ArtifactError
from models.manifest import Artifact
from server.cgroups import CGROUPS, OWN_CGROUPS, controller_folders

# Measured at full size: with 487 MB of fp32 graphs the server starts within 640 MB and is killed at 620; with 206 MB of
# int8 graphs at 370 and 350.
OWN_BYTES = 145_000_000  # the server without a model, with some margin
FACTOR = 1.1  # memory while a model is loaded, relative to the size of its graphs
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# While a model is loaded, blocks of this size or more are mapped, so that free() returns them to the kernel.
RETURNED_BYTES = 2 * 1024 * 1024
# Afterwards blocks up to this size come from the heap and stay there, as glibc's own adaptive threshold would have it.
KEPT_BYTES = 32 * 1024 * 1024


@contextlib.contextmanager
def returning_what_is_freed() -> Iterator[None]:
    """Have malloc return large blocks to the kernel inside the block: onnxruntime frees each weight after packing it.

    In glibc's heap they would stay, between blocks in use: up to a fifth of what fp32 takes. Afterwards they stay in
    the heap, so that an image's pixels reuse the pages of the last one. Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)


def check_fits(artifacts: list[Artifact], limit_bytes: int | None) -> None:
    """Refuse artifacts that the kernel would kill the process for while loading them.

    Raises: ArtifactError: the limit is too low.
    """
    graphs_bytes = sum(graph.size_bytes for artifact in artifacts for graph in artifact.opened().values())
    needed_bytes = OWN_BYTES + int(FACTOR * graphs_bytes)
    if limit_bytes is not None and limit_bytes < needed_bytes:
        names = ", ".join(f"{artifact.manifest.name} in {artifact.precision}" for artifact in artifacts)
        raise ArtifactError(
            f"{names} needs about {needed_bytes / 1e6:.0f} MB of memory, and {limit_bytes / 1e6:.0f} MB is the"
            " limit here: raise it, or serve int8 or a smaller model."
        )


def memory_limit_bytes(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int | None:
    """Return the lowest memory limit of this process's control groups; None means no limit."""
    found = []
    for folder in controller_folders("memory", cgroups, own_cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                found.append(int((folder / name).read_text()))
    return min(found, default=None)
