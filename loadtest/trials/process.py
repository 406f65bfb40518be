"""Memory, descriptors and threads of a process and its descendants, on Linux."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

MB = 1e6
PROCESSES = Path("/proc")

Family = dict[int, dict[str, str]]  # the status of each process


@dataclass(frozen=True, slots=True)
class Held:
    """What they hold together."""

    resident_mb: float  # shared pages count once per process
    descriptors: int
    threads: int


def held(pid: int) -> Held:
    """Read what a process and its descendants hold now."""
    family = _family(pid)
    return Held(
        _resident_mb(family, "VmRSS"),
        sum(_num_descriptors(one) for one in family),
        sum(int(status.get("Threads", 0)) for status in family.values()),
    )


def resident_mb(pid: int, field: str) -> float:
    """Read the memory of a process and its descendants: VmRSS is current, VmHWM the sum of their peaks."""
    return _resident_mb(_family(pid), field)


def _resident_mb(family: Family, field: str) -> float:
    return sum(int(status.get(field, 0)) for status in family.values()) * 1024 / MB


def _family(pid: int) -> Family:
    """Find a process and its descendants, with the status that Linux reports of each.

    Raises: ValueError: it has ended.
    """
    statuses = {}
    for folder in PROCESSES.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                statuses[int(folder.name)] = _status(folder)
    if pid not in statuses or statuses[pid]["State"] == "Z":  # a zombie holds nothing
        raise ValueError(f"process {pid} has ended")
    family: Family = {}
    newest = {pid}
    while newest:
        family |= {one: statuses[one] for one in newest}
        newest = {one for one, status in statuses.items() if int(status["PPid"]) in newest}
    return family


def _status(folder: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (folder / "status").read_text().splitlines())
    return {name: value.split()[0] for name, _, value in lines if value.strip()}


def _num_descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended
        return len(list((PROCESSES / str(pid) / "fd").iterdir()))
    return 0
