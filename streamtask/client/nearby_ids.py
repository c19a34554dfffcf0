"""Task ids of a client under load: requests that leave together lie in few partitions.

librdkafka sends each partition's batch in a request of its own, and each costs the broker 100 µs of CPU and the client 27. Of
5,000 requests a second, 50 leave every 10 ms; placed by random ids, they lay in 27 of 36 partitions (three bands of twelve),
and their workers' transactions in all twelve of tasks.status. So under load a client draws ids whose keys the partitioner puts
into one twelfth of the partitions, for as many requests as it sends in 10 ms, then into the next twelfth.

Always true: an id is a new UUIDv7, and its record lies where murmur2 puts its key, like any other. Below RATE_MIN, measured
over a second, ids are as random as before: tasks that take long, or a single burst of them, are spread over the workers by
chance and not by turns. Idea: KIP-480, the sticky partitioner, for records with a key.
"""

from __future__ import annotations

import random
import time
from typing import Final

from streamtask.domain.identity import new_task_id
from streamtask.domain.partitioner import block_mixed, finished, prefix_hashed

RATE_MIN: Final = 1_000.0  # requests a second: from here on, 10 or more leave together
TOGETHER_S: Final = 0.01  # of requests that lie together
GROUPS: Final = 12  # of partitions: an id is found after as many tries on average
WINDOW_S: Final = 1.0  # over which the rate is measured
ENDINGS: Final = 1_024  # of ids: 85 of them lie in one group, more than leave in a millisecond
_PREFIX, _LENGTH = 32, 36  # characters of an id that are drawn once a millisecond, of all


class NearbyIds:
    """The ids of one client. It belongs to the client's event loop."""

    def __init__(self) -> None:
        self.partitions = 0  #: of the topics of requests, as far as receipts have shown
        self._count, self._since_s = 0, time.monotonic()
        self._together = 0  # requests that lie together; 0: the rate is low
        self._left = 0  # of those
        self._first = random.randrange(1 << 16)  # partition of the present group; each client begins elsewhere
        self._made_ms = -1
        self._prefix, self._hashed = "", 0
        self._endings: list[tuple[str, int]] = []
        self._next = 0  # of the endings

    def new(self) -> str:
        """A new task id."""
        self._count += 1
        passed_s = time.monotonic() - self._since_s
        if passed_s >= WINDOW_S:
            rate = self._count / passed_s
            self._together = round(rate * TOGETHER_S) if rate >= RATE_MIN else 0
            self._count, self._since_s = 0, self._since_s + passed_s
        return self._nearby() if self._together and self.partitions > 1 else new_task_id()

    def _nearby(self) -> str:
        partitions = self.partitions
        width = -(-partitions // GROUPS)
        if self._left <= 0:
            self._left = self._together
            self._first = (self._first + width) % partitions
        self._left -= 1
        first = self._first
        while True:
            now_ms = time.time_ns() // 1_000_000
            if now_ms != self._made_ms or self._next >= ENDINGS:
                self._draw(now_ms)
            hashed, endings = self._hashed, self._endings
            for place in range(self._next, ENDINGS):
                text, mixed = endings[place]
                if (finished(hashed ^ mixed) % partitions - first) % partitions < width:
                    self._next = place + 1
                    return self._prefix + text
            self._next = ENDINGS

    def _draw(self, now_ms: int) -> None:
        """Draw the part of the next ids that they have in common: all but 16 of their random bits."""
        if not self._endings:
            texts = [f"{number:04x}" for number in random.SystemRandom().sample(range(1 << 16), ENDINGS)]
            self._endings = [(text, block_mixed(text.encode())) for text in texts]
        self._prefix = new_task_id()[:_PREFIX]
        self._hashed = prefix_hashed(self._prefix.encode(), _LENGTH)
        self._made_ms, self._next = now_ms, 0
