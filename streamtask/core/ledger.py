"""The ledger of one request partition (cell): what is open, what is done, what was promised about it.

    receive(offset, task_id)           a record came from the log: is it to be worked on?
    draft() → created, started, waiting, cleared, acquitted, done → close() → (position, text)
                                       only looks: a copy is changed, and this is what to commit
    settle(draft)                      the broker said yes: now it is so. An aborted draft is simply dropped

Always true: the position never falls (but for `truncate`: the log itself shrank); no open offset is below it; nothing
is received twice; a gap (marker, retention) is never open, so it never holds the position back; as long as room()
is respected, the text fits its budget whatever happens later.

After a restart the ledger knows what the text said and is fed the records from the position on once more; `receive`
tells which of them are still to be worked on. When the text was lost, `recall` tells it what tasks.status knows; that
counts only for a record of the same task_id, since a topic that was made anew counts its offsets from 0 once more.
Idea: parallel-consumer, PartitionState.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from streamtask.core import suspects
from streamtask.core.offset_map import (
    ATTEMPT_MAX,
    NOTHING,
    TEXT_MAX,
    Entry,
    Head,
    Mark,
    OffsetMap,
    caps,
    encode,
    entry_of,
    with_head,
)
from streamtask.core.recall import Recall

GAP_ROOM: Final = 1 << 19  # offsets that may be gaps while one answer of room() is used up
SUSPECT_LOST: Final = 2  # deaths after which a request is a suspect: it runs in quarantine, and stands trial there

_CREATED, _ENTRY, _DONE = 0, 1, 2


class Draft:
    """The ledger as it will be if a transaction commits. Every change names an open offset that was received."""

    __slots__ = ("_changes", "_closed", "_ledger", "_stamp", "state")

    def __init__(self, ledger: Ledger, stamp: int) -> None:
        self.state = ledger.state.copy()
        self._ledger = ledger
        self._stamp = stamp
        self._changes: list[tuple[int, int, Entry]] = []
        self._closed = False

    def created(self, offset: int) -> None:
        """CREATED of `offset` is in this transaction. In order of offset: what is open below has its own already.

        One that is started (or ends) in the same transaction needs no call: its entry (or its end) says so.
        """
        assert not self._closed, f"CREATED of {offset} comes after the draft was closed"
        assert offset < self._ledger.received, f"CREATED of {offset}, which was not received"
        assert self.state.is_open(offset), f"CREATED of {offset}, which is not open"
        self._ledger.publish(self.state, offset)
        self._changes.append((_CREATED, offset, NOTHING))

    def started(self, offset: int, attempt: int, mark: int = Mark.RUNNING, trial: int = 0) -> None:
        """RUNNING with this attempt. mark: RUNNING or TRIAL; trial: its number (core/suspects.py), 0 keeps what it has."""
        assert mark != Mark.NONE, f"{offset} starts without a mark"
        assert attempt <= ATTEMPT_MAX, f"attempt {attempt} of {offset}: end it instead"
        old = self._entry(offset)
        assert attempt > old.attempt, f"attempt {attempt} of {offset} was granted before ({old.attempt})"
        self._put(offset, entry_of(attempt, old.failed, old.lost, mark, trial or old.trial))

    def waiting(self, offset: int, failed: int, lost: int | None = None, trial: int | None = None) -> None:
        """The attempt ended and another one will come: no mark, so that a death is not charged to a waiting task.

        lost   given when the attempt ended by the death of its child: with this one, if it was alone in there; else it stays
        trial  given when it was not: how narrow its next trial is
        """
        old = self._entry(offset)
        assert lost is None or lost >= old.lost, f"{offset}: deaths fell from {old.lost} to {lost}"
        lost, trial = old.lost if lost is None else lost, old.trial if trial is None else trial
        self._put(offset, entry_of(old.attempt, failed, lost, Mark.NONE, trial))

    def cleared(self, offset: int) -> None:
        """A clean hand-over: it runs nowhere."""
        old = self._entry(offset)
        self._put(offset, entry_of(old.attempt, old.failed, old.lost, Mark.NONE, old.trial))

    def acquitted(self, offset: int) -> None:
        """Its trial is over and it runs on: its deaths are forgiven."""
        old = self._entry(offset)
        assert old.mark == Mark.TRIAL, f"{offset} is not on trial"
        self._put(offset, entry_of(old.attempt, old.failed, 0, Mark.RUNNING, suspects.acquitted(old.trial)))

    def done(self, offset: int) -> None:
        """Its terminal event (or dead letter) is in this transaction."""
        assert not self._closed, f"{offset} ends after the draft was closed"
        assert offset < self._ledger.received, f"{offset} ends, which was not received"
        finished = self.state.finish(offset)
        assert finished, f"{offset} is not open: completed twice?"
        self._changes.append((_DONE, offset, NOTHING))

    @property
    def position(self) -> int:
        return self.state.position

    def close(self, head: Head | None = None) -> tuple[int, str]:
        """(offset, text) to commit. No more changes; settle or drop it."""
        self._closed = True
        assert self.state.position >= self._ledger.position, f"{self.state.position} is behind {self._ledger.position}"
        return self.state.position, self._ledger.text_of(self.state, head)

    def changes(self) -> Iterator[tuple[int, int, Entry]]:
        return iter(self._changes)

    def changed(self) -> bool:
        """True when it says something that the ledger does not."""
        return bool(self._changes)

    def is_current(self, stamp: int) -> bool:
        """True when the ledger is still as it was when the draft was made, but for records received behind its end."""
        return self._stamp == stamp

    def _entry(self, offset: int) -> Entry:
        assert not self._closed, f"{offset} comes after the draft was closed"
        assert offset < self._ledger.received, f"{offset} was not received"
        assert self.state.is_open(offset), f"{offset} is not open"
        return self.state.entries.get(offset, NOTHING)

    def _put(self, offset: int, entry: Entry) -> None:
        self.state.entries[offset] = entry
        self._changes.append((_ENTRY, offset, entry))


class Ledger:
    """See the module. text_max: budget in characters of its text without the head.

    received  next offset expected from the log; a smaller one is a repeat
    state     the map; drafts replace it
    vanished  open offsets that were known and did not come back from the log: reported by the caller, who clears it
    """

    __slots__ = ("_caps", "_recall", "_stamp", "_unfetched", "received", "state", "text_max", "vanished")

    def __init__(self, position: int, *, text_max: int = TEXT_MAX) -> None:
        self.state = OffsetMap(position)
        self.received = position
        self.text_max = text_max
        self.vanished: list[int] = []
        self._caps = caps(text_max)
        self._recall: Recall | None = None
        self._unfetched = 0  # open, known from the text, not received yet
        self._stamp = 0

    @classmethod
    def restored(cls, state: OffsetMap, *, text_max: int = TEXT_MAX) -> Ledger:
        """The ledger as its text told (offset_map.decode); records come again from the position on."""
        ledger = cls(state.position, text_max=text_max)
        ledger.state = state
        ledger._unfetched = state.count
        return ledger

    # --- What is known ---

    @property
    def position(self) -> int:
        """Next offset to commit: the lowest unfinished one."""
        return self.state.position

    @property
    def created(self) -> int:
        return self.state.created

    @property
    def entries(self) -> dict[int, Entry]:
        """{offset: Entry} of started requests. Read it, never keep it."""
        return self.state.entries

    @property
    def open_count(self) -> int:
        return self.state.count

    @property
    def known_end(self) -> int:
        """End of the last open request that is known, from the text or from tasks.status; 0: none."""
        ends = self.state.ends
        recalled = max(self._recall.known, default=-1) + 1 if self._recall is not None else 0
        return max(ends[-1] if ends else 0, recalled)

    @property
    def recalling(self) -> bool:
        """True while facts from tasks.status are needed that no text of this ledger could tell yet."""
        return self._recall is not None

    def entry(self, offset: int) -> Entry:
        return self.state.entries.get(offset, NOTHING)

    def is_open(self, offset: int) -> bool:
        """Received and not done."""
        return offset < self.received and self.state.is_open(offset)

    def is_created(self, offset: int) -> bool:
        """True when CREATED of this open offset is published: below the mark, or started."""
        state, recall = self.state, self._recall
        return offset < state.created or offset in state.entries or (recall is not None and offset in recall.known)

    def open_offsets(self) -> list[int]:
        """Received and not done, ascending."""
        return self.state.offsets(0, self.received)

    @property
    def claims_max(self) -> int:
        """How many may be open while the span is below 2**20 offsets."""
        return self._caps[20]

    def room(self) -> int:
        """How many more may be received now, such that the text fits whatever happens later.

        Holds for so many records below received + GAP_ROOM and one beyond it; ask again then. Requests known from the
        text are always let in: they are in it already.
        """
        state = self.state
        cap = self._caps[(state.end - state.position + GAP_ROOM).bit_length()]
        return max(cap - state.count, 0) + self._unfetched

    def text(self, head: Head | None = None) -> str:
        """The text as it is now, without any draft (claims)."""
        return self.text_of(self.state, head)

    # --- Changes that the log makes ---

    def receive(self, offset: int, task_id: str) -> bool:
        """Take note of a record. False: nothing to do for it (a repeat, or done). Offsets left out are done.

        task_id: empty when the record has none that can be used; no event was ever written about such a record
        """
        if offset < self.received:
            return False
        state = self.state
        if self.received < state.end or self._recall is not None:
            self._stamp += 1
            return self._receive_known(offset, task_id)
        self.received = offset + 1
        state.append(offset)
        return True

    def _receive_known(self, offset: int, task_id: str) -> bool:
        state, recall = self.state, self._recall
        if self.received < state.end:
            for gone in state.offsets(self.received, min(offset, state.end)):
                self._unfetched -= 1
                state.finish(gone)
                self.vanished.append(gone)
        self.received = offset + 1
        if offset >= state.end:
            state.append(offset)
        elif state.is_open(offset):
            self._unfetched -= 1
        if recall is not None:
            recall.keep_own(offset, task_id)
            own = recall.has_ended(offset)
            if own or (offset not in recall.known and task_id and recall.ended_later(offset, task_id)):
                state.finish(offset)
            elif state.is_open(offset):
                attempt = recall.known.get(offset, 0)
                old = state.entries.get(offset, NOTHING)
                if attempt > old.attempt:
                    state.entries[offset] = entry_of(attempt, old.failed, old.lost, old.mark, old.trial)
            self._absorb()
        return state.is_open(offset)

    def over(self, offset: int) -> None:
        """This open record, of which nothing is published, was over before its text was lost (core/intake.py)."""
        assert offset not in self.entries, f"{offset} has started"
        self._stamp += 1
        self.state.finish(offset)
        self._absorb()

    def skip_to(self, offset: int) -> list[int]:
        """The log now starts at `offset`: nothing below it can come any more. Returns the open offsets dropped."""
        self._stamp += 1
        state = self.state
        dropped = state.offsets(0, offset)
        for gone in dropped:
            if gone >= self.received:
                self._unfetched -= 1
            state.finish(gone)
        if state.end < offset:
            assert not state.starts, f"{state} is open below {offset}"
            state.end = offset
        self.received = max(self.received, offset)
        self._absorb()
        return dropped

    def truncate(self, log_end: int) -> list[int]:
        """The log ends at `log_end`: new records will stand there. Forgets what was beyond; returns the open ones."""
        self._stamp += 1
        state = self.state
        dropped = state.offsets(log_end, max(state.end, log_end))
        for gone in dropped:
            if gone >= self.received:
                self._unfetched -= 1
            state.finish(gone)
        state.end = min(state.end, log_end)
        state.created = min(state.created, log_end)
        self.received = min(self.received, log_end)
        if self._recall is not None:
            self._recall.drop_from(log_end)
            self._absorb()
        return dropped

    # --- Recovery from tasks.status ---

    def recall(self, offset: int, task_id: str, ended: bool, attempt: int) -> None:
        """What an event in tasks.status says about the request at `offset`, if that is this task_id's: it has ended, or it
        is known (CREATED is published) and was granted this attempt. In the order of the events, before anything is
        received. Call truncate(log_end) behind the last."""
        assert self.received <= self.state.position, f"{offset} is recalled after the first receive"
        assert attempt >= 0, f"attempt {attempt} of {offset}"
        if offset >= self.received:
            if self._recall is None:
                self._recall = Recall()
            self._recall.add(offset, task_id, ended, min(attempt, ATTEMPT_MAX))

    def _absorb(self) -> None:
        """Move `created` over what is done or recalled as known, and drop the facts that the text can tell now."""
        recall, state = self._recall, self.state
        if recall is None:
            return
        state.created = _created_beyond(state, state.created, recall.known, self.received)
        if not recall.beyond(self.received, state.created):
            self._recall = None

    def publish(self, state: OffsetMap, offset: int) -> None:
        """CREATED of `offset` in this map, the ledger's own or a draft's."""
        known = self._recall.known if self._recall is not None else {}
        assert offset >= state.created, f"CREATED of {offset} was published before"
        assert offset not in known, f"CREATED of {offset} was published before, tasks.status says"
        if offset > state.created:
            reached = _created_beyond(state, state.created, known, self.received)
            assert reached == offset, f"CREATED of {offset} before that of {reached}"
        state.created = offset + 1
        if known:
            state.created = _created_beyond(state, offset + 1, known, self.received)

    # --- Settling ---

    def draft(self) -> Draft:
        return Draft(self, self._stamp)

    def settle(self, draft: Draft) -> None:
        """The transaction of `draft` has committed. Records that came since are open in it, too. Right also when more was
        changed since (a doubtful commit that turned out to have landed): then its changes are made again on what is there."""
        before = self.state.position
        if draft.is_current(self._stamp):
            since, self.state = self.state, draft.state
            if since.end > self.state.end:
                for offset in since.offsets(self.state.end, since.end):
                    self.state.append(offset)
        else:
            state = self.state
            for kind, offset, entry in draft.changes():
                if not state.is_open(offset):
                    continue  # dropped meanwhile: skip_to, truncate
                if kind == _DONE:
                    state.finish(offset)
                elif kind == _ENTRY:
                    state.entries[offset] = entry
                elif offset >= state.created:
                    self.publish(state, offset)
        self._stamp += 1
        if self._recall is not None:
            self._absorb()
        assert self.state.position >= before, f"position fell from {before} to {self.state.position}"

    def text_of(self, state: OffsetMap, head: Head | None) -> str:
        text = encode(state)
        assert len(text) <= self.text_max, f"{len(text)} characters for {state.count} open: room() was not respected"
        return text if head is None else with_head(text, head)


def _created_beyond(state: OffsetMap, created: int, known: dict[int, int], received: int) -> int:
    """`created`, moved over everything that is done or started, and over received requests whose CREATED is known."""
    starts, ends = state.starts, state.ends
    while created < state.end:
        at = bisect_right(starts, created) - 1
        if at < 0 or created >= ends[at]:  # done: on to the next open run
            created = starts[at + 1] if at + 1 < len(starts) else state.end
        elif (created in known and created < received) or created in state.entries:
            created += 1  # a start says so too: urgent ones may overtake the CREATED of others
        else:
            break
    return created


def charge(ledgers: Sequence[Ledger]) -> list[tuple[int, int]]:
    """The owner of these cells (one shard, all of them) died: charge the deaths to who was running, clear all marks.

    If anyone stood trial alone in that worker, the death is that one's. Otherwise each one that ran is charged, but none
    beyond SUSPECT_LOST: from there on only a death in its own child, or in a trial that it stands alone, is surely its own.
    Who stood trial is not charged, but stands the next one beside fewer others (suspects.narrowed).

    Returns (index of the ledger, offset) of each request whose `lost` rose.
    """
    marked = [
        (cell, offset, entry)
        for cell, ledger in enumerate(ledgers)
        for offset, entry in ledger.entries.items()
        if entry.mark != Mark.NONE
    ]
    on_trial = [entry for _, _, entry in marked if entry.mark == Mark.TRIAL]
    alone = any(_stood_alone(entry) for entry in on_trial)
    charged = []
    for cell, offset, entry in marked:
        lost, trial = entry.lost, entry.trial
        if _stood_alone(entry) if alone else lost < SUSPECT_LOST:
            lost += 1
            charged.append((cell, offset))
        if entry.mark == Mark.TRIAL and not alone:
            trial = suspects.narrowed(trial, len(on_trial))
        ledgers[cell].entries[offset] = entry_of(entry.attempt, entry.failed, lost, Mark.NONE, trial)
    return charged


def _stood_alone(entry: Entry) -> bool:
    return entry.mark == Mark.TRIAL and suspects.stage_of(entry.trial) == suspects.ALONE


def unmark(ledgers: Sequence[Ledger]) -> None:
    """Nothing of these cells runs any more, and nobody died."""
    for ledger in ledgers:
        for offset, entry in ledger.entries.items():
            ledger.entries[offset] = entry_of(entry.attempt, entry.failed, entry.lost, Mark.NONE, entry.trial)
