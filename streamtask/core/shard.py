"""One shard: partition N of every band and of tasks.status, owned by one worker; and its claims, which are its open requests.

A shard owns the ledgers (one per band), the head (owner id, sequence, clock floor), the open claims by task_id, the records
held beyond the ledgers' caps, and its standing. Invariants: a claim is in `claims` exactly while its offset is open in its
ledger and its record has been read; nothing of a shard is committed unless it is OPEN or closing; `sequence` is the one that
the broker holds.

This module decides where the shard continues after a claim: from our own ledger text, from the log's bounds, or from
tasks.status when the committed metadata is missing or not ours.

The committed facts of a claim (created, attempt, failed, lost) change only when a batch has settled. What it owes (start,
progress, wait, final) may be set at any time and is cleared when the transaction that carries it has settled, so an aborted
transaction needs no undo: everything is still owed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from streamtask.core.ledger import Ledger, charge, unmark
from streamtask.core.offset_map import (
    LEAD_TEXT_MAX,
    TEXT_MAX,
    Head,
    LedgerUnreadable,
    UnknownVersion,
    decode,
    head_of,
    tag_version,
)
from streamtask.core.suspects import ALONE, stage_of
from streamtask.domain.identity import TRACE_HEADERS, Origin
from streamtask.domain.model import HandlerKind, RequestRecord, TaskPolicy, TaskStatus
from streamtask.domain.ports import Cell, Committed, Note, OffsetCommit, Recalled, Settled

NO_OWNER = "-"  # owner of a shard that was handed over while it was recovering
SECONDS_MAX = 1e9  # of a time limit: 31 years; a longer limit counts as none


class Phase(IntEnum):
    """The phase of a claim in the engine."""

    QUEUED = 0  #: in the schedule
    WAITING = 1  #: not_before, unknown type, backoff: holds no slot
    PICKED = 2  #: holds a slot; its RUNNING is owed
    RUNNING = 3  #: its handler was started
    ENDING = 4  #: its final event is owed


# Python 3.11 takes 0.04 µs to find a member in its enum class, and these are asked for thirty times a task.
QUEUED, WAITING, PICKED, RUNNING, ENDING = Phase


class Wait(IntEnum):
    """Why a claim is WAITING (also the kinds of deadlines)."""

    NOT_BEFORE = 0
    UNKNOWN_TYPE = 1
    RETRY = 2


_RETRY = Wait.RETRY


@dataclass(slots=True)
class LastEvent:
    """The last event of a task, without its time."""

    status: TaskStatus
    code: str = ""
    error: str | None = None
    result: bytes | None = None
    exception: str | None = None
    traceback: str | None = None
    dead: bool = False  #: also a dead letter (every FAILED)


@dataclass(slots=True)
class Owed:
    """A RUNNING event without a new attempt: progress, or the wait for a retry (`failed` given: the mark is cleared).

    lost: its deaths, if the child that it ran in died; None: unchanged
    trial: how narrow its next trial is, if others ran in that child; None: unchanged
    """

    fraction: float | None = None
    message: str | None = None
    failed: int | None = None
    lost: int | None = None
    trial: int | None = None


class Claim:
    """One open request. Also the item of the schedule (band, shard_number, priority, kind, task_type, ordering_key…)."""

    __slots__ = (
        "acquitted",
        "armed",
        "attempt",
        "band",
        "bare",
        "created",
        "event_bytes",
        "failed",
        "final",
        "fraction",
        "group",
        "headers",
        "kind",
        "label_bytes",
        "labels",
        "load",
        "lost",
        "offset",
        "on_trial",
        "ordering_key",
        "origin",
        "owner_shard",
        "phase",
        "policy",
        "priority",
        "progress",
        "progress_mono_ms",
        "queued_ms",
        "record",
        "shard",
        "started_ms",
        "stop",
        "suspect",
        "task_id",
        "task_type",
        "token",
        "trial",
        "wait",
        "wait_reason",
    )

    def __init__(self, owner: Shard, record: RequestRecord, origin: str, policy: TaskPolicy) -> None:
        request = record.request
        self.owner_shard = owner
        self.shard = record.partition
        self.band = record.band
        self.offset = record.offset
        self.record = record
        self.origin = origin
        self.task_id = record.task_id
        self.task_type = request.task_type if request is not None else ""
        self.ordering_key = request.ordering_key if request is not None else None
        self.labels = request.labels if request is not None else None  # a model takes 0.05 µs to find an attribute
        self.priority = record.priority
        self.policy = policy
        self.kind: HandlerKind = policy.kind
        self.headers = trace_headers(record.headers) if record.headers else ()
        self.event_bytes = self.label_bytes = 0  # computed when first needed (core/weight.py)
        # committed
        self.created = False
        self.attempt = 0
        self.failed = 0
        self.lost = 0
        self.trial = 0
        self.started_ms: int | None = None
        self.fraction: float | None = None
        # owed
        self.progress: Owed | None = None
        self.wait: Owed | None = None
        self.final: LastEvent | None = None
        self.acquitted = False  #: it outlived its trial: the ledger must record that
        # in this process
        self.phase = QUEUED
        self.wait_reason = _RETRY
        self.suspect = False  #: two processes have died under it: its next start is a trial
        self.on_trial = False
        self.group = 0  #: the group that it runs in, if it started as a suspect; kept after its trial
        self.token = 0
        self.stop: object | None = None
        self.queued_ms = 0
        self.armed = False  #: one of its deadlines may be armed
        self.progress_mono_ms = 0
        self.load = 0  #: bytes that it holds besides its record (core/memory.py)
        self.bare = 0  #: the broker refused its records. 1: write no result, 2: write nothing long

    @property
    def timeout_ms(self) -> int | None:
        """The time limit of an attempt: the request's own wins over the type's, within the type's bound."""
        request, policy = self.record.request, self.policy
        asked = request.timeout_seconds if request is not None else None
        most = policy.timeout_max_ms
        if asked is None and most is None:
            return policy.timeout_ms
        limit = policy.timeout_ms if asked is None else max(1, int(min(asked, SECONDS_MAX) * 1000))
        return most if limit is None else limit if most is None else min(limit, most)

    @property
    def alone(self) -> bool:
        """True when nothing else of this worker may run beside its next trial."""
        return self.suspect and stage_of(self.trial) == ALONE

    def __repr__(self) -> str:
        return f"<Claim {self.origin} {self.phase.name} attempt {self.attempt}>"


