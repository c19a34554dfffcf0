"""Gives memory that was freed back to the system.

glibc keeps what is freed between blocks that are still in use. A worker needs most of its memory in its first second, when
everything is fetched and nothing has ended: of 40 MB that malloc had taken then, 25 were free ever after, and stayed with the
process. malloc_trim returns such pages; it takes 1 to 3 ms.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

GROWTH_BYTES = 1 << 20  # an idle process does not grow, and pays nothing
STATM = Path("/proc/self/statm")


class FreeMemory:
    """Called about once a second by one thread; other threads go on meanwhile.

    trim      returns free pages to the system; None: this system cannot
    resident  bytes of this process that are in memory
    """

    def __init__(
        self, trim: Callable[[], object] | None = None, resident: Callable[[], int] = lambda: resident_bytes()
    ) -> None:
        self._trim, self._resident = trim or malloc_trim(), resident
        self._kept = 0  # bytes after the last trim

    def give_back(self) -> None:
        """Return what is free, if the process has grown since the last time."""
        if self._trim is None or self._resident() < self._kept + GROWTH_BYTES:
            return
        self._trim()
        self._kept = self._resident()


def malloc_trim() -> Callable[[], object] | None:
    """glibc's function; None with another C library."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return lambda: trim(ctypes.c_size_t(0))


def resident_bytes() -> int:
    """RSS; 0 where the system does not say."""
    try:
        return int(STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
