"""How many threads this process may use, and why; a container's CPU quota respected by every library.

OpenMP, and with it torch, numba, scikit-learn and OpenBLAS, counts the CPUs that a process may run on, and knows
nothing of a control group's quota: in a container with 2 CPUs of 64 it starts 64 threads, which wait for each other.
`keep_to_quota`, called before torch is loaded, writes the quota into OMP_NUM_THREADS, which all of them read.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VARIABLE = "OMP_NUM_THREADS"
_kept: list[Quota] = []


class Quota(NamedTuple):
    """The tightest CPU quota of the control groups that this process is in."""

    cpus: float
    """CPU seconds a second."""
    path: Path
    """The file that says so."""

    @property
    def threads(self) -> int:
        """The whole number of threads that can use it up."""
        return max(1, math.ceil(self.cpus))


def keep_to_quota(root: Path = Path("/")) -> None:
    """Set OMP_NUM_THREADS to the quota, where there is one below the number of CPUs.

    What the user has set stays, and so does what torch has read already.
    """
    if os.environ.get(VARIABLE) or "torch" in sys.modules:
        return
    quota = cpu_quota(root)
    if quota is not None and quota.threads < usable_cpus():
        os.environ[VARIABLE] = str(quota.threads)
        _kept.append(quota)


def usable_cpus() -> int:
    """CPUs that this process may run on (taskset, cpusets), or those of the machine where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reason(threads: int) -> str:
    """Where a process's number of threads comes from, in words."""
    if _kept and threads == _kept[-1].threads:
        return f"a quota of {_kept[-1].cpus:g} CPUs ({_kept[-1].path})"
    given = os.environ.get(VARIABLE)
    if given and given.split(",")[0].strip() == str(threads):
        return f"{VARIABLE}={given}"
    usable, all_cpus = usable_cpus(), os.cpu_count() or 1
    if threads != usable:
        return "torch.set_num_threads, or a library's setting"
    return f"{usable} CPUs" if usable == all_cpus else f"CPU affinity: {usable} of {all_cpus} CPUs"


def cpu_quota(root: Path = Path("/")) -> Quota | None:
    """The tightest quota of this process's control groups, version 2 or 1, and of those above them; None without any.

    Args:
        root: where `proc` and the mount points are looked for.
    """
    return min(_quotas(root), default=None)


def _quotas(root: Path) -> Iterator[Quota]:
    for kind, mount, group in _cpu_groups(root):
        # a group's own quota, then its parents'; seen from inside a container only the mount's root may be there
        for folder in [group, *group.parents]:
            if folder.is_relative_to(mount):
                quota = _unified(folder) if kind == "cgroup2" else _legacy(folder)
                if quota is not None:
                    yield quota


def _cpu_groups(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """(kind of file system, mount point, this process's group) of every hierarchy that holds the cpu controller."""
    mounts = {}
    for line in _lines(root / "proc/self/mounts"):
        _, place, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            mounts[kind] = root / place.lstrip("/").replace("\\040", " ")
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        kind = "cgroup" if "cpu" in controllers.split(",") else "cgroup2" if not controllers else ""
        if kind in mounts:
            yield kind, mounts[kind], mounts[kind] / group.lstrip("/")


def _unified(folder: Path) -> Quota | None:
    path = folder / "cpu.max"
    limit, _, period = next(iter(_lines(path)), "max").partition(" ")
    return None if limit == "max" else Quota(int(limit) / int(period or 100_000), path)


def _legacy(folder: Path) -> Quota | None:
    path = folder / "cpu.cfs_quota_us"
    limit = int(next(iter(_lines(path)), "-1"))
    period = int(next(iter(_lines(folder / "cpu.cfs_period_us")), "100000"))
    return None if limit <= 0 else Quota(limit / period, path)


def _lines(path: Path) -> list[str]:
    """A file's lines; none where it is not there, as on a system without control groups."""
    try:
        return path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
