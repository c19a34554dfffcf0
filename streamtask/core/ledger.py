"""The ledger of one request partition (cell): what is open, what is done, and what has been published about it.

    receive(offset, task_id)           a record came from the log: is there work to do for it?
    draft() → created, started, waiting, cleared, acquitted, done → close() → (position, text)
                                       changes only a copy; the result is what to commit
    settle(draft)                      the commit succeeded: apply it. An aborted draft is simply dropped

Always true: the position never falls (except in `truncate`, when the log itself shrank); no open offset is below it; nothing
is received twice; a gap (marker, retention) is never open, so it never holds the position back; as long as the caller
respects room(), the text fits its budget whatever happens later.

After a restart the ledger holds what its text says, and receives the records from the position on once more; `receive` tells
which of them still need work. If the text was lost, `recall` supplies what tasks.status knows. That counts only for a record
with the same task_id, since a recreated topic counts its offsets from 0 again.
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

GAP_ROOM: Final = 1 << 19  # offsets that may be gaps before room() is asked again
SUSPECT_LOST: Final = 2  # with this many deaths a request is a suspect: it runs in quarantine, on trial

_CREATED, _ENTRY, _DONE = 0, 1, 2


class Draft:
    """The ledger as it will be if a transaction commits. Every change names a received offset that is open."""

    __slots__ = ("_changes", "_closed", "_ledger", "_stamp", "state")

    def __init__(self, ledger: Ledger, stamp: int) -> None:
        self.state = ledger.state.copy()
        self._ledger = ledger
        self._stamp = stamp
        self._changes: list[tuple[int, int, Entry]] = []
        self._closed = False

    def created(self, offset: int) -> None:
        """CREATED of `offset` is in this transaction. Call it in order of offset: open requests below must have theirs.

        A request that starts or ends in the same transaction needs no call: its entry or its end records it.
        """
        assert not self._closed, f"CREATED of {offset} comes after the draft was closed"
        assert offset < self._ledger.received, f"CREATED of {offset}, which was not received"
        assert self.state.is_open(offset), f"CREATED of {offset}, which is not open"
        self._ledger.publish(self.state, offset)
        self._changes.append((_CREATED, offset, NOTHING))

    def started(self, offset: int, attempt: int, mark: int = Mark.RUNNING, trial: int = 0) -> None:
        """RUNNING with this attempt. mark: RUNNING or TRIAL; trial: its number (core/suspects.py); 0 keeps the present one."""
        assert mark != Mark.NONE, f"{offset} starts without a mark"
        assert attempt <= ATTEMPT_MAX, f"attempt {attempt} of {offset}: end it instead"
        old = self._entry(offset)
        assert attempt > old.attempt, f"attempt {attempt} of {offset} was granted before ({old.attempt})"
        self._put(offset, entry_of(attempt, old.failed, old.lost, mark, trial or old.trial))

    def waiting(self, offset: int, failed: int, lost: int | None = None, trial: int | None = None) -> None:
        """The attempt ended and another one will follow. The mark is cleared, so a waiting task is not charged for a death.

        lost   given when the attempt ended with its child's death: its deaths, counting this one if it ran alone there
        trial  given when it did not run alone: how narrow its next trial is
        """
        old = self._entry(offset)
        assert lost is None or lost >= old.lost, f"{offset}: deaths fell from {old.lost} to {lost}"
        lost, trial = old.lost if lost is None else lost, old.trial if trial is None else trial
        self._put(offset, entry_of(old.attempt, failed, lost, Mark.NONE, trial))

    def cleared(self, offset: int) -> None:
        """A clean hand-over: the request runs nowhere."""
        old = self._entry(offset)
        self._put(offset, entry_of(old.attempt, old.failed, old.lost, Mark.NONE, old.trial))

    def acquitted(self, offset: int) -> None:
        """It outlived its trial and runs on: its deaths are forgiven."""
        old = self._entry(offset)
        assert old.mark == Mark.TRIAL, f"{offset} is not on trial"
        self._put(offset, entry_of(old.attempt, old.failed, 0, Mark.RUNNING, suspects.acquitted(old.trial)))

    def done(self, offset: int) -> None:
        """Its terminal event (or its dead letter) is in this transaction."""
        assert not self._closed, f"{offset} ends after the draft was closed"
        assert offset < self._ledger.received, f"{offset} ends, which was not received"
        finished = self.state.finish(offset)
        assert finished, f"{offset} is not open: completed twice?"
        self._changes.append((_DONE, offset, NOTHING))

    @property
    def position(self) -> int:
        return self.state.position

    def close(self, head: Head | None = None) -> tuple[int, str]:
        """Return (offset, text) to commit. After this the draft takes no more changes: settle it or drop it."""
        self._closed = True
        assert self.state.position >= self._ledger.position, f"{self.state.position} is behind {self._ledger.position}"
        return self.state.position, self._ledger.text_of(self.state, head)

    def changes(self) -> Iterator[tuple[int, int, Entry]]:
        return iter(self._changes)

    def changed(self) -> bool:
        """True when the draft differs from the ledger."""
        return bool(self._changes)

    def is_current(self, stamp: int) -> bool:
        """True when the ledger has not changed since the draft was made, except for records received at its end."""
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
    """See the module docstring. text_max: budget of its text without the head, in characters.

    received  next offset expected from the log; a smaller one is a repeat
    state     the map; settling a draft replaces it
    vanished  known open offsets that did not come back from the log; the caller reports and clears them
    """

    __slots__ = ("_caps", "_recall", "_stamp", "_unfetched", "received", "state", "text_max", "vanished")

    def __init__(self, position: int, *, text_max: int = TEXT_MAX) -> None:
        self.state = OffsetMap(position)
        self.received = position
        self.text_max = text_max
        self.vanished: list[int] = []
        self._caps = caps(text_max)
        self._recall: Recall | None = None
        self._unfetched = 0  # open offsets known from the text and not received yet
        self._stamp = 0

    @classmethod
    def restored(cls, state: OffsetMap, *, text_max: int = TEXT_MAX) -> Ledger:
        """A ledger restored from its text (offset_map.decode). Records come again from the position on."""
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
        """{offset: Entry} of started requests. Read it, but never keep a reference."""
        return self.state.entries

    @property
    def open_count(self) -> int:
        return self.state.count

    @property
    def known_end(self) -> int:
        """End of the last open request known from the text or from tasks.status; 0 if there is none."""
        ends = self.state.ends
        recalled = max(self._recall.known, default=-1) + 1 if self._recall is not None else 0
        return max(ends[-1] if ends else 0, recalled)

    @property
    def recalling(self) -> bool:
        """True while the ledger needs facts from tasks.status that its text cannot hold yet."""
        return self._recall is not None

    def entry(self, offset: int) -> Entry:
        return self.state.entries.get(offset, NOTHING)

    def is_open(self, offset: int) -> bool:
        """True for an offset that was received and is not done."""
        return offset < self.received and self.state.is_open(offset)

    def is_created(self, offset: int) -> bool:
        """True when CREATED of this open offset is published: below the mark, or started."""
        state, recall = self.state, self._recall
        return offset < state.created or offset in state.entries or (recall is not None and offset in recall.known)

    def open_offsets(self) -> list[int]:
        """Offsets that were received and are not done, ascending."""
        return self.state.offsets(0, self.received)

    @property
    def claims_max(self) -> int:
        """How many requests may be open while the span is below 2**20 offsets."""
        return self._caps[20]

    def room(self) -> int:
        """How many more records may be received now so that the text fits whatever happens later.

        The answer holds for that many records below received + GAP_ROOM and one beyond it; then ask again. Requests known
        from the text always fit: the text already contains them.
        """
        state = self.state
        cap = self._caps[(state.end - state.position + GAP_ROOM).bit_length()]
        return max(cap - state.count, 0) + self._unfetched

    def text(self, head: Head | None = None) -> str:
        """The text of the present state, without any draft (used by claims)."""
        return self.text_of(self.state, head)

    # --- Changes caused by the log ---

    def receive(self, offset: int, task_id: str) -> bool:
        """Take note of a record. False: nothing to do for it (a repeat, or done). Skipped offsets count as done.

        task_id: empty when the record has no usable one; no event was ever written about such a record
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
        """This open record, whose CREATED was never published, had ended before its text was lost (core/intake.py)."""
        assert offset not in self.entries, f"{offset} has started"
        self._stamp += 1
        self.state.finish(offset)
        self._absorb()

    def skip_to(self, offset: int) -> list[int]:
        """The log now starts at `offset`: no record below it can come any more. Returns the open offsets that were dropped."""
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
        """The log ends at `log_end`: new records will stand there. Forgets what was beyond; returns what was open there."""
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
        """Note what an event in tasks.status says about the request at `offset`, if that request has this task_id: it has
        ended, or its CREATED is published and it was granted this attempt. Call it in the order of the events, before
        anything is received, and truncate(log_end) after the last one.
        """
        assert self.received <= self.state.position, f"{offset} is recalled after the first receive"
        assert attempt >= 0, f"attempt {attempt} of {offset}"
        if offset >= self.received:
            if self._recall is None:
                self._recall = Recall()
            self._recall.add(offset, task_id, ended, min(attempt, ATTEMPT_MAX))

    def _absorb(self) -> None:
        """Move `created` over requests that are done or recalled, and drop the facts that the text can hold now."""
        recall, state = self._recall, self.state
        if recall is None:
            return
        state.created = _created_beyond(state, state.created, recall.known, self.received)
        if not recall.beyond(self.received, state.created):
            self._recall = None

    def publish(self, state: OffsetMap, offset: int) -> None:
        """Record CREATED of `offset` in this map, which is the ledger's own or a draft's."""
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
        """The transaction of `draft` has committed. Records received since then are open in it too.

        If the ledger changed in other ways since (a doubtful commit turned out to have landed), the changes of the draft are
        applied again to the present state.
        """
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
                    continue  # dropped meanwhile by skip_to or truncate
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
    """`created`, moved over every offset that is done or started, and over received requests whose CREATED is known."""
    starts, ends = state.starts, state.ends
    while created < state.end:
        at = bisect_right(starts, created) - 1
        if at < 0 or created >= ends[at]:  # done: continue at the next open run
            created = starts[at + 1] if at + 1 < len(starts) else state.end
        elif (created in known and created < received) or created in state.entries:
            created += 1  # a start implies CREATED: urgent requests may overtake the CREATED of others
        else:
            break
    return created


def charge(ledgers: Sequence[Ledger]) -> list[tuple[int, int]]:
    """The owner of these cells (all cells of one shard) died: charge the running requests with its death, and clear all marks.

    If a request stood trial alone in that worker, the death is charged to it. Otherwise each request that ran is charged, but
    not beyond SUSPECT_LOST: from there on only a death in its own child, or in a trial that it stood alone, is certainly its
    own. The other requests on trial are not charged, but share their next trial with fewer (suspects.narrowed).

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
    """Clear all marks: nothing of these cells runs any more, and no process died."""
    for ledger in ledgers:
        for offset, entry in ledger.entries.items():
            ledger.entries[offset] = entry_of(entry.attempt, entry.failed, entry.lost, Mark.NONE, entry.trial)
