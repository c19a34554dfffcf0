"""The raw loop: what a transactional Python process can do at most with the same requests, and with no task system at all.

One process: consume up to 1,000 requests, decode them with orjson, encode three status events each of the size that ours
have with orjson, produce them keyed, flush, send offsets, commit; lz4, retry.backoff.ms=1. It has no ledger, no schedule,
no handler, no validation and no write-ahead: the limit, not a peer.

    python -m benchmarks.raw BOOTSTRAP REQUEST_PREFIX STATUS_TOPIC TASKS [JOB]           prints one line of JSON
    python -m benchmarks.raw BOOTSTRAP REQUEST_PREFIX STATUS_TOPIC SHARE/SHARES [JOB]    one of several: see run_share

JOB is one of benchmarks.peers.apps.jobs, done in the loop for each request, one after the other; without it: nothing is.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from datetime import UTC, datetime
from typing import Any

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from benchmarks.peers.apps.jobs import WORKING, perform
from streamtask.config import TopicNames

CONSUME_MAX = 1_000
CONSUME_S = 0.05
DEADLINE_S = 300.0
READY_S = 30.0
WORKER = f"benchmark@{socket.gethostname()}:{os.getpid()}"  # as in our events


def run(bootstrap: str, names: TopicNames, status: str, tasks: int, job: str = "noop") -> dict[str, Any]:
    """Read `tasks` requests from their start and write their events to `status`."""
    consumer, producer = _clients(bootstrap, {})
    consumer.subscribe(list(names.requests))
    done, began_s, deadline_s, size = 0, 0.0, time.monotonic() + DEADLINE_S, 0
    while done < tasks:
        assert time.monotonic() < deadline_s, f"the raw loop saw {done} of {tasks} requests"
        messages = [m for m in consumer.consume(CONSUME_MAX, CONSUME_S) if m.error() is None]
        if not messages:
            continue
        if not began_s:
            began_s, cpu_s = time.monotonic(), time.process_time()
        size += _transaction(consumer, producer, status, messages, job)
        done += len(messages)
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    consumer.close()
    return {"tasks_per_s": done / took_s, "cpu_us_per_task": cpu_s / done * 1e6, "event_bytes": size / done / 3}


def run_share(
    bootstrap: str, names: TopicNames, status: str, share: int, shares: int, job: str = "noop"
) -> dict[str, Any]:
    """Do the same as one of several processes: read to their ends the partitions whose number is `share` modulo `shares`.

    It prints `ready`, and begins when a line comes from stdin, so that all of them work at one time.
    """
    consumer, producer = _clients(bootstrap, {"enable.partition.eof": True})
    lead = names.requests[0]
    count = len(consumer.list_topics(lead, timeout=READY_S).topics[lead].partitions)
    places = [(topic, number) for topic in names.requests for number in range(share, count, shares)]
    print("ready", flush=True)
    sys.stdin.readline()
    consumer.assign([TopicPartition(*place, OFFSET_BEGINNING) for place in places])
    done, size, ended, deadline_s = 0, 0, set[Any](), time.monotonic() + DEADLINE_S
    began_s = ended_s = cpu_s = cpu_before_s = 0.0
    while len(ended) < len(places):
        assert time.monotonic() < deadline_s, f"the raw loop saw {done} requests, and the ends of {sorted(ended)}"
        heard = consumer.consume(CONSUME_MAX, CONSUME_S)
        messages = [m for m in heard if m.error() is None]
        if messages:
            if not began_s:
                began_s, cpu_before_s = time.time(), time.process_time()
            size += _transaction(consumer, producer, status, messages, job)
            done += len(messages)
            ended_s, cpu_s = time.time(), time.process_time() - cpu_before_s
        errors = ((m, error) for m in heard if (error := m.error()) is not None)
        ended |= {(m.topic(), m.partition()) for m, error in errors if error.code() == KafkaError._PARTITION_EOF}
    consumer.close()
    return {"tasks": done, "began_s": began_s, "ended_s": ended_s, "cpu_s": cpu_s, "bytes": size}


def _clients(bootstrap: str, more: dict[str, Any]) -> tuple[Consumer, Producer]:
    group = f"raw-{secrets.token_hex(4)}"
    common = {"bootstrap.servers": bootstrap, "retry.backoff.ms": 1}
    consumer = Consumer(
        common
        | {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        | {"partition.assignment.strategy": "cooperative-sticky"}
        | more
    )
    producer = Producer(common | {"transactional.id": group, "compression.type": "lz4"})
    producer.init_transactions(READY_S)
    return consumer, producer


def _transaction(consumer: Consumer, producer: Producer, status: str, messages: list[Any], job: str) -> int:
    """Do the job of each request, and commit its events and the positions. Returns the bytes of the events."""
    producer.begin_transaction()
    offsets, size = _produce(producer, status, messages, job if job in WORKING else None)
    producer.flush()
    places = [TopicPartition(topic, partition, at) for (topic, partition), at in offsets.items()]
    producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), READY_S)
    producer.commit_transaction(READY_S)
    return size


def _produce(producer: Producer, status: str, messages: list[Any], job: str | None) -> tuple[dict[Any, int], int]:
    offsets: dict[tuple[str, int], int] = {}
    size = 0
    produce, dumps, loads = producer.produce, orjson.dumps, orjson.loads
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for message in messages:
        request = loads(message.value())
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        offsets[topic, partition] = offset + 1
        origin = f"{topic[topic.rindex('.') + 1 :]}-{partition}@{offset}"
        key, task_type, priority = request["task_id"], request["task_type"], request["priority"]
        made = request.get("created_at", now)
        created = {
            "task_id": key,
            "status": "created",
            "created_at": made,
            "updated_at": now,
            "message": "Task created",
        }
        created |= {"task_type": task_type, "priority": priority, "worker": WORKER, "origin": origin}
        running = {"task_id": key, "status": "running", "created_at": made, "updated_at": now}
        running |= {"message": "Task status: running", "task_type": task_type, "priority": priority, "attempt": 1}
        running |= {"started_at": now, "worker": WORKER, "origin": origin}
        parameters = request["parameters"]
        if job is not None:
            perform(job, parameters["path"], parameters["size"])
        result = {"path": parameters["path"], "size": parameters["size"]}
        ended = {"task_id": key, "status": "completed", "progress": 1.0, "result": result, "created_at": made}
        ended |= {"updated_at": now, "message": "Task status: completed", "task_type": task_type}
        ended |= {"priority": priority, "attempt": 1, "started_at": now, "finished_at": now}
        ended |= {"worker": WORKER, "origin": origin}
        for event in (created, running, ended):
            value = dumps(event)
            size += len(value)
            produce(status, value, key, partition)
    return offsets, size


def main(argv: list[str]) -> int:
    bootstrap, prefix, status, tasks, *job = argv
    if "/" in tasks:
        share, shares = map(int, tasks.split("/"))
        found = run_share(bootstrap, TopicNames(prefix), status, share, shares, *job)
    else:
        found = run(bootstrap, TopicNames(prefix), status, int(tasks), *job)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
