"""When something must happen: an attempt must end, a waiting request may start, a trial is over.

There is one instance per clock (wall, monotonic); it reads neither. Always true: at most one deadline per (key, kind); the
heap holds every deadline, and about as many that were disarmed or replaced before it is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_GARBAGE_MIN = 64  # below this size a rebuild costs more than it frees


class Deadlines(Generic[Key]):
    """Deadlines in milliseconds of one clock. `kind` distinguishes several deadlines of one key."""

    __slots__ = ("_armed", "_heap", "_put_off", "_sequence")

    def __init__(self) -> None:
        self._armed: dict[tuple[Key, int], tuple[int, int]] = {}  # → (due_ms, sequence)
        self._heap: list[tuple[int, int, Key, int]] = []  # (due_ms, sequence, key, kind); sequences are unique
        self._put_off: dict[tuple[Key, int], None] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, key: Key, due_ms: int, kind: int) -> None:
        """Set the deadline, replacing one with the same key and kind."""
        self._sequence = sequence = self._sequence + 1
        self._armed[key, kind] = (due_ms, sequence)
        heapq.heappush(self._heap, (due_ms, sequence, key, kind))
        self._tidy()

    def disarm(self, key: Key, kind: int) -> None:
        """Remove the deadline, if there is one."""
        self._put_off.pop((key, kind), None)
        if self._armed.pop((key, kind), None) is not None:
            self._tidy()

    def put_off(self, key: Key, kind: int) -> None:
        """Postpone a due deadline that cannot be acted on yet: the next call of `due` returns it. Schedules no wake-up."""
        self._put_off[key, kind] = None

    def due(self, now_ms: int) -> list[tuple[Key, int]]:
        """Remove and return all that are due, earliest first; ties in the order in which they were armed."""
        heap, armed, out = self._heap, self._armed, list(self._put_off)
        self._put_off.clear()
        while heap and heap[0][0] <= now_ms:
            due_ms, sequence, key, kind = heapq.heappop(heap)
            if armed.get((key, kind)) == (due_ms, sequence):
                del armed[key, kind]
                out.append((key, kind))
        return out

    def next_ms(self) -> int | None:
        """When the earliest deadline is due; None if there is none."""
        heap, armed = self._heap, self._armed
        while heap:
            due_ms, sequence, key, kind = heap[0]
            if armed.get((key, kind)) == (due_ms, sequence):
                return due_ms
            heapq.heappop(heap)
        return None

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._armed) + _GARBAGE_MIN:
            self._heap = [(due_ms, sequence, key, kind) for (key, kind), (due_ms, sequence) in self._armed.items()]
            heapq.heapify(self._heap)
