"""A deterministic Kafka: request logs, transactions, committed offsets, the status and dead topics.

What it keeps to (tests/contract/test_sim_rules.py checks each rule against the real broker, where the two can be
compared):

- A transaction is Ongoing, then decided (Prepare), then complete: EndTxn is answered at the decision, and the markers
  reach each partition later, one by one, in any order. The next transaction of that id waits until all are written.
- A read_committed reader sees a partition up to its first record whose transaction is not complete (LSO).
- Offsets sent in a transaction are pending until its marker is written to the offsets topic; a later commit of the same
  cell, plain or transactional, wins over an earlier pending one. A stable read waits for pending ones, a listing does not.
- `init` of an id aborts its open transaction and waits for a decided one; it makes every earlier holder of the id void.
- The generation is checked where offsets are sent, never at EndTxn.
- A copy of an EndTxn or of a plain commit may stay in the network and arrive later.
- A partition that is sick takes nothing: no record, and no marker, so a transaction that touched it stays decided and not
  complete until it is well again, and its id answers «try again» meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from streamtask.domain.model import DeadLetter, RequestRecord, StatusEvent
from streamtask.domain.ports import DEAD as DEAD_TOPIC
from streamtask.domain.ports import (
    LETTERS,
    STATUS,
    UNKNOWN,
    Cell,
    CommitPlan,
    Committed,
    Fault,
    FaultKind,
    OffsetCommit,
    Place,
    Settled,
)

from .group import Group, Membership
from .timeline import Timeline

OFFSETS = ("offsets", -1)
DEAD = ("dead", -1)
Target = tuple[str, int]

EMPTY, ONGOING, COMMITTING, ABORTING = "empty", "ongoing", "committing", "aborting"


class Watch(Protocol):
    """Who is told what takes effect, in the order in which it does."""

    def decided(self, entries: Sequence[Entry], dead: Sequence[DeadLetter], commits: Sequence[OffsetCommit]) -> None:
        """A transaction was committed at its coordinator."""

    def recorded(self, commits: Sequence[OffsetCommit], *, fresh: frozenset[int]) -> None:
        """A plain commit took effect; `fresh`: the shards that are claimed anew by it."""

    def visible(self, event: StatusEvent) -> None:
        """A read_committed reader of tasks.status sees this event now."""


@dataclass(slots=True)
class Log:
    """One request partition. `records` has no entry for a gap."""

    start: int = 0
    end: int = 0
    records: dict[int, RequestRecord] = field(default_factory=dict)

    def append(self, record: RequestRecord) -> None:
        assert record.offset == self.end, f"offset {record.offset} at log end {self.end}"
        self.records[record.offset] = record
        self.end += 1

    def retain(self, start: int) -> None:
        for offset in range(self.start, min(start, self.end)):
            self.records.pop(offset, None)
        self.start = max(self.start, min(start, self.end))

    def truncate(self, end: int) -> None:
        for offset in range(end, self.end):
            self.records.pop(offset, None)
        self.end = max(self.start, min(end, self.end))


@dataclass(slots=True)
class Entry:
    """A record of tasks.status. fate: None while its transaction is not complete at this partition."""

    holder: str
    event: StatusEvent
    fate: bool | None = None
    compacted: bool = False  #: gone: a later event has the same key


@dataclass(slots=True)
class StatusLog:
    entries: list[Entry] = field(default_factory=list)
    stable: int = 0  #: LSO: index of the first entry without a fate

    @property
    def end(self) -> int:
        return len(self.entries)


@dataclass(slots=True)
class Pending:
    """Offsets sent in a transaction whose marker the offsets topic does not have yet."""

    holder: str
    offsets: dict[Cell, OffsetCommit]
    overtaken: set[Cell] = field(default_factory=set)


@dataclass(slots=True)
class Transaction:
    state: str = EMPTY
    epoch: int = 0
    since_ms: int = 0
    targets: set[Target] = field(default_factory=set)
    dead: list[DeadLetter] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Producer:
    """A transactional producer: valid while its epoch is the id's."""

    id: str
    epoch: int


@dataclass(slots=True)
class Delays:
    """How long the broker's own work takes: markers and late copies, in milliseconds."""

    marker: tuple[int, int] = (0, 6)
    slow_marker_share: float = 0.0
    slow_marker: tuple[int, int] = (100, 3_000)


