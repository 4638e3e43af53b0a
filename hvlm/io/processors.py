"""How many processors this process may use, which in a container or under a batch system are fewer than there are."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_processors(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Those that it may run on, and no more than it is given time for (``docker run --cpus=2``, SLURM)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = _shares(cgroups, own)
    return max(1, min([count, *(math.ceil(share) for share in shares)]))


def _shares(cgroups: Path, own: Path) -> list[float]:
    """Processors' worth of time that the process's control groups allow, where they say so."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = cgroups if not controllers else cgroups / "cpu" if "cpu" in controllers.split(",") else None
        if root is None:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):  # in a container the path may not be there, but its root is
            found += _share(group)
            if group == root:
                break
    return found


def _share(group: Path) -> list[float]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    except (OSError, ValueError):
        return []
