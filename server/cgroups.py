"""The control groups of this process, versions 1 and 2, in which Linux keeps its limits."""

import contextlib
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def controller_folders(controller: str, cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> list[Path]:
    """List the folders where a controller's files may be; most do not exist, and the versions' file names differ."""
    found = [cgroups, cgroups / controller]  # where a container sees its own group
    with contextlib.suppress(OSError):  # not Linux
        for line in own_cgroups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")  # in a container often "/", or the host's path, which does not exist here
            if not controllers:
                found.append(cgroups / inside)
            elif controller in controllers.split(","):
                found.append(cgroups / controller / inside)
    return found
