"""What a worker reads beside its requests: one consumer for all of it, and no record of one reading in another."""

from __future__ import annotations

from functools import partial
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.ports import RecallStatus
from streamtask.kafka.side_reader import SideReader
from streamtask.worker.recovery import ControlReader, StatusRecall
from tests.contract.member import fill, wait_until

pytestmark = pytest.mark.broker


@pytest.fixture
def settings(broker: Any) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap, client_id="contract", tail_kbytes=8_192)


def test_a_reading_that_begins_anew_sees_every_record_again_and_none_of_the_one_before(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    place, count = (topics.status, 0), 400
    fill(settings.bootstrap, topics.status, 0, count)
    side = SideReader(settings, (topics.control,))
    for cut in range(10):
        side.read(place)
        for _ in range(cut * 20):  # dropped before, while and after its records are fetched
            side.take(topics.status)
        side.drop(place)
        mark = side.read(place)
        again: list[int] = []

        def turn(again: list[int] = again) -> None:
            again.extend(record.offset for record in side.take(topics.status))

        wait_until(partial(side.reached, mark), turn=turn)
        assert again == list(range(count)), f"after {cut * 20} turns"
        side.drop(place)
        assert side.take(topics.status) == []
    side.close()


def test_shards_that_are_recovered_at_once_share_one_consumer_and_one_admin_client(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    """Bug: each had clients of its own: 12 of them took 150 MB and a hundred threads."""
    for shard in range(4):
        fill(settings.bootstrap, topics.status, shard, 50, value=b'{"origin":"high-0@0"}')
    side = SideReader(settings, (topics.control,))
    control, recall = ControlReader(side, topics), StatusRecall(side, topics)
    control.await_end((0, 1, 2, 3))
    ready: list[int] = []
    over: list[int] = []

    def turn() -> None:
        ready.extend(control.poll()[1])
        over.extend(shard for shard, _, _, done in recall.poll() if done)

    wait_until(lambda: len(ready) == 4, turn=turn)
    before = _threads()
    for shard in range(4):
        recall.begin(RecallStatus(shard, 1))
    most = before

    def watched() -> None:
        nonlocal most
        turn()
        most = max(most, _threads())

    wait_until(lambda: len(over) == 4, turn=watched)
    assert most <= before + 2, "a client has five threads or more"
    assert not recall
    side.close()


def test_a_partition_that_was_added_after_the_topic_was_read_is_read_at_once(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    """Bug: its worker recovered such a shard only when its metadata was five minutes old."""
    side = SideReader(settings, (topics.control,))
    read: list[int] = []

    def turn() -> None:
        read.extend(record.offset for record in side.take(topics.status))

    known = side.read((topics.status, 0))
    wait_until(partial(side.reached, known), turn=turn)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    admin.create_partitions([NewPartitions(topics.status, 6)])[topics.status].result(30)
    wait_until(lambda: len(admin.list_topics(topics.status, timeout=10).topics[topics.status].partitions) == 6)
    fill(settings.bootstrap, topics.status, 5, 20)
    added = side.read((topics.status, 5))
    wait_until(partial(side.reached, added), turn=turn)
    assert read == list(range(20))
    side.close()


def _threads() -> int:
    return psutil.Process().num_threads()
