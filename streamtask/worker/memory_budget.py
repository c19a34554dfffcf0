"""How much memory a worker process may hold, and how it is divided.

The budget is `memory_mb`; without it, a part of the container's limit, or 256 MiB. It covers what grows with the work, not the
process itself (60 to 80 MB of code, libraries and threads) and not the objects that handlers create. Its parts, in sixteenths:

    5  waiting  requests from their fetch until their end is committed (core/memory.py)
    5  active   decoded parameters of running tasks, results that are not committed
    2  batch    the events of one transaction, once here and once encoded in librdkafka's queue
    2  fetch    what librdkafka has fetched ahead, and what was taken from it and not examined yet
    1  readers  of tasks.control, and of tasks.status while a shard recovers
    1  spare    values that exist twice while they are decoded, and what the allocator cannot give back
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamtask.config.container import CGROUPS_FILE, CGROUPS_ROOT, memory_limit

MIB = 1 << 20
DEFAULT_MB = 256
DERIVED_MB_MIN, DERIVED_MB_MAX = 32, 1_024
LIMIT_SHARE = (
    2  # a worker's budget is half of a container's limit: the rest is for the process, its supervisor, handlers
)
BATCH_BYTES_MAX = 16 * MIB  # a larger one makes no transaction cheaper
FETCH_KBYTES_MIN, FETCH_KBYTES_MAX = 512, 16_384


@dataclass(frozen=True, slots=True)
class Budget:
    """The parts of one worker process. source: `memory_mb`, `cgroup` or `default`, the origin of the number."""

    memory_mb: int
    source: str = "memory_mb"

    def limits(self) -> dict[str, int]:
        """The fields of EngineConfig. The batch's part holds two copies."""
        return {
            "waiting_bytes_max": self._sixteenths(5),
            "active_bytes_max": self._sixteenths(5),
            "batch_bytes_max": min(self._sixteenths(1), BATCH_BYTES_MAX),
        }

    @property
    def fetch_kbytes(self) -> int:
        """For librdkafka's queue of requests. librdkafka checks this limit before a fetch and no longer counts what was
        taken, so up to three times as much may be held: in its queue, taken for a poll, and kept while the group is served.

        One poll, and so one transaction, gets at most what is queued: with a quarter of this, tasks of 20 KB took 2.7 times as
        many transactions.
        """
        return self._kbytes(24)

    @property
    def tail_kbytes(self) -> int:
        """For the reader of both topics."""
        return self._kbytes(32)

    def log_fields(self) -> dict[str, object]:
        """The fields for the operator."""
        return {"memory_mb": self.memory_mb, "memory_by": self.source}

    def _kbytes(self, part: int) -> int:
        return max(FETCH_KBYTES_MIN, min(self.memory_mb * 1_024 // part, FETCH_KBYTES_MAX))

    def _sixteenths(self, parts: int) -> int:
        return self.memory_mb * MIB * parts // 16


def budget_of(
    memory_mb: int | None, processes: int = 1, *, limit: int | Path | None = CGROUPS_FILE, root: Path = CGROUPS_ROOT
) -> Budget:
    """The budget of each of `processes` workers that share a container.

    memory_mb  the setting; None: not set
    limit      the container's limit in bytes; None: there is none; a path: the file that names the control groups
    """
    if memory_mb is not None:
        return Budget(memory_mb)
    bytes_max = memory_limit(limit, root) if isinstance(limit, Path) else limit
    if bytes_max is None:
        return Budget(DEFAULT_MB, "default")
    derived = bytes_max // MIB // LIMIT_SHARE // processes
    return Budget(max(DERIVED_MB_MIN, min(derived, DERIVED_MB_MAX)), "cgroup")
