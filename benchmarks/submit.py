"""How fast the client submits, beside confluent-kafka's own producer with the same records.

    bulk      `submit_bulk` of all, then `flush`: acknowledged by the broker
    awaited   `submit`, this many of them under way at once: each is awaited
    raw       the same keys, values and headers, made before, by an idempotent producer in one loop: acknowledged, and its
              failures alone are told. The limit of one Python process

Two rounds, the raw loop before each and behind; the best of each counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import KafkaError, Producer

from benchmarks.app import parameters
from benchmarks.latency import quantile
from benchmarks.stand import Failed, kafka, records_of, topics
from streamtask.client import AsyncClient
from streamtask.config import TopicNames

IN_FLIGHT = 100
AWAITED_SHARE = 4  # a fourth of the requests is awaited
ROUNDS = 2
FLUSH_S = 120.0


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. concurrency is of no use here."""
    bulks: list[float] = []
    awaits: list[float] = []
    raws: list[float] = []
    waits: list[float] = []
    for _ in range(ROUNDS):
        with topics(bootstrap, "bench", partitions) as names:
            bulks.append(asyncio.run(_bulk(bootstrap, names, tasks)))
            records = list(_records(bootstrap, names))
            if len(records) != tasks:
                raise Failed(f"{tasks} requests were submitted, and {len(records)} are there: nothing was measured.")
            raws.append(_raw(bootstrap, records))
            rate, took = asyncio.run(_awaited(bootstrap, names, max(tasks // AWAITED_SHARE, 1)))
            awaits.append(rate)
            waits += took
            raws.append(_raw(bootstrap, records))
    return {
        "tasks_per_s": round(max(bulks)),
        "raw_tasks_per_s": round(max(raws)),
        "ratio": round(max(bulks) / max(raws), 3),
        "awaited_per_s": round(max(awaits)),
        "awaited_p50_ms": round(quantile(waits, 0.5), 1),
        "awaited_p99_ms": round(quantile(waits, 0.99), 1),
        "in_flight": IN_FLIGHT,
        "bulk_runs_per_s": [round(rate) for rate in bulks],
        "raw_runs_per_s": [round(rate) for rate in raws],
        "tasks": tasks,
        "partitions": partitions,
    }


def _requests(tasks: int) -> Iterator[dict[str, Any]]:
    for number in range(tasks):
        yield {"task_type": "noop", "parameters": parameters(number), "priority": number % 10 + 1}


async def _bulk(bootstrap: str, names: TopicNames, tasks: int) -> float:
    async with AsyncClient(bootstrap, prefix=names.prefix) as client:
        await client.submit("noop", parameters(0))  # it has connected
        began_s = time.monotonic()
        await client.submit_bulk(_requests(tasks - 1))
        await client.flush(FLUSH_S)
        return (tasks - 1) / (time.monotonic() - began_s)


async def _awaited(bootstrap: str, names: TopicNames, tasks: int) -> tuple[float, list[float]]:
    """(requests a second, ms of each)."""
    took: list[float] = []
    async with AsyncClient(bootstrap, prefix=names.prefix) as client:
        await client.submit("noop", parameters(0))
        requests = _requests(tasks)

        async def one_after_the_other() -> None:
            for request in requests:
                began_s = time.monotonic()
                await client.submit(request["task_type"], request["parameters"], priority=request["priority"])
                took.append((time.monotonic() - began_s) * 1_000)

        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(IN_FLIGHT):
                group.create_task(one_after_the_other(), name=f"submit-{number}")
        return tasks / (time.monotonic() - began_s), took


Record = tuple[str, bytes, bytes, list[tuple[str, bytes]]]  # topic, key, value, headers


def _records(bootstrap: str, names: TopicNames) -> Iterator[Record]:
    """What the client has written."""
    for read in records_of(bootstrap, names.requests, with_headers=True):
        for record in read:
            yield record.topic, record.key or b"", record.value or b"", list(record.headers)


def _raw(bootstrap: str, records: list[Record]) -> float:
    """The same once more, into the same topics: nobody runs them."""
    refused: list[str] = []

    def report(error: KafkaError | None, _: object) -> None:
        if error is not None:
            refused.append(str(error))

    producer = Producer(kafka(bootstrap).idempotent(reports=False, linger_ms=5) | {"on_delivery": report})
    produce = producer.produce
    producer.list_topics(records[0][0], timeout=FLUSH_S)  # it has connected
    began_s = time.monotonic()
    for topic, key, value, headers in records:
        while True:
            try:
                produce(topic, value, key, headers=[*headers])
                break
            except BufferError:
                producer.poll(0.01)
    left = producer.flush(FLUSH_S)
    took_s = time.monotonic() - began_s
    if left or refused:
        raise Failed(f"The raw loop: {left + len(refused)} records were not acknowledged. {refused[:1]}")
    return len(records) / took_s
