"""How much memory this process may use, and how much an artifact needs: a kernel that kills says nothing of why."""

import contextlib
from pathlib import Path

from models.errors import ArtifactError
from models.manifest import Artifact

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
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
    """Find the least memory limit of the control groups that this process is in, old kind or new; None is no limit."""
    files = [groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):  # not Linux
        for line in own_groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")  # of a container it is often "/", or the host's and not to be seen here
            if not controllers:
                files.append(groups / inside / "memory.max")
            elif "memory" in controllers.split(","):
                files.append(groups / "memory" / inside / "memory.limit_in_bytes")
    found = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found.append(int(file.read_text()))
    return min(found, default=None)
