"""A defect of Kafka 4.3.1 that readers of committed records meet, and what ends it (docs/decisions/0019-lost-markers.md).

A transaction coordinator that completes a transaction asks its metadata who leads each partition of it. A partition that
has no leader at that moment counts as deleted (KRaftMetadataCache.getPartitionLeaderEndpoint answers nothing for both), so
its marker is never written. The commit is answered with success; the partition's last stable offset stands still for ever.

When the first of these tests fails, Kafka has mended it: the wait in tests/chaos/broker_faults.py and the page in
docs/runbook.md can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streamtask.devbroker.cluster import QUICK, DevBroker
from tests.contract.member import wait_until

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]

TOPIC, ID = "alone", "tests.markers"
WAIT_S = 60.0
STILL_S = 15.0  # longer than the transaction's timeout


@pytest.fixture(scope="module")
def kafka() -> Iterator[DevBroker]:
    """Three brokers; the only replica of the topic is on the third one, where a committed transaction lacks its marker."""
    with DevBroker(3, config=QUICK) as three:
        admin = AdminClient({"bootstrap.servers": three.bootstrap, "log_level": 0})
        alone = NewTopic(TOPIC, 1, replica_assignment=[[3]], config={"min.insync.replicas": "1"})
        admin.create_topics([alone])[TOPIC].result(20)
        producer = transactional(three)
        producer.begin_transaction()
        producer.produce(TOPIC, b"committed", b"k")
        assert producer.flush(20) == 0
        three.kill(3)
        producer.commit_transaction(WAIT_S)
        wait_until(lambda: leader(admin) < 0, WAIT_S)
        three.start(3)
        wait_until(lambda: leader(admin) == 3, WAIT_S)
        yield three


def transactional(kafka: DevBroker) -> Producer:
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "transactional.id": ID,
            "transaction.timeout.ms": 10_000,
            "log_level": 0,
        }
    )
    producer.init_transactions(WAIT_S)
    return producer


def leader(admin: AdminClient) -> int:
    return admin.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions[0].leader


def end(kafka: DevBroker, level: str) -> int:
    """Of the log, as readers of this level see it."""
    properties = {"bootstrap.servers": kafka.bootstrap, "group.id": "end", "isolation.level": level, "log_level": 0}
    with closing(Consumer(properties)) as consumer:
        found: int = consumer.get_watermark_offsets(TopicPartition(TOPIC, 0), timeout=20)[1]
    return found


def test_a_commit_loses_its_marker_where_a_partition_has_no_leader(kafka: DevBroker) -> None:
    assert end(kafka, "read_uncommitted") == 1
    with pytest.raises(AssertionError):  # if it does not raise, Kafka writes the marker: see the top of this file
        wait_until(lambda: end(kafka, "read_committed") > 0, STILL_S)


def test_a_transaction_under_the_same_id_ends_what_has_lost_its_marker_as_it_ends_itself(kafka: DevBroker) -> None:
    """How the runbook repairs it: the coordinator gives the same producer id out again."""
    producer = transactional(kafka)
    producer.begin_transaction()
    producer.produce(TOPIC, None, b"repair")
    producer.commit_transaction(WAIT_S)
    properties = {"bootstrap.servers": kafka.bootstrap, "group.id": "read", "isolation.level": "read_committed"}
    with closing(Consumer(properties)) as consumer:
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        read = [(message.key(), message.value()) for message in consumer.consume(2, WAIT_S)]
    assert read == [(b"k", b"committed"), (b"repair", None)]
