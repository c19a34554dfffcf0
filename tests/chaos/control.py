"""The strip of shared memory through which a chaos run tells a held worker where to stand still, and what time it is."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

POINTS = (
    "",  # nowhere
    "poll",  # inside poll: records fetched, not handed over
    "begin",  # between begin and the first produce
    "produced",  # everything flushed, before the offsets
    "offsets",  # after the offsets, before the commit
    "commit",  # inside commit
    "claim_fenced",  # inside a claim: the former owners are fenced, nothing is recorded
    "claim_recorded",  # inside a claim: it is recorded, nothing is read yet
    "revoke",  # inside revoke: nothing is handed over
    "revoke_committed",  # inside revoke: handed over, not returned
)
_LAYOUT = struct.Struct("<Bq")


class Control:
    """point: where the process stops itself once; clock_ms: added to its wall clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    @classmethod
    def create(cls, path: Path) -> Control:
        path.write_bytes(bytes(_LAYOUT.size))
        return cls(path)

    @property
    def point(self) -> str:
        return POINTS[self._memory[0]]

    @point.setter
    def point(self, name: str) -> None:
        self._memory[0] = POINTS.index(name)

    @property
    def clock_ms(self) -> int:
        return int(_LAYOUT.unpack_from(self._memory)[1])

    @clock_ms.setter
    def clock_ms(self, ms: int) -> None:
        struct.pack_into("<q", self._memory, 1, ms)
