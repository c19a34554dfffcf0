"""A tail reads whole topics to their ends, then follows; the client's producer reports every record once."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import SubmitError, TopicsMissing, Unreachable
from streamtask.kafka.producer import ClientProducer, Delivery, QueueFull
from streamtask.kafka.tail import Tail, TailRecord
from tests.contract.member import fill, wait_until

pytestmark = pytest.mark.broker


@pytest.fixture
def settings(broker: Any) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap, client_id="contract")


def read_to(tail: Tail, ends: dict[tuple[str, int], int]) -> list[TailRecord]:
    records: list[TailRecord] = []
    wait_until(lambda: tail.caught_up(ends), turn=lambda: records.extend(tail.poll(1_000, 0.2)))
    return records


def test_a_whole_topic_is_read_to_its_end_and_then_followed(settings: KafkaSettings, topics: TopicNames) -> None:
    for partition in range(3):
        fill(settings.bootstrap, topics.control, partition, 20 + partition)
    with Tail(settings, [topics.control]) as tail:
        ends = tail.ends()
        assert ends == {(topics.control, p): count for p, count in enumerate((20, 21, 22, 0))}
        records = read_to(tail, ends)
        assert Counter(record.partition for record in records) == {0: 20, 1: 21, 2: 22}
        for partition in range(3):
            offsets = [record.offset for record in records if record.partition == partition]
            assert offsets == list(range(20 + partition))
        assert tail.positions() == ends
        assert tail.poll(10, 0.05) == []
        fill(settings.bootstrap, topics.control, 3, 1, value=b"later")
        more: list[TailRecord] = []
        wait_until(lambda: more, turn=lambda: more.extend(tail.poll(10, 0.2)))
        assert (more[0].partition, more[0].offset, more[0].key, more[0].value) == (3, 0, b"k", b"later")


def test_a_tail_begins_where_it_is_told_also_in_a_single_partition(settings: KafkaSettings, topics: TopicNames) -> None:
    fill(settings.bootstrap, topics.status, 2, 10)
    fill(settings.bootstrap, topics.status, 1, 10)
    with Tail(settings, {(topics.status, 2): 7, (topics.status, 1): -2}) as tail:
        records = read_to(tail, tail.ends())
    assert sorted((r.partition, r.offset) for r in records) == [(1, o) for o in range(10)] + [(2, o) for o in (7, 8, 9)]
    with Tail(settings, [(topics.status, 2)]) as tail:
        assert len(read_to(tail, tail.ends())) == 10


def test_a_tail_is_caught_up_although_the_end_holds_only_aborted_records_and_markers(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    producer = Producer(settings.transactional(f"{topics.group}.foreign"))
    producer.init_transactions(20)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        producer.produce(topics.status, b"v", b"k", 0)
        producer.flush(5)
        end(5)
    with Tail(settings, [topics.status]) as tail:
        ends = tail.ends(read_committed=False)
        assert ends[topics.status, 0] == 4
        assert [record.offset for record in read_to(tail, ends)] == [0]


def test_an_open_transaction_holds_a_committed_tail_back_and_not_an_uncommitted_one(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    producer = Producer(settings.transactional(f"{topics.group}.foreign"))
    producer.init_transactions(20)
    fill(settings.bootstrap, topics.status, 0, 2)
    producer.begin_transaction()
    producer.produce(topics.status, b"open", b"k", 0)
    producer.flush(5)
    place = (topics.status, 0)
    with Tail(settings, [place]) as committed, Tail(settings, [place], read_committed=False) as uncommitted:
        assert (committed.ends()[place], uncommitted.ends()[place]) == (2, 3)
        assert len(read_to(uncommitted, uncommitted.ends())) == 3
        assert len(read_to(committed, committed.ends())) == 2
        whole = committed.ends(read_committed=False)
        assert not committed.caught_up(whole)
        producer.commit_transaction(5)
        assert [record.value for record in read_to(committed, whole)] == [b"open"]


def test_partitions_that_were_added_are_read_as_often_as_it_happens(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    """The client that is asked for log starts keeps what it knew of the topic: the second growth was not found."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    with Tail(settings, [topics.control]) as tail:
        for count in (5, 6, 7):
            admin.create_partitions([NewPartitions(topics.control, count)])[topics.control].result(30)
            added: list[tuple[str, int]] = []

            def refresh(found: list[tuple[str, int]] = added) -> None:
                found += tail.refresh()

            wait_until(added.__len__, turn=refresh)
            assert added == [(topics.control, count - 1)]
            fill(settings.bootstrap, topics.control, count - 1, 3)
        ends = {(topics.control, number): 3 for number in (4, 5, 6)}
        assert len(read_to(tail, ends)) == 9


def test_headers_come_only_when_asked_for_and_never_as_null(settings: KafkaSettings, topics: TopicNames) -> None:
    producer = Producer({"bootstrap.servers": settings.bootstrap})
    producer.produce(topics.dead, b"v", None, 0, headers=[("a", b"1"), ("b", None), ("a", "2")])
    assert producer.flush(10) == 0
    with Tail(settings, [(topics.dead, 0)], with_headers=True) as tail:
        (record,) = read_to(tail, tail.ends())
        assert record.headers == (("a", b"1"), ("b", b""), ("a", b"2"))
        assert record.key is None
    with Tail(settings, [(topics.dead, 0)]) as tail:
        assert read_to(tail, tail.ends())[0].headers == ()


