"""One member of the workers' group for the contract tests: a real BrokerAdapter, and callbacks that seat what comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from confluent_kafka import Consumer, Producer

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import DeadLetter, RequestRecord, StatusEvent, TaskStatus
from streamtask.domain.ports import (
    Ask,
    Cell,
    CommitPlan,
    EndTransaction,
    Fault,
    FaultKind,
    Flush,
    OffsetCommit,
    Produce,
    Seat,
    SendOffsets,
)
from streamtask.kafka.broker_adapter import BrokerAdapter, Deadlines
from streamtask.kafka.consumer import Decode

TASK_ID = "01939d5e-0000-7000-8000-000000000001"


def raw_record(
    band: int, partition: int, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: Any
) -> RequestRecord:
    """The place and the bytes; these tests do not look into requests."""
    return RequestRecord(band, partition, offset, timestamp_ms, "", None, 5, timestamp_ms, value or b"", key)


def raw_dead(letter: DeadLetter) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    return letter.task_id.encode() or None, letter.record.value, [("reason", letter.reason.encode())]


def event(shard: int, text: str = "event") -> StatusEvent:
    return StatusEvent(TASK_ID, shard, TaskStatus.RUNNING, 0, 0, f"high-{shard}@0", message=text)


def wait_until(reached: Callable[[], Any], timeout_s: float = 60.0, *, turn: Callable[[], Any] | None = None) -> None:
    """Turn until it is reached, or fail."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        if turn is not None:
            turn()


def together(*members: Member) -> Callable[[], None]:
    """What turns them all, one after the other."""

    def turn() -> None:
        for member in members:
            member.turn()

    return turn


class Member:
    """A BrokerAdapter whose shards are seated at `positions` (0 where nothing is given) as soon as they come.

    rebalances  what the group told, in order: ("assigned" | "revoked" | "lost", shards)
    """

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        *,
        positions: dict[Cell, int] | None = None,
        seat: bool = True,
        deadlines: Deadlines | None = None,
        decode: Decode = raw_record,
    ) -> None:
        self.names, self.positions, self.seat = names, positions or {}, seat
        self.rebalances: list[tuple[str, tuple[int, ...]]] = []
        self.records: list[RequestRecord] = []
        self.lost_positions: list[tuple[int, int, int]] = []
        self.errors: list[str] = []
        self.when_revoked: Callable[[tuple[int, ...]], Any] = lambda shards: None
        self.adapter = BrokerAdapter(
            settings,
            names,
            slot=0,
            decode=decode,
            encode_event=lambda held: (held.message or "").encode(),
            encode_dead=raw_dead,
            listener=self,
            deadlines=deadlines,
        )
        self.adapter.join()

    def cells(self, shards: Iterable[int]) -> dict[Cell, int]:
        return {(b, s): self.positions.get((b, s), 0) for s in shards for b in range(len(self.names.bands))}

    def shards_assigned(self, shards: tuple[int, ...]) -> None:
        self.rebalances.append(("assigned", shards))
        if self.seat:
            assert self.adapter.perform(Seat(self.cells(shards))) is None

    def shards_revoked(self, shards: tuple[int, ...]) -> None:
        self.rebalances.append(("revoked", shards))
        self.when_revoked(shards)

    def shards_lost(self, shards: tuple[int, ...]) -> None:
        self.rebalances.append(("lost", shards))

    def position_lost(self, band: int, shard: int, offset: int) -> None:
        self.lost_positions.append((band, shard, offset))

    def kafka_error(self, text: str) -> None:
        self.errors.append(text)

    def member_changed(self, _member_id: str) -> None: ...

    def turn(self, timeout_s: float = 0.05, records_max: int = 1_000) -> None:
        self.adapter.fetch(timeout_s, records_max)
        self.records += self.adapter.take()

    @property
    def shards(self) -> set[int]:
        return set(self.adapter.consumer.owned)

    def owning(self, count: int, *others: Member) -> Self:
        """Turn (with the others) until this one owns `count` shards."""
        wait_until(lambda: len(self.shards) == count, turn=together(self, *others))
        return self

    def produce(self, plan: CommitPlan) -> Fault | None:
        """The first half of a transaction: the broker has its records."""
        return self._perform(Produce(plan), Flush(plan))

    def commit(self, plan: CommitPlan) -> Fault | None:
        """One whole transaction; the first Fault ends it."""
        return self._perform(Produce(plan), Flush(plan), SendOffsets(plan), EndTransaction())

    def _perform(self, *asks: Ask) -> Fault | None:
        for ask in asks:
            answer: Fault | None = self.adapter.perform(ask)
            if answer is not None:
                return answer
        return None


def plan(
    shard: int, offset: int, text: str = "ledger", *, events: int = 1, dead: Iterable[DeadLetter] = ()
) -> CommitPlan:
    """`events` status events of one shard, and its lead offset."""
    return CommitPlan(
        [event(shard, f"{text}-{number}") for number in range(events)],
        list(dead),
        [OffsetCommit(0, shard, offset, text)],
        (shard,),
    )


def kind(answer: Any) -> FaultKind | None:
    """The kind of a Fault, None for an answer."""
    return answer.kind if isinstance(answer, Fault) else None


def fill(bootstrap: str, topic: str, partition: int, count: int, *, value: bytes = b"v") -> None:
    """`count` records into one partition, acknowledged."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    for _ in range(count):
        producer.produce(topic, value, b"k", partition)
        producer.poll(0)
    assert producer.flush(20) == 0


def read_values(bootstrap: str, topic: str, partition: int, until: bytes, *, committed: bool = True) -> list[bytes]:
    """Values of a partition from its start to the one that equals `until`, which is not among them."""
    from confluent_kafka import TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "fetch.wait.max.ms": 50,
        }
    )
    values: list[bytes] = []
    deadline = time.monotonic() + 60
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None:
                continue
            assert message.error() is None, message.error()
            if message.value() == until:
                return values
            values.append(message.value() or b"")
        raise AssertionError(f"{until!r} was not seen, only {values}")
    finally:
        consumer.close()
