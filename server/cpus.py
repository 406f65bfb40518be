"""Which CPUs this process may use, what they can do, and which one a pool's threads leave to their caller."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from server.cgroups import CGROUPS, OWN_CGROUPS, controller_folders

CPU_INFO = Path("/proc/cpuinfo")
OWN_THREADS = Path("/proc/self/task")
VNNI = {"avx512_vnni", "avx_vnni"}  # multiply u8 by s8 into 32 bits; without them, 16 bits saturate


def usable_cpus(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Count the CPUs that affinity and cgroup quotas allow; libraries tend to count those of the host."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in controller_folders("cpu", cgroups, own_cgroups):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(round(int(quota) / int(period)))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # -1 is no quota
                found.append(round(int(quota) / int(period)))
    return max(1, min(found))


def has_vnni(cpu_info: Path = CPU_INFO) -> bool:
    """Return whether this is an x86 processor that multiplies int8 exactly; if unknown, it is not."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not VNNI.isdisjoint(flags)


class PoolThreads:
    """The threads of a pool, kept off the CPU of its caller, which spins until they are done.

    Where CPUs are few or busy, Linux wakes a thread on the CPU that it last ran on, without looking for an idle one. If
    that is the caller's, the thread waits until the caller's time slice ends, 3 to 4 ms, and the caller waits for it.
    Source: docs/decisions/0009-cpu-time.md; select_idle_cpu in kernel/sched/fair.c of Linux.
    """

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._told: tuple[int, set[int]] | None = None  # the caller's CPU and those that it may use, at the last call
        self._current_cpu = getattr(ctypes.pythonapi, "sched_getcpu", None)  # which Linux has

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Regard every thread that starts inside the block as one of the pool's."""
        before = _own_threads()
        yield
        self._threads |= _own_threads() - before
        self._told = None

    def keep_off(self) -> None:
        """Keep the threads off the caller's CPU.

        Units: 0.2 us while nothing has changed; 0.5 us for each thread if the caller has moved, 1.4 us among 128 CPUs.
        """
        if self._current_cpu is None or not self._threads:
            return
        cpu, allowed = seen = self._current_cpu(), os.sched_getaffinity(0)
        if seen == self._told:
            return
        self._told = seen
        for thread in tuple(self._threads):
            try:
                os.sched_setaffinity(thread, allowed - {cpu})
            except ProcessLookupError:  # it has ended
                self._threads.discard(thread)
            except OSError:  # there is no other CPU
                pass


def _own_threads() -> set[int]:
    try:
        return {int(thread.name) for thread in OWN_THREADS.iterdir()}
    except OSError:  # not Linux
        return set()
