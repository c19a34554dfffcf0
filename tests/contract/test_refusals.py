"""What a real producer says of partitions that take nothing, and what a probe finds out about them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import DeadLetter, RequestRecord
from streamtask.domain.ports import (
    DEAD,
    LETTERS,
    STATUS,
    AbortTransaction,
    Fault,
    FaultKind,
    Flush,
    Place,
    Poll,
    Produce,
    RenewProducer,
    Waiting,
)
from streamtask.kafka.probe import Probes
from streamtask.testing import Broker
from tests.contract.member import Member, kind, plan, read_values, wait_until

pytestmark = pytest.mark.broker


@pytest.fixture
def member(broker: Broker, topics: TopicNames) -> Iterator[Member]:
    made = Member(KafkaSettings(broker.bootstrap), topics).owning(4)
    yield made
    made.adapter.close()


def letter(offset: int = 0) -> DeadLetter:
    record = RequestRecord(1, 0, offset, 0, f"task-{offset}", None, 5, 0, b"{}")
    return DeadLetter(record, "handler_error", "no", f"normal-0@{offset}", record.task_id)


def deleted(broker: Broker, topic: str) -> None:
    client = AdminClient({"bootstrap.servers": broker.bootstrap})
    client.delete_topics([topic])[topic].result(20)
    wait_until(lambda: topic not in client.list_topics(timeout=10).topics)


def probed(probes: Probes, *places: Place) -> dict[Place, str | None]:
    probes.ask(places)
    found: dict[Place, str | None] = {}

    def all_answered() -> bool:
        found.update(probes.answers())
        return len(found) == len(places)

    wait_until(all_answered, 60)
    return found


def letter_refused(member: Member, *, within_s: float = 30.0) -> Fault:
    """Batches with a dead letter, each with a new producer, until a fault names tasks.dead."""
    deadline = time.monotonic() + within_s
    while True:
        commit = plan(0, 1, dead=[letter()])
        answer = member.adapter.perform(Produce(commit)) or member.adapter.perform(Flush(commit, 1_500))
        if isinstance(answer, Fault) and answer.places and not any(topic == STATUS for topic, _ in answer.places):
            return answer
        assert time.monotonic() < deadline, f"{answer}"
        member.adapter.perform(Poll())
        assert isinstance(member.adapter.perform(RenewProducer()), str)


def test_a_letter_for_a_topic_that_is_gone_names_tasks_dead(member: Member, broker: Broker, topics: TopicNames) -> None:
    """Bug: the report of a record whose partition was never chosen has none, and the worker died of it."""
    deleted(broker, topics.dead)
    answer = letter_refused(member)
    assert answer.kind in (FaultKind.FENCED, FaultKind.ABORT)
    assert {topic for topic, _ in answer.places} == {LETTERS}
    assert isinstance(member.adapter.perform(RenewProducer()), str)
    assert member.commit(plan(0, 1)) is None, "without letters all is well"


def test_letters_go_to_the_partitions_that_are_not_avoided(member: Member, broker: Broker, topics: TopicNames) -> None:
    client = AdminClient({"bootstrap.servers": broker.bootstrap})
    numbers = sorted(client.list_topics(topics.dead, timeout=10).topics[topics.dead].partitions)
    commit = plan(0, 1, dead=[letter(n) for n in range(20)])
    commit.avoid = frozenset(numbers[1:])
    assert member.commit(commit) is None
    commit = plan(0, 2, dead=[letter(99)])
    commit.avoid = frozenset(numbers)
    answer = member.adapter.perform(Produce(commit))
    assert isinstance(answer, Fault)
    assert (answer.kind, answer.places) == (FaultKind.ABORT, frozenset({DEAD}))


def test_a_batch_whose_letters_cannot_be_placed_is_aborted_and_the_next_one_commits(member: Member) -> None:
    """Bug: no broker said which partitions tasks.dead has; the abort of what had not begun ended the worker."""

    class Silent:
        """The producer, whose brokers do not answer questions."""

        def __init__(self, real: Producer) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def list_topics(self, *_: Any, **__: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    transaction = member.adapter._transaction
    assert transaction is not None
    real = transaction._producer
    transaction._producer = Silent(real)  # type: ignore[assignment,arg-type]
    commit = plan(0, 1, dead=[letter()])
    commit.avoid = frozenset({0})
    answer = member.adapter.perform(Produce(commit))
    assert isinstance(answer, Fault)
    assert answer.kind is FaultKind.ABORT
    assert member.adapter.perform(AbortTransaction()) is None
    transaction._producer = real
    assert member.commit(plan(0, 1)) is None


def test_a_flush_answers_in_slices_and_gives_up_only_when_it_is_told(member: Member) -> None:
    commit = plan(0, 1)
    assert member.adapter.perform(Produce(commit)) is None
    answer: Waiting | Fault | None = Waiting(1, 1)
    while isinstance(answer, Waiting):
        answer = member.adapter.perform(Flush(commit, 50, last=False))
    assert kind(answer) is None


def test_a_probe_tells_a_partition_that_takes_records_from_one_that_does_not(
    broker: Broker, topics: TopicNames
) -> None:
    probes = Probes(KafkaSettings(broker.bootstrap), topics, 0)
    places: tuple[Place, ...] = ((STATUS, 0), (STATUS, 3), (LETTERS, 0), DEAD)
    wait_until(lambda: probed(probes, *places) == dict.fromkeys(places), 60)
    deleted(broker, topics.dead)
    answers = probed(probes, (LETTERS, 0), DEAD)
    assert all(topics.dead in (why or "") for why in answers.values()), answers
    client = AdminClient({"bootstrap.servers": broker.bootstrap})
    client.create_topics([NewTopic(topics.dead, 1, 1)])[topics.dead].result(20)
    wait_until(lambda: probed(probes, DEAD)[DEAD] is None, 60)
    # Made anew with one partition: nothing is to be kept away from one that is no more.
    wait_until(lambda: probed(probes, (LETTERS, 2))[LETTERS, 2] is None, 60)


def test_what_a_probe_writes_is_never_read(member: Member, broker: Broker, topics: TopicNames) -> None:
    probes = Probes(KafkaSettings(broker.bootstrap), topics, 0)
    wait_until(lambda: probed(probes, (STATUS, 0))[STATUS, 0] is None, 60)
    assert member.commit(plan(0, 1, "seen")) is None
    assert read_values(broker.bootstrap, topics.status, 0, b"seen-0") == []
