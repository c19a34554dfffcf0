"""A broker that is frozen or gone: every call ends by its deadline, says what it does not know, and work goes on after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.domain.ports import (
    AbortTransaction,
    Answer,
    Ask,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Flush,
    ListOffsets,
    OffsetCommit,
    Poll,
    Produce,
    ReadSettled,
    RenewProducer,
    SendOffsets,
)
from streamtask.kafka import admin
from streamtask.kafka.broker_adapter import Deadlines
from tests.conftest import warm_up
from tests.contract.member import Member, kind, plan, wait_until

pytestmark = pytest.mark.broker
SHORT = Deadlines(
    list_s=1.5,
    fence_s=1.5,
    settled_s=1.5,
    plain_s=1.5,
    produce_s=1.5,
    offsets_s=1.5,
    commit_s=2,
    abort_s=1.5,
    renew_s=2,
)
OVERHEAD_S = 25.0  # on a loaded machine; without a limit they take a minute


@pytest.fixture(scope="module")
def kafka() -> Iterator[DevBroker]:
    with DevBroker(config=QUICK) as broker:
        warm_up(broker.bootstrap)
        yield broker


@pytest.fixture
def member(kafka: DevBroker, prefix: str) -> Iterator[Member]:
    # The steps of a frozen claim take longer together than a session of 6 s, which the client knows to have ended by itself.
    settings, names = KafkaSettings(kafka.bootstrap, session_timeout_ms=30_000), TopicNames(prefix)
    admin.ensure_topics({"bootstrap.servers": kafka.bootstrap}, names, partitions=2)
    made = Member(settings, names, deadlines=SHORT).owning(2)
    made.turn()
    yield made
    made.adapter.close()


@pytest.fixture
def frozen(kafka: DevBroker) -> Iterator[Callable[[], None]]:
    """Freezes the broker; thawed when the test ends at the latest."""
    yield lambda: kafka.freeze(1)
    kafka.thaw(1)


def timed(member: Member, ask: Ask, limit_s: float) -> Answer:
    began = time.monotonic()
    answer = member.adapter.perform(ask)
    assert time.monotonic() - began < limit_s + OVERHEAD_S, (
        f"{type(ask).__name__} took {time.monotonic() - began:.1f} s"
    )
    return answer


def renewed(member: Member) -> None:
    """A new id, and the group served, as after FENCED and DOUBT."""

    def again() -> bool:
        member.adapter.perform(Poll())
        return isinstance(member.adapter.perform(RenewProducer()), str)

    wait_until(again, 60)
    wait_until(lambda: member.adapter.member_id and len(member.shards) == 2, 60, turn=member.turn)


def test_each_step_of_a_claim_ends_while_the_broker_is_frozen(
    member: Member, kafka: DevBroker, frozen: Callable[[], None]
) -> None:
    frozen()
    assert kind(timed(member, ListOffsets((0, 1)), 0.5)) is FaultKind.RETRY
    assert kind(timed(member, FenceIds(("one", "another")), 0.5)) is FaultKind.RETRY
    assert kind(timed(member, ReadSettled((0, 1)), 0.5)) is FaultKind.RETRY
    assert kind(timed(member, CommitPlain((OffsetCommit(0, 0, 1, "claim"),)), 0.5)) is FaultKind.DOUBT
    kafka.thaw(1)

    def landed() -> bool:  # the doubt was justified
        answer = member.adapter.perform(ListOffsets((0,)))
        return not isinstance(answer, Fault) and answer[0, 0].text == "claim"

    wait_until(landed)


def test_records_that_are_not_acknowledged_end_their_producer(
    member: Member, kafka: DevBroker, frozen: Callable[[], None]
) -> None:
    """Bug: the same producer went on after a broker's death, and its next offsets waited for the dead coordinator."""
    frozen()
    before = member.adapter.transactional_id
    assert member.adapter.perform(Produce(plan(0, 1))) is None
    assert kind(timed(member, Flush(plan(0, 1)), 0.5)) is FaultKind.FENCED
    assert kind(timed(member, AbortTransaction(), 0.5)) is FaultKind.FENCED, "nothing more under this id"
    kafka.thaw(1)
    renewed(member)
    wait_until(lambda: member.adapter.perform(FenceIds((before,))) is None)
    wait_until(lambda: member.adapter.consumer.group_metadata() is not None, turn=member.turn)
    assert member.commit(plan(0, 1, "after")) is None


def test_a_commit_without_an_answer_is_in_doubt_and_the_stable_read_tells(
    member: Member, kafka: DevBroker, frozen: Callable[[], None]
) -> None:
    doubtful = plan(0, 7, "in doubt")
    assert member.produce(doubtful) is None
    assert member.adapter.perform(SendOffsets(doubtful)) is None
    before = member.adapter.transactional_id
    frozen()
    assert kind(timed(member, EndTransaction(), 1)) is FaultKind.DOUBT
    assert kind(member.produce(doubtful)) is FaultKind.FENCED  # nothing more under this id
    assert kind(timed(member, RenewProducer(), 2)) is FaultKind.RETRY
    kafka.thaw(1)
    renewed(member)
    assert member.adapter.transactional_id != before
    wait_until(lambda: member.adapter.perform(FenceIds((before,))) is None)
    answer = None
    deadline = time.monotonic() + 60
    while answer is None or isinstance(answer, Fault):
        assert time.monotonic() < deadline, answer
        answer = member.adapter.perform(ReadSettled((0,)))
    assert answer[0, 0].text in ("in doubt", None)
    assert member.commit(plan(0, 8, "after")) is None


@pytest.mark.slow
def test_offsets_end_by_their_bound_when_the_broker_dies_before_them(member: Member, kafka: DevBroker) -> None:
    assert member.produce(plan(0, 1)) is None
    kafka.kill(1)
    try:
        # librdkafka would run into the socket timeout (6 s) whatever timeout was asked for.
        assert kind(timed(member, SendOffsets(plan(0, 1)), SHORT.offsets_s + 0.5)) in (
            FaultKind.ABORT,
            FaultKind.FENCED,
        )
        assert kind(timed(member, AbortTransaction(), 0.5)) in (FaultKind.RETRY, FaultKind.FENCED)
        assert kind(timed(member, RenewProducer(), 2)) is FaultKind.RETRY
    finally:
        kafka.start(1)
    renewed(member)
    assert member.commit(plan(0, 2, "after")) is None


def test_leaving_and_closing_end_although_the_broker_is_gone(kafka: DevBroker, prefix: str) -> None:
    names = TopicNames(prefix)
    admin.ensure_topics({"bootstrap.servers": kafka.bootstrap}, names, partitions=2)
    member = Member(KafkaSettings(kafka.bootstrap), names, deadlines=Deadlines(close_s=2)).owning(2)
    kafka.kill(1)
    try:
        began = time.monotonic()
        member.adapter.leave()
        assert member.rebalances[-1] == ("revoked", (0, 1))
        member.adapter.close()
        assert time.monotonic() - began < 4 + OVERHEAD_S
    finally:
        kafka.start(1)