def test_a_position_that_retention_passed_goes_on_at_the_log_start_and_is_told(
    settings: KafkaSettings, topics: TopicNames
) -> None:
    place = (topics.requests[0], 1)
    fill(settings.bootstrap, *place, 10)
    admin = AdminClient(settings.admin())
    for future in admin.delete_records([TopicPartition(*place, 6)]).values():
        future.result(10)
    gaps: list[tuple[tuple[str, int], int, int]] = []
    with Tail(settings, {place: 3}, on_gap=lambda *gap: gaps.append(gap)) as tail:
        records = read_to(tail, tail.ends())
    assert [record.offset for record in records] == [6, 7, 8, 9]
    assert gaps == [(place, 3, 6)]
    with Tail(settings, [place]) as tail:
        assert [record.offset for record in read_to(tail, tail.ends())] == [6, 7, 8, 9]


def test_missing_topics_and_missing_brokers_are_told_apart(settings: KafkaSettings, topics: TopicNames) -> None:
    with pytest.raises(TopicsMissing, match=r"nowhere.*topics create"):
        Tail(settings, [topics.status, "nowhere"])
    with pytest.raises(Unreachable):
        Tail(KafkaSettings("127.0.0.1:1"), [topics.status], timeout_s=0.5)


# --- the client's producer ----------------------------------------------------------------------------------------------


def test_each_record_is_reported_with_its_place(settings: KafkaSettings, topics: TopicNames) -> None:
    reports: list[Delivery] = []
    with ClientProducer(settings, linger_ms=0) as producer:
        for number in range(50):
            producer.send(topics.control, b"%d" % number, b"v", [("h", b"1")], partition=1, on_delivery=reports.append)
        assert producer.flush(10) == 0
    assert [(report.partition, report.offset, report.error) for report in reports] == [(1, n, None) for n in range(50)]


def test_keys_lie_where_java_puts_them(settings: KafkaSettings, topics: TopicNames) -> None:
    from confluent_kafka import murmur2

    reports: dict[bytes, Delivery] = {}
    with ClientProducer(settings) as producer:
        for number in range(40):
            key = b"key-%d" % number
            producer.send(topics.requests[1], key, b"v", on_delivery=partial(reports.__setitem__, key))
        assert producer.flush(10) == 0
    assert len(reports) == 40
    assert all(report.partition == murmur2(key, 4) for key, report in reports.items())


def test_a_bulk_is_acknowledged_as_a_whole_and_counts_what_failed(settings: KafkaSettings, topics: TopicNames) -> None:
    with ClientProducer(settings) as producer:
        result = producer.produce_bulk(topics.requests[2], ((b"%d" % n, b"v", [("h", b"1")]) for n in range(5_000)))
        assert (result.sent, result.failed, result.pending) == (5_000, 0, 0)
        with pytest.raises(SubmitError, match="_UNKNOWN_PARTITION"):
            producer.produce_bulk(topics.requests[2], [(b"k", b"v", None)], partition=77)
    with ClientProducer(KafkaSettings("127.0.0.1:1", extra={"message.timeout.ms": 300})) as away:
        refused = away.produce_bulk("topic", [(b"k", b"v", None)] * 3)
    assert (refused.sent, refused.failed, refused.pending) == (3, 3, 0)
    assert refused.errors == {"_MSG_TIMED_OUT": 3}
    with Tail(settings, [topics.requests[2]], with_headers=True) as tail:
        records = read_to(tail, tail.ends())
    assert len(records) == 5_000
    assert records[0].headers == (("h", b"1"),)


def test_what_cannot_be_sent_raises_and_the_next_record_goes(settings: KafkaSettings, topics: TopicNames) -> None:
    reports: list[Delivery] = []
    with ClientProducer(settings) as producer:
        with pytest.raises(SubmitError, match="MSG_SIZE_TOO_LARGE"):
            producer.send(topics.control, b"k", b"x" * 70_000_000, on_delivery=reports.append)
        producer.send(topics.control, b"k", b"v", on_delivery=reports.append)
        assert producer.flush(10) == 0
        assert producer.partitions(topics.control) == 4
        with pytest.raises(TopicsMissing, match="nowhere"):
            producer.partitions("nowhere")
    assert [report.error for report in reports] == [None]


def test_a_full_queue_is_told_at_once_when_nobody_wants_to_wait() -> None:
    away = KafkaSettings("127.0.0.1:1", extra={"queue.buffering.max.messages": 10, "message.timeout.ms": 500})
    failed = threading.Event()
    producer = ClientProducer(away)

    def report(delivery: Delivery) -> None:
        assert delivery.code == "_MSG_TIMED_OUT"
        failed.set()

    try:
        for _ in range(10):
            producer.send("topic", b"k", b"v", on_delivery=report, block_s=0)
        with pytest.raises(QueueFull):
            producer.send("topic", b"k", b"v", on_delivery=report, block_s=0)
        assert failed.wait(10)
    finally:
        producer.close(1)
