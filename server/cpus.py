"""What CPUs this process may really use, and what they can do."""

import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CPU_INFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni"}  # either multiplies u8 by s8 into 32 bits; without, 16 bits saturate


def usable_cpus(cpu_max: Path = CPU_MAX) -> int:
    """Count the CPUs of the process's affinity and its cgroup's quota; libraries tend to count the host's."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cpus, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cpus


def has_vnni(cpu_info: Path = CPU_INFO) -> bool:
    """Tell whether the processor is an x86 one that multiplies int8 exactly; where nothing says so, it is not."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not VNNI.isdisjoint(flags)