class Broker:
    """All partitions, transactions and offsets of one prefix."""

    def __init__(self, bands: int, shards: int, timeline: Timeline, rng: random.Random, watch: Watch) -> None:
        self.bands = bands
        self.shards = shards
        self.timeline = timeline
        self.rng = rng
        self.watch = watch
        self.delays = Delays()
        self.group = Group(shards)
        self.logs: dict[Cell, Log] = {(b, s): Log() for b in range(bands) for s in range(shards)}
        self.status = [StatusLog() for _ in range(shards)]
        self.transactions: dict[str, Transaction] = {}
        self.committed: dict[Cell, OffsetCommit] = {}
        self.pending: list[Pending] = []
        self.control: list[str] = []
        self.holds_copies = False  #: late copies arrive only when a scenario lets them (`copies`)
        self.copies: list[Callable[[], None]] = []
        self.sick: set[Place] = set()
        self.leaderless: set[Cell] = set()
        self.letter_partitions = 2  #: of tasks.dead
        self.refused_bytes = 1_000_000  #: a result above this is refused, and its whole transaction with it

    # -- transactional ids ---------------------------------------------------------------------------------------------

    def valid(self, producer: Producer) -> bool:
        return self.transactions[producer.id].epoch == producer.epoch

    def new_producer(self, id: str) -> Producer:
        assert id not in self.transactions, f"transactional id {id} is used twice"
        self.transactions[id] = Transaction()
        return Producer(id, 0)

    def init(self, id: str) -> bool:
        """init_transactions with somebody's id. True when it is through; False: ask again (CONCURRENT_TRANSACTIONS)."""
        found = self.transactions.setdefault(id, Transaction())
        if found.state == ONGOING:
            self.abort_from_outside(id)
        if found.state != EMPTY:
            return False
        found.epoch += 1
        return True

    def abort_from_outside(self, id: str) -> None:
        """The coordinator ends an open transaction: its timeout, or init_transactions by somebody else."""
        found = self.transactions[id]
        assert found.state == ONGOING, f"{id} has nothing open ({found.state})"
        found.epoch += 1
        self._decide(id, commit=False)

    # -- the four steps of a transaction -------------------------------------------------------------------------------

    def busy(self, producer: Producer) -> bool:
        """Its last transaction is decided but not complete: the next one has to wait."""
        return self.valid(producer) and self.transactions[producer.id].state in (COMMITTING, ABORTING)

    def produce(self, producer: Producer, plan: CommitPlan) -> Fault | None:
        if not self.valid(producer):
            return Fault(FaultKind.FENCED, "produce")
        if any(event.result is not None and len(event.result) > self.refused_bytes for event in plan.events):
            return Fault(FaultKind.RECORD, "MESSAGE_TOO_LARGE")
        found = self._open(producer)
        for event in plan.events:
            self.status[event.partition].entries.append(Entry(producer.id, event))
            found.targets.add(("status", event.partition))
        if plan.dead:
            found.dead.extend(plan.dead)
            found.targets.add(DEAD)
        if not found.targets:
            found.state = EMPTY
        return None

    def _open(self, producer: Producer) -> Transaction:
        found = self.transactions[producer.id]
        assert found.state in (EMPTY, ONGOING), f"{producer.id} is {found.state}: wait first"
        if found.state == EMPTY:
            found.state, found.since_ms = ONGOING, self.timeline.now
            assert not found.targets, f"{producer.id} still owes markers: {found.targets}"
        return found

    def silent(self, plan: CommitPlan) -> frozenset[Place]:
        """Sick places that this plan needs: it is never acknowledged there."""
        needed: set[Place] = {(STATUS, event.partition) for event in plan.events}
        free = [number for number in range(self.letter_partitions) if number not in plan.avoid]
        for letter in plan.dead:
            needed.add((LETTERS, free[letter.record.offset % len(free)]) if free else DEAD_TOPIC)
        if plan.dead and DEAD_TOPIC in self.sick:
            needed.add(DEAD_TOPIC)
        return frozenset(needed & self.sick)

    def send_offsets(
        self, producer: Producer, membership: Membership | None, offsets: Iterable[OffsetCommit]
    ) -> Fault | None:
        if not self.valid(producer):
            return Fault(FaultKind.FENCED, "send offsets")
        if membership is None or not self.group.current(membership):
            return Fault(FaultKind.STALE, "ILLEGAL_GENERATION")
        found = self._open(producer)
        found.targets.add(OFFSETS)
        self.pending.append(Pending(producer.id, {(o.band, o.shard): o for o in offsets}))
        return None

    def end(self, producer: Producer) -> Fault | None:
        """EndTxn(commit). One that a late copy has already ended says yes again."""
        if not self.valid(producer):
            return Fault(FaultKind.FENCED, "commit")
        if self.transactions[producer.id].state == ONGOING:
            self._decide(producer.id, commit=True)
        return None

    def end_later(self, producer: Producer, delay_ms: int) -> None:
        """A copy of EndTxn(commit) stays in the network and arrives after so long, if the id is still the producer's."""

        def arrives() -> None:
            if self.valid(producer) and self.transactions[producer.id].state == ONGOING:
                self._decide(producer.id, commit=True)

        self._send_copy(delay_ms, arrives)

    def _send_copy(self, delay_ms: int, arrives: Callable[[], None]) -> None:
        if self.holds_copies:
            self.copies.append(arrives)
        else:
            self.timeline.after(delay_ms, arrives)

    def abort(self, producer: Producer) -> Fault | None:
        if not self.valid(producer):
            return Fault(FaultKind.FENCED, "abort")
        found = self.transactions[producer.id]
        if found.state == COMMITTING:
            return Fault(FaultKind.FENCED, "INVALID_TXN_STATE")
        if found.state == ONGOING:
            self._decide(producer.id, commit=False)
        return None

    def _decide(self, id: str, *, commit: bool) -> None:
        found = self.transactions[id]
        found.state = COMMITTING if commit else ABORTING
        if commit:
            entries = [e for t in sorted(found.targets) if t[0] == "status" for e in self._open_entries(id, t[1])]
            sent = [o for p in self.pending if p.holder == id for o in p.offsets.values()]
            self.watch.decided(entries, found.dead, sent)
        for target in sorted(found.targets):
            self.timeline.after(self._marker_ms(), partial(self._mark, id, target, commit))
        if not found.targets:
            self._complete(found)

    def _open_entries(self, id: str, shard: int) -> list[Entry]:
        log = self.status[shard]
        return [e for e in log.entries[log.stable :] if e.holder == id and e.fate is None]

    def _marker_ms(self) -> int:
        slow = self.delays.slow_marker_share and self.rng.random() < self.delays.slow_marker_share
        return self.rng.randint(*(self.delays.slow_marker if slow else self.delays.marker))

    def _mark(self, id: str, target: Target, commit: bool) -> None:
        if target in self.sick or (target == DEAD and DEAD_TOPIC in self.sick):
            self.timeline.after(50, lambda: self._mark(id, target, commit))
            return
        found = self.transactions[id]
        found.targets.remove(target)
        if target[0] == "status":
            for entry in self._open_entries(id, target[1]):
                entry.fate = commit
            self._advance(target[1])
        elif target == OFFSETS:
            self._mark_offsets(id, commit)
        if not found.targets:
            self._complete(found)

    @staticmethod
    def _complete(found: Transaction) -> None:
        found.state = EMPTY
        found.dead = []

    def _mark_offsets(self, id: str, commit: bool) -> None:
        for at, pending in enumerate(self.pending):
            if pending.holder != id:
                continue
            if commit:
                for cell, offset in pending.offsets.items():
                    if cell in pending.overtaken:
                        continue
                    self.committed[cell] = offset
                    for earlier in self.pending[:at]:
                        earlier.overtaken.add(cell)
        self.pending = [p for p in self.pending if p.holder != id]

    def compact(self, shard: int) -> None:
        """The cleaner keeps the last committed event of each key."""
        log, last = self.status[shard], set[str]()
        for entry in reversed(log.entries[: log.stable]):
            if entry.fate:
                entry.compacted = entry.compacted or entry.event.task_id in last
                last.add(entry.event.task_id)

    def _advance(self, shard: int) -> None:
        log = self.status[shard]
        while log.stable < len(log.entries) and (entry := log.entries[log.stable]).fate is not None:
            log.stable += 1
            if entry.fate:
                self.watch.visible(entry.event)

    # -- offsets -------------------------------------------------------------------------------------------------------

    def cells(self, shards: Iterable[int]) -> list[Cell]:
        return [(band, shard) for shard in shards for band in range(self.bands)]

    def list_offsets(self, shards: Iterable[int]) -> dict[Cell, Committed]:
        """list_consumer_group_offsets(require_stable=False): pending offsets are invisible."""
        out = {}
        for cell in self.cells(shards):
            found = self.committed.get(cell)
            out[cell] = Committed() if found is None else Committed(found.offset, found.text)
        return out

    def unstable(self, shards: Iterable[int]) -> bool:
        wanted = set(self.cells(shards))
        return any(not wanted.isdisjoint(p.offsets) for p in self.pending)

    def read_settled(self, shards: Iterable[int]) -> dict[Cell, Settled]:
        """committed() of cells with nothing pending, and the bounds of their logs."""
        out = {}
        for cell in self.cells(shards):
            found, log = self.committed.get(cell), self.logs[cell]
            offset, text = (None, None) if found is None else (found.offset, found.text)
            bounds = (UNKNOWN, UNKNOWN) if cell in self.leaderless else (log.start, log.end)
            out[cell] = Settled(offset, text, *bounds)
        return out

    def commit_plain(
        self, membership: Membership | None, offsets: Sequence[OffsetCommit], *, fresh: frozenset[int]
    ) -> Fault | None:
        if membership is None or not self.group.member(membership.member):
            return Fault(FaultKind.STALE, "UNKNOWN_MEMBER_ID")
        self._record(offsets, fresh)
        return None

    def _record(self, offsets: Sequence[OffsetCommit], fresh: frozenset[int]) -> None:
        for offset in offsets:
            cell = (offset.band, offset.shard)
            self.committed[cell] = offset
            for pending in self.pending:
                if cell in pending.offsets:
                    pending.overtaken.add(cell)
        self.watch.recorded(offsets, fresh=fresh)

    def commit_plain_later(
        self, membership: Membership, offsets: Sequence[OffsetCommit], delay_ms: int, *, fresh: frozenset[int]
    ) -> None:
        """A copy of a plain commit stays in the network; a new generation makes it void."""

        def arrives() -> None:
            if self.group.current(membership):
                self._record(offsets, fresh)

        self._send_copy(delay_ms, arrives)
