"""What CPUs this process may really use, what they can do, and which threads share one."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from server.groups import GROUPS, OWN_GROUPS, folders

CPU_INFO = Path("/proc/cpuinfo")
OWN_THREADS = Path("/proc/self/task")
VNNI = {"avx512_vnni", "avx_vnni"}  # either multiplies u8 by s8 into 32 bits; without, 16 bits saturate


def usable_cpus(groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> int:
    """Count the CPUs of the process's affinity and its control groups' quotas; libraries tend to count the host's."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in folders("cpu", groups, own_groups):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(round(int(quota) / int(period)))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # -1 is no quota
                found.append(round(int(quota) / int(period)))
    return max(1, min(found))


def has_vnni(cpu_info: Path = CPU_INFO) -> bool:
    """Tell whether the processor is an x86 one that multiplies int8 exactly; where nothing says so, it is not."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not VNNI.isdisjoint(flags)


class Helpers:
    """Threads that another one spins for: kept off the CPU that it runs on.

    With few CPUs Linux may wake a thread on the CPU that it last ran on, though that one is taken and another idle. If
    it is taken by who spins for that thread, both wait until the time slice ends, 3 to 4 ms. Elsewhere nothing changes.
    Source: docs/decisions/0009-cpu-time.md; select_idle_cpu of Linux's kernel/sched/fair.c.
    """

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._kept_off = -1

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Count the threads that start meanwhile among them."""
        before = _own_threads()
        yield
        self._threads |= _own_threads() - before

    def keep_off(self) -> None:
        """Keep them off the caller's CPU: half a microsecond for each, none while the caller stays where it is."""
        if not self._threads:
            return
        cpu = ctypes.pythonapi.sched_getcpu()
        if cpu != self._kept_off:
            self._kept_off = cpu
            others = os.sched_getaffinity(0) - {cpu}
            with contextlib.suppress(OSError):  # there is no other CPU, or the CPUs that may be used have just changed
                for thread in self._threads:
                    os.sched_setaffinity(thread, others)


def _own_threads() -> set[int]:
    try:
        return {int(thread.name) for thread in OWN_THREADS.iterdir()}
    except OSError:  # not Linux
        return set()
