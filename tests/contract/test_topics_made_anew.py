"""A topic that is deleted and made anew under running clients, after its leaders have changed.

Bug: the epochs of a new topic's leaders begin at 0 again. librdkafka takes them for an older answer than the one that it
has, and stays with the leader it knows: some partitions took no record of a producer for as long as it lived, and a reader
received nothing. A worker then heard no cancel until it was restarted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.errors import StreamtaskError
from streamtask.kafka import admin
from streamtask.kafka.producer import ClientProducer, Delivery
from streamtask.kafka.side_reader import SideReader
from tests.acceptance.harness import Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(500)]

PARTITIONS = 6
BROKERS = (1, 2, 3)
EARLIER = 5  # records of each partition before; the new topic holds fewer
WITHIN_S = 60.0
WORKER_HEALED_S = 180.0


class Cluster:
    """Three brokers and the topics of a prefix."""

    def __init__(self, kafka: DevBroker) -> None:
        self.kafka, self.names = kafka, TopicNames("anew")
        self.topic = self.names.control
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        self._make()

    def settings(self, **extra: str | int | float | bool) -> KafkaSettings:
        return KafkaSettings(self.kafka.bootstrap, client_id="contract", extra=extra)

    def _make(self) -> None:
        admin.ensure_topics({"bootstrap.servers": self.kafka.bootstrap}, self.names, partitions=PARTITIONS)

    def leaders(self) -> dict[int, int]:
        found = self.admin.list_topics(self.topic, timeout=10).topics[self.topic].partitions
        return {number: one.leader for number, one in found.items()}

    def _leads_nothing(self, node: int) -> bool:
        return node not in self.leaders().values()

    def change_leaders(self) -> None:
        """Every broker goes and comes back, so that every partition has had another leader."""
        for node in BROKERS:
            self.kafka.kill(node)
            until(partial(self._leads_nothing, node), f"nothing is led by broker {node}", WITHIN_S)
            self.kafka.start(node)

    def make_anew(self) -> None:
        """Until some partition is led by another broker than before."""
        before = self.leaders()
        while True:
            admin.delete_topics({"bootstrap.servers": self.kafka.bootstrap}, self.names)
            until(self._made, "the topics are made", WITHIN_S)
            if self.leaders() != before:
                return

    def _made(self) -> bool:
        try:
            self._make()
            return all(leader > 0 for leader in self.leaders().values())
        except (StreamtaskError, KafkaException):
            return False


def sent(producer: ClientProducer, topic: str) -> dict[int, str | None]:
    """What became of one record for each partition."""
    reports: dict[int, str | None] = {}

    def report(number: int) -> Callable[[Delivery], None]:
        return lambda delivery: reports.__setitem__(number, delivery.error)

    for number in range(PARTITIONS):
        producer.send(topic, b"key", b"value", partition=number, on_delivery=report(number))
    until(lambda: len(reports) == PARTITIONS, "every record is reported", WITHIN_S)
    return reports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with DevBroker(len(BROKERS), config=QUICK) as kafka:
        yield Cluster(kafka)


def test_a_producer_delivers_to_every_partition_of_a_topic_that_was_made_anew(cluster: Cluster) -> None:
    with ClientProducer(cluster.settings(**{"message.timeout.ms": 3_000}), linger_ms=0) as producer:
        until(lambda: not any(sent(producer, cluster.topic).values()), "all are delivered", WITHIN_S)
        cluster.change_leaders()
        until(lambda: not any(sent(producer, cluster.topic).values()), "all are delivered by the new leaders", WITHIN_S)
        cluster.make_anew()
        until(lambda: not any(sent(producer, cluster.topic).values()), "all are delivered to the new topic", WITHIN_S)


def test_a_worker_reads_every_partition_of_a_control_topic_that_was_made_anew(cluster: Cluster) -> None:
    heard: list[int] = []
    with closing(SideReader(cluster.settings(), (cluster.topic,))) as side:

        def write(times: int) -> None:
            with ClientProducer(cluster.settings()) as producer:
                for _ in range(times):
                    assert not any(sent(producer, cluster.topic).values())

        def hears_all() -> bool:
            heard.extend(record.partition for record in side.take(cluster.topic))
            return set(heard) == set(range(PARTITIONS))

        write(EARLIER)
        until(hears_all, "all are heard", WITHIN_S)
        cluster.change_leaders()
        heard.clear()
        write(1)
        until(hears_all, "all are heard from the new leaders", WITHIN_S)
        cluster.make_anew()
        heard.clear()
        write(1)
        until(hears_all, "all are heard from the new topic", WITHIN_S)


def test_a_worker_takes_requests_of_topics_that_were_made_anew(cluster: Cluster, tmp_path: Path) -> None:
    """Bug: a partition whose leader had changed was assigned anew for ever, and delivered nothing."""

    def all_end(folder: str) -> None:
        (tmp_path / folder).mkdir()
        bench = Bench(cluster.kafka.bootstrap, cluster.names, tmp_path / folder)
        try:
            receipts = bench.client.submit_many([{"task_type": "noop"} for _ in range(60)])
            bench.ends([receipt.task_id for receipt in receipts], WORKER_HEALED_S)
        finally:
            bench.stop()

    (tmp_path / "worker").mkdir()
    running = Bench(cluster.kafka.bootstrap, cluster.names, tmp_path / "worker")
    try:
        running.supervised()
        all_end("first")
        cluster.change_leaders()
        all_end("after the leaders have changed")
        cluster.make_anew()
        all_end("anew")
    finally:
        running.stop()
