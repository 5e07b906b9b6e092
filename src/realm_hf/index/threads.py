"""How many processor threads an index may take.

A launcher gives each of its ranks one (`accelerate launch` sets OMP_NUM_THREADS=1), which suits their training and not
k-means over a million vectors while all ranks but one wait for it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cores"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may run on: its affinity, and no more than a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota_in_cores(_QUOTA.read_text(encoding="ascii")) if _QUOTA.is_file() else cores))


def _quota_in_cores(written: str) -> int:
    """Of the file's "QUOTA PERIOD", in microseconds, or "max PERIOD" for none."""
    quota, period = written.split()
    return 1 << 30 if quota == "max" else math.ceil(int(quota) / int(period))
