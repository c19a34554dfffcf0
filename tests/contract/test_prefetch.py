"""What a worker's consumer fetches ahead of it: bounded, however well it was compressed, and never nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from random import Random

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.testing import Broker

pytestmark = pytest.mark.broker

WAIT_S = 60.0
LOOKS = 5  # statistics in a row that tell the same length: nothing more is fetched


def produce(settings: KafkaSettings, topic: str, values: list[bytes]) -> None:
    producer = Producer(settings.idempotent(reports=False, linger_ms=100))
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(WAIT_S) == 0


def consumer(settings: KafkaSettings, topic: str, **more: object) -> Consumer:
    reader = Consumer(settings.consumer("prefetch") | more)
    reader.assign([TopicPartition(topic, 0, 0)])
    return reader


def test_a_backlog_of_small_requests_is_not_fetched_whole(
    broker: Broker, make_topics: Callable[[int], TopicNames]
) -> None:
    """Bug: limits of librdkafka count what is compressed, or before the fetch: a worker took 366 MB before a backlog."""
    settings, topic = KafkaSettings(broker.bootstrap), make_topics(1).requests[0]
    produce(
        settings,
        topic,
        [b'{"task_type":"noop","parameters":{"path":"lib/module_%06d.py"}}' % n for n in range(150_000)],
    )
    lengths: list[int] = []

    def tell(text: str) -> None:
        parts = json.loads(text)["topics"].get(topic, {"partitions": {}})["partitions"]
        lengths.append(max((part["fetchq_cnt"] for part in parts.values()), default=0))

    reader = consumer(settings, topic, **{"statistics.interval.ms": 200, "stats_cb": tell})
    between = threading.Event()  # never set: a poll takes a record, and a fetch takes its time
    try:
        deadline = time.monotonic() + WAIT_S
        while len(lengths) < LOOKS or not lengths[-LOOKS] or max(lengths[-LOOKS:]) - min(lengths[-LOOKS:]) > 100:
            assert time.monotonic() < deadline, f"still fetching: {lengths[-LOOKS:]}"
            reader.poll(0)
            between.wait(0.1)
    finally:
        reader.close()
    assert 1_000 < max(lengths) < 50_000, lengths


def test_batches_larger_than_what_is_fetched_at_once_are_read_all_the_same(
    broker: Broker, make_topics: Callable[[int], TopicNames]
) -> None:
    settings, names = KafkaSettings(broker.bootstrap), make_topics(1)
    values = [bytes([n]) * 10 + Random(n).randbytes(300_000) for n in range(12)]
    for topic in names.requests:
        produce(settings, topic, values)
    reader = Consumer(settings.consumer("prefetch"))
    try:
        reader.assign([TopicPartition(topic, 0, 0) for topic in names.requests])
        read: list[bytes] = []
        deadline = time.monotonic() + WAIT_S
        while len(read) < 3 * len(values):
            assert time.monotonic() < deadline, f"{len(read)} of {3 * len(values)}"
            message = reader.poll(0.5)
            if message is not None:
                read.append(message.value() or b"")
    finally:
        reader.close()
    assert sorted(read) == sorted(3 * values)
