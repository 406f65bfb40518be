"""What CPUs this process may really use, and what they can do."""

import contextlib
import os
from pathlib import Path

from server.groups import GROUPS, OWN_GROUPS, folders

CPU_INFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni"}  # either multiplies u8 by s8 into 32 bits; without, 16 bits saturate


def usable_cpus(groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> int:
    """Count the CPUs of the process's affinity and its control groups' quotas; libraries tend to count the host's."""
    found = [len(os.sched_getaffinity(0))]
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
