"""What tests ask of other processes."""

from __future__ import annotations

import psutil


def gone(pid: int) -> bool:
    """It can run nothing any more: not there, a zombie, or one that the kernel is taking apart (no memory is left)."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.memory_info().vms == 0
    except psutil.NoSuchProcess:
        return True
