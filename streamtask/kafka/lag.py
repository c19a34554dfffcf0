"""Where the logs of some cells end, asked now and then by a thread that is not the owner.

A client of its own that never joins, reads or commits. What the owner's consumer knows of the ends is not enough: of a paused
cell, which is where the backlog is, it learns nothing. Always true: no call outlives `timeout_s` by much, and no operating
error is raised: the last answer stays, and its age is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import KafkaException, TopicPartition

from streamtask.config import TopicNames
from streamtask.kafka import claim
from streamtask.kafka.settings import KafkaSettings
from streamtask.ports import Cell

EVERY_S = 5.0
TIMEOUT_S = 3.0
_LATEST = -1  # the protocol's special timestamp: the end of the log


class LogEnds:
    """Follows the ends of the cells that `wanted` names, from start() to close().

    ends   {cell: offset behind its last record}, as of the last answer
    """

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        wanted: Callable[[], Iterable[Cell]],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._settings, self._names, self._wanted, self._every_s = settings, names, wanted, every_s
        self.ends: Mapping[Cell, int] = {}
        self._asked_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="streamtask-log-ends", daemon=True)

    @property
    def age_s(self) -> float | None:
        """Seconds since the last answer; None: there was none yet."""
        asked_s = self._asked_s
        return None if asked_s is None else time.monotonic() - asked_s

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """The thread ends by itself: a call that is under way is not waited for."""
        self._stop.set()

    def _follow(self) -> None:
        reader = claim.reader(self._settings, self._names.group)
        topics, wait_s = self._names.requests, 0.0
        while not self._stop.wait(wait_s):
            cells = tuple(self._wanted())
            wait_s = self._every_s if cells else min(1.0, self._every_s)
            if not cells:
                continue
            try:
                found = reader.offsets_for_times(
                    [TopicPartition(topics[band], shard, _LATEST) for band, shard in cells], timeout=TIMEOUT_S
                )
            except KafkaException:
                continue  # asked again in a while; age_s grows
            self.ends = {
                cell: part.offset
                for cell, part in zip(cells, found, strict=True)
                if part.error is None and part.offset >= 0
            }
            self._asked_s = time.monotonic()
        reader.close()
