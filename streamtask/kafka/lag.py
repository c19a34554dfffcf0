"""Where the logs of some cells end, queried periodically by a thread that is not the owner.

It has its own client, which never joins, reads or commits. What the owner's consumer knows of the ends is not enough: it
learns nothing of a paused cell, which is where the backlog is. Always true: no call exceeds `timeout_s` by much, and no
operating error is raised: the last answer stays, with its age. It also knows how long no broker has answered: an idle owner
queries none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.ports import Cell
from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.kafka import takeover

EVERY_S = 5.0
TIMEOUT_S = 3.0
_LATEST = -1  # the protocol's special timestamp for the end of the log


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the log ends at one moment.

    ends      {cell: offset after its last record}, from the last answer
    age_s     since that answer; None: there was none yet
    silent_s  since the first query that no broker has answered; 0: the last one was answered
    """

    ends: Mapping[Cell, int] = field(default_factory=dict)
    age_s: float | None = None
    silent_s: float = 0.0


class LogEnds(HasLifecycle):
    """Follows the ends of the cells that `wanted` returns, from start() to stop()."""

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        wanted: Callable[[], Iterable[Cell]],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._settings, self._names, self._wanted, self._every_s = settings, names, wanted, every_s
        self._ends: Mapping[Cell, int] = {}
        self._answered_s: float | None = None
        self._silent_since_s: float | None = None
        self._stop = threading.Event()
        self._life = Lifecycle("The reader of log ends")
        self._thread = threading.Thread(target=self._follow, name="streamtask-log-ends", daemon=True)

    def seen(self) -> Seen:
        """The present state. May be called from any thread."""
        now_s, answered_s, since_s = time.monotonic(), self._answered_s, self._silent_since_s
        return Seen(
            self._ends,
            None if answered_s is None else now_s - answered_s,
            0.0 if since_s is None else now_s - since_s,
        )

    def start(self) -> None:
        """Raises RuntimeError if it was started or stopped before."""
        self._life.start(self._thread.start)

    def stop(self, timeout_s: float = 0.0) -> None:
        """Tell the thread to end, and wait for a broker call in progress until the time is up."""
        self._life.stop(self._stop.set, timeout_s)
        if self.started:
            self._thread.join(timeout_s)

    def _follow(self) -> None:
        reader = takeover.reader(self._settings, self._names.group)
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            cells = tuple(self._wanted())
            wait_s = self._every_s if cells else min(1.0, self._every_s)
            asked_s = time.monotonic()
            try:
                if cells:
                    self._ends = self._ask(reader, cells)
                    self._answered_s = time.monotonic()
                else:  # nothing to learn except that a broker answers
                    reader.list_topics(self._names.requests[0], timeout=TIMEOUT_S)
            except KafkaException:  # asked again later
                if self._silent_since_s is None:
                    self._silent_since_s = asked_s
            else:
                self._silent_since_s = None
        reader.close()

    def _ask(self, reader: Consumer, cells: Iterable[Cell]) -> Mapping[Cell, int]:
        """Raises KafkaException if no broker answered for any of them."""
        topics = self._names.requests
        asked = [TopicPartition(topics[band], shard, _LATEST) for band, shard in cells]
        found = reader.offsets_for_times(asked, timeout=TIMEOUT_S)
        known = {
            cell: part.offset
            for cell, part in zip(cells, found, strict=True)
            if part.error is None and part.offset >= 0
        }
        if not known:
            raise KafkaException(found[0].error)
        return known
