"""The control groups that this process is in, where Linux says what it may use: of the new kind and the old."""

import contextlib
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def folders(controller: str, groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> list[Path]:
    """List where a controller's files may be; most of these folders are not there, and no two kinds share a name."""
    found = [groups, groups / controller]  # where a container sees its own
    with contextlib.suppress(OSError):  # not Linux
        for line in own_groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")  # of a container it is often "/", or the host's and not to be seen here
            if not controllers:
                found.append(groups / inside)
            elif controller in controllers.split(","):
                found.append(groups / controller / inside)
    return found
