"""Writes what a worker would write, for tests of the audit: every record where and when the test says."""

from __future__ import annotations

import json
import time
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from streamtask.codec import encode_dead, encode_status
from streamtask.config import TopicNames
from streamtask.domain.model import DeadLetter, RequestRecord, StatusEvent, TaskStatus
from streamtask.testing import Broker

CREATED, RUNNING, COMPLETED = TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.COMPLETED
IDS = [f"0192f0c1-2b3c-7d4e-8f50-{number:012d}" for number in range(100)]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Writer:
    """Writes what a worker would: requests by a plain producer, events in transactions, offsets by a group member."""

    def __init__(self, broker: Broker, names: TopicNames) -> None:
        self.names = names
        self._common = {"bootstrap.servers": broker.bootstrap}
        self._plain = Producer(self._common)
        self.worker = Producer(self._common | {"transactional.id": f"{names.group}.test"})
        self.worker.init_transactions(30)

    def request(self, shard: int, task_id: str, *, band: int = 0, value: bytes | None = None, ago_s: int = 0) -> None:
        raw = json.dumps({"task_type": "census", "task_id": task_id}).encode() if value is None else value
        self._plain.produce(self.names.requests[band], raw, partition=shard, timestamp=now_ms() - ago_s * 1_000)
        assert self._plain.flush(30) == 0

    def event(
        self,
        shard: int,
        task_id: str,
        status: TaskStatus,
        offset: int = 0,
        *,
        ago_s: int = 0,
        key: bytes | None = None,
        partition: int | None = None,
        **fields: Any,
    ) -> None:
        """Inside of a transaction that the caller has begun. partition: where it is put, else in its shard."""
        attempt = None if status is CREATED else 1
        told: dict[str, Any] = {
            "created_ms": 0,
            "updated_ms": now_ms(),
            "origin": f"high-{shard}@{offset}",
            "attempt": attempt,
        }
        event = StatusEvent(task_id, shard, status, **(told | fields))
        value = encode_status(event, locale="en", worker="test")
        self.raw(shard if partition is None else partition, key or task_id.encode(), value, ago_s=ago_s)

    def raw(self, partition: int, key: bytes, value: bytes | None, *, ago_s: int = 0) -> None:
        at_ms = now_ms() - ago_s * 1_000
        self.worker.produce(self.names.status, value, key, partition=partition, timestamp=at_ms)

    def letter(self, shard: int, offset: int, value: bytes) -> None:
        record = RequestRecord(0, shard, offset, 0, "", None, 9, 0, value)
        letter = DeadLetter(record, "invalid_request", "not JSON", f"high-{shard}@{offset}")
        key, value, headers = encode_dead(letter, self.names, value_bytes_max=10**6, worker="test", failed_at_ms=0)
        self.worker.produce(self.names.dead, value, key, headers=[*headers])

    def history(self, shard: int, task_id: str, *statuses: TaskStatus, offset: int = 0, ago_s: int = 0) -> None:
        for status in statuses:
            self.worker.begin_transaction()
            self.event(shard, task_id, status, offset, ago_s=ago_s)
            self.worker.commit_transaction(30)

    def commit(self, shard: int, offset: int) -> None:
        consumer = Consumer(self._common | {"group.id": self.names.group})
        try:
            consumer.commit(offsets=[TopicPartition(self.names.requests[0], shard, offset)], asynchronous=False)
        finally:
            consumer.close()
