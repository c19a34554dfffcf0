"""What a worker notices about the records that others write: keys in a partition where murmur2 would not put them, priorities
outside of their band, and records of tasks.control or tasks.status that cannot be decoded. Of requests it checks a sample
of each poll. It reports each topic at most once an hour, with a count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from streamtask.config import TopicNames
from streamtask.domain.model import RequestRecord
from streamtask.domain.partitioner import partition_of
from streamtask.kafka.tail import TailRecord
from streamtask.observability import event_log

HOUR_S = 3600.0
KEYS_LOOKED_AT = 4  # per poll: 8 µs each


class Noticing:
    """The checks of one worker; they belong to its owner thread."""

    def __init__(self, names: TopicNames) -> None:
        self._names = names
        self._reported_s: dict[str, float] = {}  # up to two kinds of reports per request topic

    def look(self, records: Sequence[RequestRecord], partitions: int) -> None:
        """Check a sample: is the key in the partition where murmur2 puts it, and does the priority fit its band?"""
        names = self._names
        for record in records if len(records) <= KEYS_LOOKED_AT else random.sample(records, KEYS_LOOKED_AT):
            topic, band = names.requests[record.band], names.bands[record.band]
            # partitions is 0 while a topic is missing from the brokers' metadata
            if record.key and partitions and (belongs := partition_of(record.key, partitions)) != record.partition:
                key = record.key.decode(errors="replace")[:80]
                fields = {"topic": topic, "key": key, "partition": record.partition, "offset": record.offset}
                self._hourly("partitioner_differs", topic, {**fields, "belongs": belongs})
            if not band.priority_min <= record.priority <= band.priority_max:
                self._hourly("priority_outside_band", topic, {"topic": topic, "priority": record.priority})

    def _hourly(self, name: str, topic: str, fields: dict[str, object]) -> None:
        seen = event_log.count(f"{name}:{topic}")
        now_s = time.monotonic()
        if now_s - self._reported_s.get(f"{name}:{topic}", -HOUR_S) >= HOUR_S:
            self._reported_s[f"{name}:{topic}"] = now_s
            event_log.emit(name, {**fields, "seen": seen})


class PassedOver:
    """Counts unreadable records of one topic: any client that may write to it can put any bytes there. It reports one at once,
    and then one per hour. Belongs to one thread.
    """

    def __init__(self) -> None:
        self.count = 0
        self._reported_s = -HOUR_S

    def add(self, record: TailRecord, why: Exception) -> None:
        """Count this record as passed over."""
        self.count += 1
        now_s = time.monotonic()
        if now_s - self._reported_s >= HOUR_S:
            self._reported_s = now_s
            fields = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            event_log.emit("record_passed_over", {**fields, "why": str(why)[:200], "seen": self.count})