def trace_headers(headers: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """The W3C trace headers, which pass through to every status event."""
    return tuple(h for h in headers if h[0] in TRACE_HEADERS)


class Standing(IntEnum):
    """How far the claim of a shard is."""

    UNCLAIMED = 0  #: assigned, nothing read yet (or a claim that has to start again)
    CLAIMED = 1  #: recorded as ours; tasks.control or tasks.status still to be read
    OPEN = 2  #: in operation
    CLOSING = 3  #: being revoked: nothing starts
    GONE = 4  #: forgotten: anything that still refers to it is late


UNCLAIMED, CLAIMED, OPEN, CLOSING, GONE = Standing


class Backlog:
    """Records of one cell beyond its ledger's cap. Pausing the cell bounds it."""

    __slots__ = ("bytes", "paused", "records")

    def __init__(self) -> None:
        self.records: deque[RequestRecord] = deque()
        self.bytes = 0
        self.paused = False


class Shard:
    """State of one owned shard. `epoch` distinguishes this ownership from others of the same number."""

    __slots__ = (
        "awaits_control",
        "awaits_recall",
        "backlogs",
        "charged",
        "claim_at_ms",
        "claims",
        "clock_ms",
        "deferred",
        "distrusted",
        "epoch",
        "head_recovering",
        "held",
        "known_to",
        "leaderless",
        "leaderless_since_ms",
        "ledgers",
        "left_by",
        "log_ends",
        "number",
        "owes_cells",
        "owes_head",
        "refused",
        "resumed",
        "sequence",
        "standing",
        "torn",
        "unsettled_cells",
        "waiting",
    )

    def __init__(self, number: int, epoch: int, bands: int) -> None:
        self.number = number
        self.epoch = epoch
        self.standing = Standing.UNCLAIMED
        self.ledgers: list[Ledger] = []  # empty until the first claim
        self.backlogs = [Backlog() for _ in range(bands)]
        self.claims: dict[str, Claim] = {}
        self.charged = 0  # deaths that the claim in progress charges
        self.left_by = ""  # the recorded owner that the claim in progress found
        self.log_ends = [0] * bands  # as seen by the claim
        self.waiting = [0] * bands  # claims of a cell that wait without a slot (without retries)
        self.held = [0] * bands  # bytes of fetched records of a cell that have not ended (core/memory.py)
        self.sequence = 0
        self.clock_ms = 0
        self.awaits_control = False
        self.awaits_recall = False
        self.owes_head = False  # the head must be written even if nothing else changes
        self.head_recovering = False  # what the last committed head says
        self.owes_cells = False  # all of its cells must be written
        self.refused: str | None = None  # why it cannot be claimed at all
        self.leaderless: tuple[int, ...] = ()  # bands whose partition has no leader: the claim waits for them
        self.leaderless_since_ms = 0  # monotonic
        self.claim_at_ms = 0  # do not claim again before this time, monotonic
        # Open requests that the ledgers know but whose records have not come back yet, per cell. Nothing new is admitted until
        # all have, or a second record of a task_id could overtake the first one in another band.
        self.known_to = [0] * bands
        self.unsettled_cells = 0
        # Records that came back before the others, with nothing published: the first record of their task_id may still
        # come from another cell. (A second record is open in the ledger while its dead letter is owed.)
        self.deferred: list[RequestRecord] = []
        # For records that came back with something published, while others were missing: the highest offset of each id in its
        # band. A deferred record of the same id below it has ended: two of them are never open at once.
        self.resumed: dict[tuple[int, str], int] = {}
        self.torn: set[int] = set()  # bands whose log was cut since the claim: claim again, and
        self.distrusted: set[int] = set()  # distrust what is committed for these

    @property
    def recovering(self) -> bool:
        """True while the ledgers do not yet contain everything that tasks.status said."""
        return self.awaits_recall or any(ledger.recalling for ledger in self.ledgers)

    def stamp(self, wall_ms: int, created_ms: int) -> int:
        """updated_at of the next event: it never falls within the shard, and is not before the task's created_at.

        The floor of created_at (up to 24 h ahead, because of a producer's wrong clock) applies only to its own task: it must
        not advance the clock of the whole shard.
        """
        if wall_ms > self.clock_ms:
            self.clock_ms = wall_ms
        return self.clock_ms if self.clock_ms >= created_ms else created_ms

    def head(self, owner: str, *, closing: bool = False) -> Head:
        """The head of the next commit (with the next sequence)."""
        if self.recovering:
            # A clean hand-over of a recovering shard names no owner: there is nothing to fence, but tasks.status must be read.
            return Head(NO_OWNER if closing else owner, self.sequence + 1, self.clock_ms, "recovering")
        return Head(owner, self.sequence + 1, self.clock_ms, "clean" if closing else "open")

    # -- claim ---------------------------------------------------------------------------------------------------------

    def adopt(self, settled: Mapping[Cell, Settled], own_ids: Collection[str] = ()) -> list[Note]:
        """Take the shard over from what is committed: ledgers, head, positions; deaths are charged.

        settled  one Settled per cell of this shard
        own_ids  transactional ids of this process: an owner among them was fenced or lost its shards, but did not die

        Returns what the operator should know. Raises UnknownVersion when another release wrote the text.
        """
        notes: list[Note] = []
        self.ledgers = []
        self.awaits_recall = False
        self.left_by = ""
        for band in range(len(self.backlogs)):
            cell = settled[band, self.number]
            self.log_ends[band] = cell.log_end
            self.ledgers.append(self._restore(band, cell, notes))
        if self.distrusted or self.left_by in own_ids:
            unmark(self.ledgers)  # its executions were ended earlier, by this process
        self.charged = len(charge(self.ledgers))
        return notes

    def _restore(self, band: int, cell: Settled, notes: list[Note]) -> Ledger:
        where = {"band": band, "shard": self.number}
        text_max = LEAD_TEXT_MAX if band == 0 else TEXT_MAX
        why = "nothing committed"
        if cell.offset is not None:
            why = "metadata is not ours"
            try:
                if band in self.distrusted:
                    raise LedgerUnreadable("the log was cut under its owner")
                if cell.offset > cell.log_end and tag_version(cell.text) is not None:
                    if (head := head_of(cell.text)) is not None:
                        self._take_head(head)
                    notes.append(_lost(where, cell.log_end, cell.offset, 0, "the log ends below the committed offset"))
                    return Ledger(cell.log_end, text_max=text_max)
                found = decode(cell.text, cell.offset, log_start=cell.log_start, log_end=cell.log_end)
            except LedgerUnreadable as error:
                found, why = None, str(error)
                self._take_clock(cell.text)
            if found is not None:
                state, ours = found
                if ours is not None:
                    self._take_head(ours)
                ledger = Ledger.restored(state, text_max=text_max)
                if cell.offset < cell.log_start:
                    dropped = ledger.skip_to(cell.log_start)
                    text = "the log starts above the committed offset"
                    notes.append(_lost(where, cell.offset, cell.log_start, len(dropped), text))
                return ledger
        if cell.log_end > cell.log_start:
            # Start with everything that the log still holds, except what tasks.status knows to be finished.
            self.awaits_recall = True
            name = "position_unknown" if cell.offset is None else "position_recovered"
            notes.append(Note(name, {**where, "why": why, "from": cell.log_start}))
        return Ledger(cell.log_start, text_max=text_max)

    def _take_head(self, head: Head) -> None:
        self.left_by = head.owner
        self.sequence = head.sequence
        self.clock_ms = max(self.clock_ms, head.clock_ms)
        self.awaits_recall = self.awaits_recall or head.state == "recovering"

    def _take_clock(self, text: str | None) -> None:
        """The map is not credible (the log is shorter than it says), but the head may be readable: time never falls."""
        try:
            head = head_of(text)
        except LedgerUnreadable:
            return
        if head is not None:
            self._take_head(head)

    def claim_commit(self, owner: str) -> list[OffsetCommit]:
        """Claim step 4: every cell with its ledger, the lead cell with our id and `open` (or `recovering`)."""
        head = self.head(owner)
        return [
            OffsetCommit(band, self.number, ledger.position, ledger.text(head if band == 0 else None))
            for band, ledger in enumerate(self.ledgers)
        ]

    def expect_known(self) -> None:
        """After a claim: note how far each cell must come back before anything new is admitted."""
        self.known_to = [ledger.known_end for ledger in self.ledgers]
        for band, ledger in enumerate(self.ledgers):
            if ledger.received >= self.known_to[band]:
                self.known_to[band] = 0
        self.unsettled_cells = sum(1 for known in self.known_to if known)

    def cell_is_back(self, band: int) -> None:
        """Everything known of this cell has been read again (or is gone from the log)."""
        self.known_to[band] = 0
        self.unsettled_cells = sum(1 for known in self.known_to if known)

    def recovered_since_head(self) -> bool:
        """True when the broker still holds `recovering` although the ledgers now contain everything."""
        return self.head_recovering and not self.recovering

    def recall_done(self) -> None:
        """tasks.status was read to its end."""
        for ledger, log_end in zip(self.ledgers, self.log_ends, strict=True):
            ledger.truncate(log_end)
        self.awaits_recall = False

    def recall(self, facts: Iterable[Recalled], bands: Mapping[str, int]) -> None:
        """Apply what tasks.status says about requests of this shard while it recovers, in the order of that topic."""
        for fact in facts:
            origin = Origin.parse(fact.origin)
            if origin is None or origin.partition != self.number or origin.band not in bands:
                continue
            if origin.offset >= self.log_ends[bands[origin.band]]:
                continue  # no record in the log has this offset; `recall_done` would drop the fact
            self.ledgers[bands[origin.band]].recall(origin.offset, fact.task_id, fact.ended, fact.attempt)
            if fact.updated_ms > self.clock_ms:
                self.clock_ms = fact.updated_ms


def heads(listed: Mapping[Cell, Committed]) -> dict[int, Head | str | None]:
    """For each listed shard: the head on its lead cell, None if none of ours is there, or why it cannot be claimed."""
    out: dict[int, Head | str | None] = {}
    for (band, number), found in listed.items():
        try:
            head = head_of(found.text) if found.offset is not None else None
        except UnknownVersion as why:
            out[number] = str(why)
        except LedgerUnreadable:
            out.setdefault(number, None)
        else:
            if band == 0:
                out.setdefault(number, head)
    return out


def _lost(where: Mapping[str, int], start: int, end: int, opened: int, why: str) -> Note:
    return Note("records_lost", {**where, "from": start, "to": end, "open": opened, "why": why})
