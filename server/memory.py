"""How much memory this process may use, how much an artifact needs, and who keeps what is freed."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from models.errors import ArtifactError
from models.manifest import Artifact
from server.cgroups import CGROUPS, OWN_CGROUPS, controller_folders

# Measured at full size: 487 MB of graphs in fp32 start within 640 MB and are killed at 620; 206 in int8 at 370 and 350.
OWN_BYTES = 145_000_000  # of the server without a model, and some room
FACTOR = 1.1  # of what a model takes while it is loaded, to its graphs
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
RETURNED_BYTES = 2 * 1024 * 1024  # a block from which on it has pages of its own, while a model is loaded
KEPT_BYTES = 32 * 1024 * 1024  # afterwards, in the heap, and twice that at its top: where glibc would come to by itself


@contextlib.contextmanager
def returning_what_is_freed() -> Iterator[None]:
    """Have malloc return large blocks to the kernel meanwhile: onnxruntime frees each weight once it has packed it.

    In glibc's heap they would stay, between blocks that are used: up to a fifth of what fp32 takes. From then on they
    stay there, and a picture's pixels find the pages of the last one's. Where there is no glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)


def check_fits(artifacts: list[Artifact], limit_bytes: int | None) -> None:
    """Refuse what the kernel would kill while it is loaded.

    Raises: ArtifactError: there is a limit, and it is too low.
    """
    graphs_bytes = sum(path.stat().st_size for artifact in artifacts for path in artifact.graphs.values())
    needed_bytes = OWN_BYTES + int(FACTOR * graphs_bytes)
    if limit_bytes is not None and limit_bytes < needed_bytes:
        names = ", ".join(f"{artifact.manifest.name} in {artifact.precision}" for artifact in artifacts)
        raise ArtifactError(
            f"{names} needs about {needed_bytes / 1e6:.0f} MB of memory, and {limit_bytes / 1e6:.0f} MB is the"
            " limit here: raise it, or serve int8 or a smaller model."
        )


def memory_limit_bytes(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int | None:
    """Find the least memory limit of the control groups that this process is in; None is no limit."""
    found = []
    for folder in controller_folders("memory", cgroups, own_cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                found.append(int((folder / name).read_text()))
    return min(found, default=None)
