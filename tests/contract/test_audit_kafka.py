"""The audit on a real Kafka: the facts it reads are those that were committed."""

from __future__ import annotations

import threading

import pytest

from streamtask.audit import run_audit
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.testing import Broker
from tests.contract.audit_writer import COMPLETED, CREATED, IDS, RUNNING, Writer

pytestmark = pytest.mark.broker


@pytest.fixture
def writer(broker: Broker, topics: TopicNames) -> Writer:
    return Writer(broker, topics)


@pytest.fixture
def settings(broker: Broker) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap)


def test_a_cluster_without_a_single_record_is_clean(settings: KafkaSettings, topics: TopicNames) -> None:
    report = run_audit(settings, topics, timeout_s=30)
    assert report.finished
    assert (report.requests, report.events) == (0, 0)


def test_a_real_cluster_is_read_whole_and_judged(settings: KafkaSettings, writer: Writer) -> None:
    for shard in range(3):
        writer.request(shard, IDS[shard])
        writer.history(shard, IDS[shard], CREATED, RUNNING)
    writer.history(0, IDS[0], COMPLETED)
    writer.request(0, "", value=b"\xffnot json")
    writer.worker.begin_transaction()
    writer.letter(0, 1, b"\xffnot json")
    writer.worker.commit_transaction(30)
    writer.request(3, IDS[3], band=2)
    writer.commit(0, 2)  # both are ended
    writer.commit(1, 0)  # runs
    writer.commit(2, 1)  # passed, and never ended
    report = run_audit(settings, writer.names, timeout_s=60)
    assert report.unread == []
    assert [(item.kind, item.origin, item.task_id) for item in report.violations] == [
        ("committed_past_unfinished", "high-2@0", IDS[2])
    ]
    assert {(item.origin, item.status) for item in report.pending} == {("high-1@0", "running"), ("low-3@0", "")}
    assert (report.requests, report.invalid, report.letters, report.events) == (5, 1, 1, 7)
    assert report.counts == {"running": 2, "completed": 1}


def test_what_an_aborted_transaction_wrote_was_never_said(settings: KafkaSettings, writer: Writer) -> None:
    writer.request(0, IDS[0])
    writer.history(0, IDS[0], CREATED, RUNNING, COMPLETED)
    writer.worker.begin_transaction()
    writer.event(0, IDS[0], COMPLETED)
    writer.worker.flush(30)
    writer.worker.abort_transaction(30)
    writer.commit(0, 1)
    assert run_audit(settings, writer.names, timeout_s=60).finished


def test_the_audit_waits_for_an_open_transaction_and_says_what_it_could_not_read(
    settings: KafkaSettings, writer: Writer
) -> None:
    writer.request(0, IDS[0])
    writer.history(0, IDS[0], CREATED, RUNNING)
    writer.worker.begin_transaction()
    writer.event(0, IDS[0], COMPLETED)
    assert writer.worker.flush(30) == 0
    held = run_audit(settings, writer.names, timeout_s=3)
    assert not held.clean
    assert held.violations == []
    assert any(f"{writer.names.status} [0]" in text for text in held.unread)

    waiting = threading.Thread(target=writer.worker.commit_transaction, args=(30,))
    waiting.start()
    whole = run_audit(settings, writer.names, timeout_s=60)
    waiting.join()
    assert whole.clean
    assert whole.counts == {"completed": 1}
