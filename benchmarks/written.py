"""Status events as a worker writes them, without a worker: what the benchmarks of the view stand on.

A worker makes a third of what a view can read, so it would be the worker that is measured. The events are as long as ours,
say the origin of their request, and lie in the order in which a busy system writes them: some hundred tasks of a partition
are open at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.stand import Failed, kafka, records_of
from streamtask.codec.wire import time_text
from streamtask.config import TopicNames
from streamtask.domain.identity import Origin
from streamtask.kafka.offset_queries import topic_ends

OPEN = 3_000  # tasks at a time
STEPS = ("created", "running", "completed")
WORKER = "benchmark@host.example:4711"
EVENT = (
    '{"task_id":"%s","status":"%s"%s,"created_at":"%s","updated_at":"%s","message":"Task status: %s",'
    '"task_type":"noop","priority":%d%s,"worker":"' + WORKER + '","origin":"%s"}'
)
FLUSH_S = 120.0


class Task(NamedTuple):
    """A request that lies in its topic."""

    task_id: str
    partition: int
    origin: str
    priority: int
    created_ms: int


def requested(bootstrap: str, names: TopicNames) -> Iterator[Task]:
    """Every request of the prefix."""
    for read in records_of(bootstrap, names.requests):
        for record in read:
            band = names.requests.index(record.topic)
            origin = str(Origin(names.bands[band].name, record.partition, record.offset))
            task_id = (record.key or b"").decode()
            yield Task(task_id, record.partition, origin, names.bands[band].middle, record.timestamp_ms)


def event(task: Task, status: str, more: str = "") -> bytes:
    """The value of one event of a first attempt. more: further members, each with a comma before it."""
    at = time_text(task.created_ms)
    attempt = "" if status == "created" else f',"attempt":1,"started_at":"{at}"'
    if status == "completed":
        more = f',"progress":1.0,"result":{{"path":"lib/module.py","size":{task.partition}}}{more}'
        attempt += f',"finished_at":"{at}"'
    return (EVENT % (task.task_id, status, more, at, at, status, task.priority, attempt, task.origin)).encode()


class Writer:
    """Writes records to a topic. In transactions when it is given an id; else each by itself. minutes: how long a
    transaction may take; None: as long as a worker's."""

    def __init__(
        self, bootstrap: str, topic: str, transactional_id: str | None = None, *, minutes: int | None = None
    ) -> None:
        settings, self._topic = kafka(bootstrap), topic
        self._refused: list[str] = []
        properties = (
            settings.transactional(transactional_id)
            if transactional_id
            else settings.idempotent(reports=False, linger_ms=20)
        )
        if minutes is not None:
            properties |= {"transaction.timeout.ms": minutes * 60_000}
        self.producer = Producer(properties | {"on_delivery": self._told})
        if transactional_id:
            self.producer.init_transactions(FLUSH_S)

    def _told(self, error: object, _message: object) -> None:
        if error is not None:
            self._refused.append(str(error))

    def write(self, key: str, value: bytes, partition: int = -1) -> None:
        """Waits while the queue is full. partition -1: by the key."""
        while True:
            try:
                self.producer.produce(self._topic, value, key.encode(), partition)
                return
            except BufferError:
                self.producer.poll(0.05)

    def flush(self) -> None:
        """Raises Failed when not all that was written is acknowledged."""
        left = self.producer.flush(FLUSH_S)
        if left or self._refused:
            raise Failed(f"{self._topic}: {left + len(self._refused)} records not acknowledged. {self._refused[:1]}")


def write_histories(bootstrap: str, names: TopicNames, tasks: list[Task]) -> int:
    """CREATED, RUNNING and COMPLETED of each; returns how many events that is. Raises Failed."""
    writer = Writer(bootstrap, names.status)
    for first in range(0, len(tasks), OPEN):
        part = tasks[first : first + OPEN]
        for status in STEPS:
            for task in part:
                writer.write(task.task_id, event(task, status), task.partition)
        writer.producer.poll(0)
    writer.flush()
    return len(tasks) * len(STEPS)


def finish(bootstrap: str, names: TopicNames) -> None:
    """Commit the offsets of all requests, as the workers do who have ended them."""
    settings = kafka(bootstrap)
    places = [TopicPartition(*place, offset=end) for place, end in topic_ends(settings, names.requests).items()]
    consumer = Consumer(settings.tail() | {"group.id": names.group})
    try:
        consumer.commit(offsets=places, asynchronous=False)
    finally:
        consumer.close()
