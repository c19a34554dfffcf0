"""What this process may use of its machine: the memory and the cores that its control groups and its affinity leave it.

In a container with `--cpus 1.5` on a machine with 16 cores, `cores()` is 1, and in one without a limit it is 16. A control
group limits what is below it too, so every parent counts, in version 1 and version 2 of the file system.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" of memory as a number of about 2**63
CGROUPS_FILE, CGROUPS_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Cores:
    """How many, and what limits them: the `cores` that the process may run on, or the `quota` of a control group."""

    count: int
    source: Literal["cores", "quota"] = "cores"


def cores(groups: Path = CGROUPS_FILE, root: Path = CGROUPS_ROOT, *, affinity: int | None = None) -> Cores:
    """The whole cores that this process may use, at least 1.

    affinity  how many it may run on; None: ask the system
    """
    counted = affinity or _affinity()
    quota = min(_quotas(groups, root), default=None)
    if quota is None or quota >= counted:
        return Cores(counted)
    return Cores(max(1, quota), "quota")


def memory_limit(groups: Path = CGROUPS_FILE, root: Path = CGROUPS_ROOT) -> int | None:
    """The smallest memory limit of this process's control groups and their parents, in bytes; None if there is none."""
    places = _folders("memory", groups, root)
    texts = (_text(folder / ("memory.max" if v2 else "memory.limit_in_bytes")) for folder, v2 in places)
    return min((int(text) for text in texts if text.isdecimal() and int(text) < UNLIMITED), default=None)


def _affinity() -> int:
    counted = getattr(os, "process_cpu_count", None)  # from Python 3.13 on; it also follows PYTHON_CPU_COUNT
    if counted is not None:
        return counted() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(groups: Path, root: Path) -> Iterator[int]:
    """Those of the control groups, in whole cores: 1 for 150 ms of CPU time in every 100 ms, 0 for 50 ms."""
    for folder, v2 in _folders("cpu", groups, root):
        if v2:
            words = _text(folder / "cpu.max").split()
        else:
            words = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
        # No limit is `max`, or -1 in version 1.
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            yield int(words[0]) // int(words[1])


def _folders(controller: str, groups: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of the process's control groups and of their parents that may limit this; True: of version 2."""
    for line in _text(groups).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            # On hosts with both versions, version 2 is mounted as `unified`.
            base = root / "unified" if (root / "unified").is_dir() else root
        elif controller in controllers.split(","):
            # Usually a link to the folder that is named after all its controllers, `cpu,cpuacct`.
            base = root / controller if (root / controller).is_dir() else root / controllers
        else:
            continue
        # Inside a container the path may be the host's: then only the root of the mount is ours, and exists.
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:depth]), not controllers


def _text(file: Path) -> str:
    """What the file holds; "" if it cannot be read: it does not exist, or this is not Linux."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
