"""How much memory this process may use, and how much an artifact needs: a kernel that kills says nothing of why."""

import contextlib
from pathlib import Path

from models.errors import ArtifactError
from models.manifest import Artifact
from server.groups import GROUPS, OWN_GROUPS, folders

# Measured at full size: 487 MB of graphs in fp32 start within 850 MB and are killed at 700.
OWN_BYTES, FACTOR = (
    120_000_000,
    1.5,
)  # of the server without a model; of what a model takes while it is loaded, to its graphs


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


def memory_limit_bytes(groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> int | None:
    """Find the least memory limit of the control groups that this process is in; None is no limit."""
    found = []
    for folder in folders("memory", groups, own_groups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                found.append(int((folder / name).read_text()))
    return min(found, default=None)
