"""The broker's rules that the simulation relies on, each on a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import DeadLetter, RequestRecord
from streamtask.domain.ports import (
    AbortTransaction,
    Cell,
    CommitPlain,
    CommitPlan,
    Committed,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Flush,
    ListOffsets,
    OffsetCommit,
    Produce,
    ReadSettled,
    RenewProducer,
    SendOffsets,
    Settled,
    Waiting,
)
from streamtask.kafka.broker_adapter import Deadlines
from streamtask.kafka.transaction import StatusTransaction, new_transactional_id
from tests.contract.member import Member, event, fill, kind, plan, raw_dead, read_values, wait_until
from tests.payloads import incompressible

pytestmark = pytest.mark.broker
QUICK = Deadlines(settled_s=2.0)


@pytest.fixture
def settings(broker: Any) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap, client_id="contract")


@pytest.fixture
def member(settings: KafkaSettings, topics: TopicNames) -> Iterator[Member]:
    """Owns all four shards."""
    made = Member(settings, topics, deadlines=QUICK).owning(4)
    made.turn()
    yield made
    made.adapter.close()


@pytest.fixture
def transaction(settings: KafkaSettings, topics: TopicNames) -> Iterator[Callable[[], StatusTransaction]]:
    """Makes further transactional producers: other owners of the same group."""
    made: list[StatusTransaction] = []

    def make() -> StatusTransaction:
        one = StatusTransaction(
            settings, topics, new_transactional_id(topics.group, 9), lambda e: (e.message or "").encode(), raw_dead
        )
        made.append(one)
        assert one.init(20) is None
        return one

    yield make
    for one in made:
        one.discard()


def flushed(one: StatusTransaction, what: CommitPlan) -> Fault | Waiting | None:
    """Produced, and the broker has it."""
    return one.produce(what, 5) or one.flush()


def pending(one: StatusTransaction, member: Member, shard: int, offset: int, text: str) -> None:
    """An owner that stops right before its commit."""
    assert flushed(one, plan(shard, offset, text)) is None
    assert one.send_offsets(plan(shard, offset, text), member.adapter.consumer.group_metadata(), 5) is None


def settled(member: Member, shard: int) -> dict[Cell, Settled]:
    answer = member.adapter.perform(ReadSettled((shard,)))
    assert isinstance(answer, dict), answer
    return answer


def end_mark(settings: KafkaSettings, topic: str, partition: int) -> bytes:
    fill(settings.bootstrap, topic, partition, 1, value=b"the end")
    return b"the end"


# --- offsets ----------------------------------------------------------------------------------------------------------


def test_nothing_committed_is_none_and_a_text_comes_back_as_it_was(member: Member) -> None:
    listed = member.adapter.perform(ListOffsets((0, 2)))
    assert listed == {(band, shard): Committed(None, None) for band in range(3) for shard in (0, 2)}
    assert member.commit(plan(2, 7, "词 ledger")) is None
    assert settled(member, 2)[0, 2] == Settled(7, "词 ledger", 0, 0)
    assert member.adapter.perform(ListOffsets((2,)))[0, 2] == Committed(7, "词 ledger")


def test_a_text_of_4000_characters_survives_also_in_three_bytes_each(member: Member) -> None:
    for character in ("a", "词"):
        assert member.commit(plan(1, 3, character * 4_000, events=0)) is None
        # A commit is answered before its markers are written: only the stable read waits for them.
        assert settled(member, 1)[0, 1].text == character * 4_000
        assert member.adapter.perform(ListOffsets((1,)))[0, 1] == Committed(3, character * 4_000)


def test_a_text_that_is_too_long_aborts_its_transaction_and_the_next_one_works(member: Member) -> None:
    assert kind(member.commit(plan(1, 3, "a" * 4_096))) is FaultKind.ABORT
    assert member.adapter.perform(AbortTransaction()) is None
    assert member.commit(plan(1, 3, "short")) is None


def test_an_offset_without_a_text_is_told_from_one_with_a_text(member: Member) -> None:
    offsets = (OffsetCommit(0, 0, 4, ""), OffsetCommit(1, 0, 5, "text"))
    assert member.adapter.perform(CommitPlain(offsets)) is None
    listed = member.adapter.perform(ListOffsets((0,)))
    assert (listed[0, 0], listed[1, 0]) == (Committed(4, None), Committed(5, "text"))


def test_a_pending_offset_is_not_listed_and_holds_the_stable_read_back(
    member: Member, transaction: Callable[[], StatusTransaction]
) -> None:
    assert member.commit(plan(0, 1, "before")) is None
    assert settled(member, 0)[0, 0].text == "before"
    owner = transaction()
    pending(owner, member, 0, 2, "pending")
    assert member.adapter.perform(ListOffsets((0,)))[0, 0] == Committed(1, "before")
    began = time.monotonic()
    assert kind(member.adapter.perform(ReadSettled((0,)))) is FaultKind.UNSTABLE
    assert 1.9 < time.monotonic() - began < 12
    assert owner.commit(5) is None
    assert settled(member, 0)[0, 0] == Settled(2, "pending", 0, 0)


def test_the_bounds_of_a_log_are_its_start_and_its_uncommitted_end(
    member: Member, settings: KafkaSettings, topics: TopicNames
) -> None:
    fill(settings.bootstrap, topics.requests[1], 3, 5)
    producer = Producer(settings.transactional(f"{topics.group}.foreign"))
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topics.requests[1], b"open", b"k", 3)
    producer.flush(5)
    found = settled(member, 3)
    assert found[1, 3] == Settled(None, None, 0, 6)
    assert found[0, 3] == Settled(None, None, 0, 0)
    producer.abort_transaction(5)


# --- fencing ----------------------------------------------------------------------------------------------------------


def test_fencing_an_id_aborts_what_it_has_open_and_ends_its_holder(
    member: Member, transaction: Callable[[], StatusTransaction], settings: KafkaSettings, topics: TopicNames
) -> None:
    owner = transaction()
    pending(owner, member, 0, 2, "pending")
    assert member.adapter.perform(FenceIds((owner.transactional_id,))) is None
    assert settled(member, 0)[0, 0].offset is None
    assert kind(owner.commit(5)) is FaultKind.FENCED
    assert not owner.usable
    assert kind(owner.abort(5)) is FaultKind.FENCED
    assert read_values(settings.bootstrap, topics.status, 0, end_mark(settings, topics.status, 0)) == []


def test_a_fenced_owner_is_told_at_whatever_it_does_next(
    member: Member, transaction: Callable[[], StatusTransaction]
) -> None:
    idle, producing, sending = transaction(), transaction(), transaction()
    assert flushed(producing, plan(0, 1)) is None
    assert flushed(sending, plan(1, 1)) is None
    assert member.adapter.perform(FenceIds(tuple(one.transactional_id for one in (idle, producing, sending)))) is None
    assert kind(flushed(idle, plan(0, 1))) is FaultKind.FENCED
    assert kind(producing.abort(5)) is FaultKind.FENCED
    metadata = member.adapter.consumer.group_metadata()
    assert kind(sending.send_offsets(plan(1, 1), metadata, 5)) is FaultKind.FENCED


def test_many_ids_are_fenced_at_once_also_such_as_nobody_ever_used(member: Member, topics: TopicNames) -> None:
    ids = tuple(new_transactional_id(topics.group, slot) for slot in range(6))
    assert member.adapter.perform(FenceIds(ids)) is None
    assert member.adapter.perform(FenceIds(())) is None


def test_a_renewed_producer_has_a_new_id_and_the_old_ones_records_stay_aborted(
    member: Member, settings: KafkaSettings, topics: TopicNames
) -> None:
    before = member.adapter.transactional_id
    assert member.produce(plan(3, 1, "old")) is None
    assert member.adapter.perform(SendOffsets(plan(3, 1, "old"))) is None
    answer = member.adapter.perform(RenewProducer())
    assert answer == member.adapter.transactional_id != before
    assert answer.startswith(f"{topics.group}.0.")
    assert member.adapter.perform(FenceIds((before,))) is None
    assert member.commit(plan(3, 2, "new")) is None
    assert read_values(settings.bootstrap, topics.status, 3, end_mark(settings, topics.status, 3)) == [b"new-0"]


def test_without_its_fence_a_zombies_batch_still_needs_its_generation(
    member: Member, transaction: Callable[[], StatusTransaction], settings: KafkaSettings, topics: TopicNames
) -> None:
    """The generation is checked when offsets are sent, never at the end: what was sent before may be committed after."""
    early, late = transaction(), transaction()
    old = member.adapter.consumer.group_metadata()
    assert flushed(early, plan(0, 5, "early")) is None
    assert early.send_offsets(plan(0, 5, "early"), old, 5) is None
    assert flushed(late, plan(1, 5, "late")) is None
    other = Member(settings, topics)
    try:
        other.owning(2, member)  # the next generation
        assert kind(late.send_offsets(plan(1, 5, "late"), old, 5)) is FaultKind.STALE
        assert late.abort(5) is None
        assert early.commit(5) is None
        assert settled(member, 0)[0, 0].text == "early"
    finally:
        other.adapter.close()


# --- plain commit -----------------------------------------------------------------------------------------------------


def test_a_plain_commit_wins_over_a_pending_one_also_when_that_commits_later(
    member: Member, transaction: Callable[[], StatusTransaction]
) -> None:
    owner = transaction()
    pending(owner, member, 0, 9, "zombie")
    assert member.adapter.perform(CommitPlain((OffsetCommit(0, 0, 4, "claim"),))) is None
    assert member.adapter.perform(ListOffsets((0,)))[0, 0] == Committed(4, "claim")
    assert owner.commit(5) is None
    assert settled(member, 0)[0, 0].text == "claim"


def test_a_plain_commit_of_one_who_never_joined_is_stale(settings: KafkaSettings, topics: TopicNames) -> None:
    outsider = Member(settings, topics)
    try:
        assert kind(outsider.adapter.perform(CommitPlain((OffsetCommit(0, 0, 4, "claim"),)))) is FaultKind.STALE
        assert outsider.produce(plan(0, 4)) is None
        assert kind(outsider.adapter.perform(SendOffsets(plan(0, 4)))) is FaultKind.STALE
    finally:
        outsider.adapter.close()


# --- transactions -----------------------------------------------------------------------------------------------------


def test_events_and_offsets_appear_together_or_not_at_all(
    member: Member, settings: KafkaSettings, topics: TopicNames
) -> None:
    assert member.commit(plan(2, 1, "one", events=3)) is None
    assert member.produce(plan(2, 2, "two")) is None
    assert member.adapter.perform(SendOffsets(plan(2, 2, "two"))) is None
    assert member.adapter.perform(AbortTransaction()) is None
    assert member.commit(plan(2, 3, "three")) is None
    values = read_values(settings.bootstrap, topics.status, 2, end_mark(settings, topics.status, 2))
    assert values == [b"one-0", b"one-1", b"one-2", b"three-0"]
    assert settled(member, 2)[0, 2].text == "three"


def test_a_dead_letter_shares_the_transaction_whether_it_has_a_key_or_not(member: Member) -> None:
    record = RequestRecord(0, 1, 5, 0, "", None, 5, 0, b"bytes")
    letters = [DeadLetter(record, "invalid_request", "", "high-1@5"), DeadLetter(record, "x", "", "high-1@5", "id")]
    assert member.commit(plan(1, 6, dead=letters)) is None


@pytest.mark.parametrize("size", [70_000_000, 1_500_000, 999_950], ids=["local", "large", "broker"])
def test_a_record_too_big_is_named_and_the_producer_goes_on(
    member: Member, size: int, settings: KafkaSettings, topics: TopicNames
) -> None:
    """70 MB is refused by the client; below its own limit (MESSAGE_BYTES_MAX) the topic's decides."""
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

    limit = ConfigEntry("max.message.bytes", "500000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topics.status, incremental_configs=[limit])
    admin = AdminClient(settings.admin())
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(10)
    before = member.adapter.transactional_id
    big = CommitPlan([event(0, incompressible(size))], [], [OffsetCommit(0, 0, 1, "big")], (0,))

    def refused() -> bool:  # the broker applies a topic's limit a little after it has it
        answer = member.produce(big)
        assert kind(answer) in (FaultKind.RECORD, None)
        assert member.adapter.perform(AbortTransaction()) is None
        return answer is not None

    wait_until(refused)
    # The transaction after a refused record may see OUT_OF_ORDER_SEQUENCE_NUMBER once.
    answers: list[object] = []
    while not answers or answers[-1] is not None:
        answers.append(member.commit(plan(0, 1, "after")))
        if answers[-1] is not None:
            assert kind(answers[-1]) is FaultKind.ABORT
            assert member.adapter.perform(AbortTransaction()) is None
        assert len(answers) <= 2
    assert member.adapter.transactional_id == before


def test_many_small_records_that_exceed_the_batch_limit_together_pass(member: Member) -> None:
    texts = [event(0, "x" * 9_000) for _ in range(400)]
    assert member.commit(CommitPlan(texts, [], [OffsetCommit(0, 0, 1, "many")], (0,))) is None


def test_more_records_than_the_queue_holds_are_flushed_on_the_way(settings: KafkaSettings, topics: TopicNames) -> None:
    small = KafkaSettings(settings.bootstrap, extra={"queue.buffering.max.messages": 500})
    member = Member(small, topics).owning(4)
    try:
        member.turn()
        assert member.commit(plan(0, 1, "many", events=5_000)) is None
    finally:
        member.adapter.close()


def test_an_unknown_partition_aborts_and_the_producer_goes_on(member: Member) -> None:
    assert kind(member.produce(plan(77, 1))) is FaultKind.ABORT
    assert member.adapter.perform(AbortTransaction()) is None
    assert member.commit(plan(0, 1)) is None


def test_a_partition_that_was_added_is_known_to_the_producer_after_an_aborted_batch(
    settings: KafkaSettings, topics: TopicNames, transaction: Callable[[], StatusTransaction]
) -> None:
    """Bug: every batch with a record for it was aborted, with all that it held for other shards, for up to five minutes."""
    one = transaction()
    assert one.produce(plan(0, 1), 5) is None
    assert one.abort(5) is None
    admin = AdminClient(settings.admin())
    admin.create_partitions([NewPartitions(topics.status, 5)])[topics.status].result(30)
    answers: list[Fault | Waiting | None] = []

    def produced() -> bool:
        answers.append(flushed(one, plan(4, 1)))
        assert one.abort(5) is None
        return answers[-1] is None

    wait_until(produced)
    assert {kind(answer) for answer in answers[:-1]} <= {FaultKind.ABORT}


def test_records_without_their_lead_offset_are_an_illegal_move(
    transaction: Callable[[], StatusTransaction],
) -> None:
    one = transaction()
    bare = CommitPlan([event(0)], [], [OffsetCommit(1, 0, 1, "not the lead"), OffsetCommit(0, 1, 1, "another")], (0,))
    with pytest.raises(AssertionError, match="fence rule"):
        one.produce(bare, 5)
    assert not one.usable


def test_an_illegal_move_poisons_the_producer(member: Member, transaction: Callable[[], StatusTransaction]) -> None:
    one = transaction()
    assert one.produce(plan(0, 1), 5) is None
    with pytest.raises(AssertionError, match="commit in state open"):
        one.commit(5)
    assert not one.usable
    assert kind(one.produce(plan(0, 1), 5)) is FaultKind.FENCED


def test_offsets_of_a_shard_that_is_not_assigned_here_are_not_sent(
    member: Member, settings: KafkaSettings, topics: TopicNames
) -> None:
    """Kafka fences members, not partitions: the broker would take them."""
    other = Member(settings, topics)
    try:
        other.owning(2, member)
        member.turn()
        theirs = min(other.shards)
        assert member.produce(plan(theirs, 1)) is None
        assert kind(member.adapter.perform(SendOffsets(plan(theirs, 1)))) is FaultKind.STALE
        assert member.adapter.perform(AbortTransaction()) is None
        ours = min(member.shards)
        assert member.commit(plan(ours, 1)) is None
    finally:
        other.adapter.close()


def test_an_id_is_made_of_group_slot_and_chance() -> None:
    ids = {new_transactional_id("tasks.workers", 3) for _ in range(100)}
    assert len(ids) == 100
    assert all(one.startswith("tasks.workers.3.") for one in ids)


def test_ending_without_a_producer_is_fenced_not_raised(member: Member) -> None:
    member.adapter._transaction = None  # as after a RenewProducer that failed
    for ask in (Produce(plan(0, 1)), Flush(plan(0, 1)), SendOffsets(plan(0, 1)), EndTransaction(), AbortTransaction()):
        assert kind(member.adapter.perform(ask)) is FaultKind.FENCED
    assert isinstance(member.adapter.perform(RenewProducer()), str)
    assert member.commit(plan(0, 1)) is None


def test_an_error_that_the_client_has_lost_ends_the_producer_and_not_the_worker(member: Member) -> None:
    """Bug: `flush` of a producer that had been fenced raised a SystemError without a cause, which ended the owner."""

    class Losing:
        """The producer, whose next flush has lost its error."""

        def __init__(self, real: Producer) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def flush(self, *_: Any) -> int:
            raise SystemError("<method 'flush' of 'cimpl.Producer' objects> returned NULL without setting an exception")

    transaction = member.adapter._transaction
    assert transaction is not None
    transaction._producer = Losing(transaction._producer)  # type: ignore[assignment,arg-type]
    assert member.adapter.perform(Produce(plan(0, 1))) is None
    assert kind(member.adapter.perform(Flush(plan(0, 1)))) is FaultKind.FENCED
    before = member.adapter.transactional_id
    assert isinstance(member.adapter.perform(RenewProducer()), str)
    assert member.adapter.perform(FenceIds((before,))) is None
    assert member.commit(plan(0, 1)) is None
