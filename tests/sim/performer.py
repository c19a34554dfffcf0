"""How the asks of a process are performed on the model broker, each as the real adapter performs it.

One method for each ask: what it answers, BLOCKED when the broker says «try again», or a fault. `twist` is the adversary's
word for what goes wrong with this one: `applied` (took effect, the answer is lost), `late` (takes effect later), `never`,
`copy` (took effect, and a copy stays in the network), `left` (took effect, no answer came in time: the producer is left behind
with its transaction open).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamtask.core.batch_size import SILENT_MS
from streamtask.domain.ports import (
    LETTERS,
    STATUS,
    AbortTransaction,
    Ask,
    Cell,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Fetch,
    Flush,
    ListOffsets,
    Poll,
    Produce,
    ReadSettled,
    Rejoin,
    RenewProducer,
    Seat,
    SendOffsets,
    Waiting,
)

from .broker import ONGOING, Broker, Producer
from .group import Membership
from .handlers import Execution

if TYPE_CHECKING:
    from .cluster import Cluster

CLAIM_DEADLINE_MS = 3_000
DECIDED_MS = 700  # kafka.fencing.DECIDED_S


class Blocked:
    """The broker asks to try again."""


BLOCKED = Blocked()


class Performer:
    """The part of a process that talks to the broker."""

    cluster: Cluster
    twist: Callable[[Ask], Fault | str]  # what goes wrong with an ask
    broker: Broker
    rng: random.Random
    producer: Producer
    member: int | None
    membership: Membership | None
    held: set[int]
    claimed: set[int]  # ghost: shards whose claim was answered since they were assigned
    barrier: dict[int, int]  # ghost: end of tasks.control when the shard was claimed
    positions: dict[Cell, int]
    executions: dict[int, Execution]
    _fencing: tuple[FenceIds | None, set[str]]
    _produced_ms: int

    def next_id(self) -> str:
        """A transactional id that was never used."""
        raise NotImplementedError

    def _perform(self, ask: Ask, since_ms: int) -> Any:
        twist = self.twist(ask)
        if isinstance(twist, Fault):
            return twist
        waited = self.cluster.timeline.now - since_ms
        return getattr(self, _PERFORM[type(ask)])(ask, waited, twist)

    def _list_offsets(self, ask: ListOffsets, waited_ms: int, twist: str) -> Any:
        return self.broker.list_offsets(ask.shards)

    def _fence_ids(self, ask: FenceIds, waited_ms: int, twist: str) -> Any:
        if ask is not self._fencing[0]:
            self._fencing = (ask, set(ask.ids))
        left = self._fencing[1]
        left.difference_update([id for id in sorted(left) if self.broker.init(id)])
        if not left:
            return None
        if waited_ms >= DECIDED_MS and all(self.broker.transactions[id].state != ONGOING for id in left):
            return None  # only markers are missing
        return BLOCKED if waited_ms < CLAIM_DEADLINE_MS else Fault(FaultKind.RETRY, "CONCURRENT_TRANSACTIONS")

    def _read_settled(self, ask: ReadSettled, waited_ms: int, twist: str) -> Any:
        if self.broker.unstable(ask.shards):
            return BLOCKED if waited_ms < CLAIM_DEADLINE_MS else Fault(FaultKind.UNSTABLE, "UNSTABLE_OFFSET_COMMIT")
        return self.broker.read_settled(ask.shards)

    def _commit_plain(self, ask: CommitPlain, waited_ms: int, twist: str) -> Any:
        fresh = frozenset(o.shard for o in ask.offsets) - self.claimed
        membership = self.broker.group.capture(self.member)
        if twist != "never" and twist != "late":
            fault = self.broker.commit_plain(membership, ask.offsets, fresh=fresh)
            if fault is not None:
                return fault
        if twist in ("late", "copy") and membership is not None:
            self.broker.commit_plain_later(membership, ask.offsets, self.rng.randint(0, 300), fresh=fresh)
        if twist:
            return Fault(FaultKind.DOUBT, f"no answer ({twist})")
        self.barrier.update(dict.fromkeys(fresh, len(self.broker.control)))
        self.claimed.update(o.shard for o in ask.offsets)
        return None

    def _seat(self, ask: Seat, waited_ms: int, twist: str) -> Any:
        for cell, position in ask.positions.items():
            if cell[1] in self.held:
                self.positions[cell] = position
                self.cluster.seated(cell)

    def _produce(self, ask: Produce, waited_ms: int, twist: str) -> Any:
        if self.broker.busy(self.producer):
            # A real producer takes the records, and its flush is not answered: AddPartitionsToTxn is told to come again.
            if waited_ms < SILENT_MS:
                return BLOCKED
            return Fault(FaultKind.FENCED, "not acknowledged in time: CONCURRENT_TRANSACTIONS")
        self._produced_ms = self.cluster.timeline.now
        return self.broker.produce(self.producer, ask.plan)

    def _flush(self, ask: Flush, waited_ms: int, twist: str) -> Any:
        if twist:
            return _left(twist)
        silent = self.broker.silent(ask.plan)
        produced = len(ask.plan.events) + len(ask.plan.dead)
        size = sum(len(event.result or b"") for event in ask.plan.events)
        late = size > self.cluster.link_bytes_ms * (self.cluster.timeline.now - self._produced_ms)
        if not silent and not late:
            return None
        if ask.last:
            places = silent or frozenset((STATUS, event.partition) for event in ask.plan.events)
            return Fault(FaultKind.FENCED, "not acknowledged in time", places)
        if waited_ms < ask.wait_ms:
            return BLOCKED
        touched = {(STATUS, event.partition) for event in ask.plan.events} | {(LETTERS, 0) for _ in ask.plan.dead}
        some = not late and len(touched) > len(silent)
        return Waiting(max(1, produced - 1) if some else produced, produced)

    def _send_offsets(self, ask: SendOffsets, waited_ms: int, twist: str) -> Any:
        if self.broker.busy(self.producer):
            return BLOCKED
        return self.broker.send_offsets(self.producer, self.membership, ask.plan.offsets) or _left(twist)

    def _end_transaction(self, ask: EndTransaction, waited_ms: int, twist: str) -> Any:
        if not twist:
            return self.broker.end(self.producer)
        if twist in ("applied", "copy"):
            fault = self.broker.end(self.producer)
            if fault is not None:
                return fault
        if twist in ("late", "copy"):
            self.broker.end_later(self.producer, self.rng.choice((2, 20, 200, 2_000)))
        return Fault(FaultKind.DOUBT, f"no answer ({twist})")

    def _abort(self, ask: AbortTransaction, waited_ms: int, twist: str) -> Any:
        return self.broker.abort(self.producer)

    def _renew(self, ask: RenewProducer, waited_ms: int, twist: str) -> Any:
        self.producer = self.broker.new_producer(self.next_id())
        return self.producer.id

    def _poll(self, ask: Poll | Fetch, waited_ms: int, twist: str) -> Any:
        return None

    def _rejoin(self, ask: Rejoin, waited_ms: int, twist: str) -> Any:
        if self.member is not None:
            self.broker.group.remove(self.member)
        return None


def _left(twist: str) -> Fault | None:
    return Fault(FaultKind.FENCED, "no answer: left behind") if twist == "left" else None


_PERFORM: dict[type, str] = {
    ListOffsets: "_list_offsets",
    FenceIds: "_fence_ids",
    ReadSettled: "_read_settled",
    CommitPlain: "_commit_plain",
    Seat: "_seat",
    Produce: "_produce",
    Flush: "_flush",
    SendOffsets: "_send_offsets",
    EndTransaction: "_end_transaction",
    AbortTransaction: "_abort",
    RenewProducer: "_renew",
    Poll: "_poll",
    Fetch: "_poll",
    Rejoin: "_rejoin",
}
