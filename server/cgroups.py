"""The control groups that this process is in, where Linux says what it may use: of the new kind and the old."""

import contextlib
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def controller_folders(controller: str, cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> list[Path]:
    """List where a controller's files may be; most of these folders are not there, and no two kinds share a name."""
    found = [cgroups, cgroups / controller]  # where a container sees its own
    with contextlib.suppress(OSError):  # not Linux
        for line in own_cgroups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")  # of a container it is often "/", or the host's and not to be seen here
            if not controllers:
                found.append(cgroups / inside)
            elif controller in controllers.split(","):
                found.append(cgroups / controller / inside)
    return found
