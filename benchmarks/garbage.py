"""What records that nobody can read cost the ones that can: tasks among a million pieces of garbage.

Two runs of one worker process, one after the other: the good requests alone, then as many good ones spread evenly among
the garbage, in the same partitions. Every piece of garbage becomes a dead letter. In the second run the good ones need
not be slower than their share: `share` is (records a second with garbage) / (tasks a second without), and garbage costs
no more than a task as long as it is 1 or more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import orjson
from confluent_kafka import Producer

from benchmarks.app import parameters
from benchmarks.stand import Failed, kafka, status_of, status_records, topics, worker
from benchmarks.throughput import follow
from streamtask.config import TopicNames

GARBAGE = 1_000_000
KINDS = (
    b"",
    b"{",
    b"\xff\xfe\x00garbage",
    b"[" * 2_000,
    b'{"task_type": 7, "parameters": []}',
    b'{"parameters": {"path": "no task_type"}}',
    b"\xc3\x01\x00\x00\x00\x00\x00\x00\x00\x00never an Avro schema of ours",
    b'{"task_type": "noop", "task_id": "no uuid"}',
)


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int, garbage: int = GARBAGE) -> dict[str, Any]:
    """The figures; see the module. garbage: how many pieces."""
    alone_s = _run(bootstrap, tasks, 0, concurrency, partitions)
    among_s = _run(bootstrap, tasks, garbage, concurrency, partitions)
    alone, among = tasks / alone_s, (tasks + garbage) / among_s
    return {
        "tasks_per_s": round(alone),
        "records_per_s_mixed": round(among),
        "share": round(among / alone, 2),
        "tasks_per_s_mixed": round(tasks / among_s),
        "tasks": tasks,
        "garbage": garbage,
        "partitions": partitions,
    }


def _run(bootstrap: str, tasks: int, garbage: int, concurrency: int, partitions: int) -> float:
    """Seconds from the first to the last terminal event of the good ones."""
    with topics(bootstrap, "garbage", partitions) as names:
        _produce(bootstrap, names, tasks, garbage, partitions)
        with worker(bootstrap, names.prefix, concurrency) as process:
            follow(bootstrap, names, process, tasks + garbage)
        times = [
            record.timestamp_ms
            for records in status_records(bootstrap, names)
            for record in records
            if status_of(record) == "completed"
        ]
        if len(times) != tasks:
            raise Failed(f"{len(times)} of {tasks} tasks completed.")
        return (max(times) - min(times)) / 1_000


def _produce(bootstrap: str, names: TopicNames, tasks: int, garbage: int, partitions: int) -> None:
    producer = Producer(kafka(bootstrap).idempotent())
    for number, value in enumerate(_values(tasks, garbage)):
        while True:
            try:
                producer.produce(names.requests[1], value, partition=number % partitions)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(120):
        raise Failed("The broker did not take the records.")


def _values(tasks: int, garbage: int) -> Iterator[bytes]:
    """Good and bad, evenly mixed, in an order that repeats itself."""
    rng = random.Random(1)
    total, good = tasks + garbage, 0
    for number in range(1, total + 1):
        if good * total < number * tasks:
            good += 1
            yield orjson.dumps({"task_type": "noop", "parameters": parameters(good), "priority": 5})
        else:
            yield rng.choice(KINDS)
