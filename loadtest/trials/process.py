"""What a process holds, on Linux: memory, descriptors, threads."""

from dataclasses import dataclass
from pathlib import Path

MB = 1e6


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at an instant."""

    resident_mb: float
    descriptors: int
    threads: int


def held(pid: int) -> Held:
    """Look now."""
    return Held(resident_mb(pid, "VmRSS"), len(list(Path(f"/proc/{pid}/fd").iterdir())), int(_status(pid, "Threads")))


def resident_mb(pid: int, field: str) -> float:
    """Read a process's memory: VmRSS is now, VmHWM the most so far."""
    return int(_status(pid, field)) * 1024 / MB


def _status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split()[1]
    raise ValueError(f"/proc/{pid}/status has no {field}")
