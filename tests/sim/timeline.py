"""Simulated time: what happens next, in the order of time, ties broken by the seed.

Invariant: `now` never falls; an action runs at its own time and at no other.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

Action = Callable[[], object]


class Timeline:
    """A heap of things to come. Times are whole milliseconds since the start of the run."""

    __slots__ = ("_heap", "_rng", "_serial", "now")

    def __init__(self, rng: random.Random) -> None:
        self.now = 0
        self._rng = rng
        self._serial = 0
        self._heap: list[tuple[int, float, int, Action]] = []

    def after(self, delay_ms: int, action: Action) -> None:
        """Run `action` after so many milliseconds; among those of one millisecond the seed chooses."""
        assert delay_ms >= 0, f"{delay_ms} ms lie in the past"
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_ms, self._rng.random(), self._serial, action))

    def step(self) -> bool:
        """Run the next action. False when nothing is left to happen."""
        if not self._heap:
            return False
        when, _, _, action = heapq.heappop(self._heap)
        assert when >= self.now, f"time fell from {self.now} to {when}"
        self.now = when
        action()
        return True
