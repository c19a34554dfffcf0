"""What only the whole shows: lost requests, missing dead letters, events of requests that do not exist, pending requests.

Called at the end of a round, when everything up to one moment was fed. A violation is reported once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamtask.audit.places import (
    BLOCK,
    ENDED,
    INVALID,
    NAMES,
    OLD,
    REQUEST,
    STATUS,
    TOLD,
    UNAVAILABLE,
    ZONE,
    Block,
    Cell,
    judged,
    text_of,
)
from streamtask.audit.report import Gap, Pending, Report, Violation
from streamtask.config import TopicNames

REPEATED_MAX = 10_000  # second letters of a cell that are kept until their histories may arrive
LOOKED_UP_MAX = 100_000  # task_ids looked up at once: bounds the set of them

OnFinding = Callable[[str, str, str, "str | None", dict[str, Any]], None]  # kind, text, task_id, origin, evidence
Lost = tuple[Block, int, int]  # block, slot, offset


class Conclusions:
    """Judges the places of a cell; calls `tell` for each violation."""

    def __init__(self, names: TopicNames, report: Report, tell: OnFinding) -> None:
        self._names = names
        self._report = report
        self._tell = tell

    def judge(self, cell: Cell, neighbours: list[Cell], floor_ms: int | None, *, dead_cut: bool, last: bool) -> None:
        """One cell.

        neighbours  the cells with the same partition number, including this one: their histories share a status partition
        floor_ms    time of the first status event, if retention has removed earlier ones; None: it has removed none
        dead_cut    retention has removed dead letters
        last        nothing more will be fed
        """
        self._strangers(cell, last=last)
        self._failed(cell)
        self._repeated(cell, last=last)
        lost: list[Lost] = []
        for block, slot, offset in cell.unjudged(urgent=True):
            state = block.states[slot]
            if not state & REQUEST and not self._explained(cell, block, slot, offset):
                continue
            state = block.states[slot]
            if judged(state) or not cell.passed(offset):
                continue
            if state & INVALID and (dead_cut or state & OLD):
                self._forgotten(block, slot)
            elif state & STATUS or state & INVALID:
                self._lost(cell, block, slot, offset)
            elif state & OLD or (floor_ms is not None and (block.oldest_ms or 0) < floor_ms):
                self._forgotten(block, slot)  # because of retention, or `since`
            else:
                lost.append((block, slot, offset))
            if len(lost) >= LOOKED_UP_MAX:
                self._judge_lost(cell, neighbours, lost)
        self._judge_lost(cell, neighbours, lost)

    def _strangers(self, cell: Cell, *, last: bool) -> None:
        """Events with another task_id than their request's. If the request's schema was unavailable, that is no violation: its
        worker knew only the id in header or key. Its dead letter says so, at the end of its history."""
        for offset, (task_id, text, at) in list(cell.strangers.items()):
            state = cell.block(offset).states[offset % BLOCK]
            if state & STATUS < ENDED and not last:
                continue
            if not state & UNAVAILABLE:
                self._tell("wrong_task_id", text, task_id, cell.origin(offset), at)
            del cell.strangers[offset]

    def _failed(self, cell: Cell) -> None:
        for offset, (task_id, at) in cell.failed.items():
            text = f"{cell.origin(offset)} is FAILED, but not in {self._names.dead}"
            self._tell("failed_not_dead", text, task_id, cell.origin(offset), at)
        cell.failed.clear()

    def _repeated(self, cell: Cell, *, last: bool) -> None:
        """Second letters, once a history shows that they are a violation, or nothing more will be fed: the letters of a round
        are read after its events, so their events may come with the next round. Without a history it is no violation: only the
        group's offsets tell a worker that it has refused the record before, and if they are lost it refuses it again."""
        settled = last or len(cell.repeated) > REPEATED_MAX
        for offset, (task_id, text, at) in list(cell.repeated.items()):
            if cell.block(offset).states[offset % BLOCK] & STATUS:
                self._tell("dead_twice", text, task_id, cell.origin(offset), at)
            elif settled:
                self._report.repeat(Violation("dead_twice", text, task_id, cell.origin(offset), dict(at)))
            else:
                continue
            del cell.repeated[offset]

    def _explained(self, cell: Cell, block: Block, slot: int, offset: int) -> bool:
        """A place with events or letters but no request: True when that is explained, because its log began later."""
        state = block.states[slot]
        if offset < cell.begin:
            block.mark(slot, REQUEST | OLD if state & STATUS else REQUEST | OLD | TOLD)
            return True
        history = cell.open.get(offset)
        at: dict[str, Any] = {"topic": self._names.status, "partition": cell.partition}
        if history is not None:
            at |= {"partition": history.partition, "offset": history.first, "status": history.status}
        elif not state & STATUS:
            at = {"topic": self._names.dead}
        what = "events of" if state & STATUS else "a dead letter of"
        text = f"{what} {cell.origin(offset)}, which does not exist"
        self._tell("unknown_origin", text, text_of(block.id_of(slot)), cell.origin(offset), at)
        block.mark(slot, REQUEST | TOLD)
        return False

    def _forgotten(self, block: Block, slot: int) -> None:
        self._report.truncated += 1
        block.mark(slot, TOLD)

    def _judge_lost(self, cell: Cell, neighbours: list[Cell], lost: list[Lost]) -> None:
        """Requests that the committed offset has passed, without any event: lost, unless compaction may have removed their
        events because the task_id was used again (it keeps the last record of a key)."""
        again: set[bytes] = set()
        if any(block.pinned for one in neighbours for block in one.blocks.values()):
            wanted = {block.id_of(slot) for block, slot, _ in lost}
            for block in (block for one in neighbours for block in one.blocks.values() if block.pinned):
                for slot, state in enumerate(block.states):
                    if state & ZONE and (held := block.id_of(slot)) in wanted:
                        again.add(held)
        for block, slot, offset in lost:
            if block.id_of(slot) in again:
                self._forgotten(block, slot)
            else:
                self._lost(cell, block, slot, offset)
        lost.clear()

    def _lost(self, cell: Cell, block: Block, slot: int, offset: int) -> None:
        """A request that has not ended although a committed offset has passed it."""
        state = block.states[slot]
        task_id, origin = text_of(block.id_of(slot)), cell.origin(offset)
        at: dict[str, Any] = {
            "topic": self._names.requests[cell.band],
            "partition": cell.partition,
            "offset": offset,
            "committed": cell.committed,
        }
        block.mark(slot, TOLD)
        if state & INVALID:
            text = (
                f"{origin} is not a valid request and is below the committed offset, but is not in {self._names.dead}"
            )
            self._tell("invalid_not_dead", text, task_id, origin, at)
            return
        status, history = NAMES[state & STATUS], cell.open.get(offset)
        at |= {"status": status, "attempt": history.attempt if history is not None else None}
        if history is not None:
            at["before"] = history.evidence(self._names.status)
        text = f"{origin} is {status or 'without any event'}, but {cell.committed} is committed: no worker will run it again"
        self._tell("committed_past_unfinished", text, task_id or (history.task_id if history else ""), origin, at)

    # --- At the end ---------------------------------------------------------------------------------------------------

    def pending(self, cell: Cell) -> None:
        """Requests that have not ended and that no committed offset has passed."""
        for block, slot, offset in cell.unjudged(urgent=False):
            state = block.states[slot]
            if not state & REQUEST or cell.passed(offset) or offset < cell.start:
                continue
            where = "nothing is committed"
            if cell.committed is not None:
                where = "at the committed offset" if offset == cell.committed else "above the committed offset"
            history = cell.open.get(offset)
            attempt = history.attempt if history is not None else None
            task_id, topic = text_of(block.id_of(slot)), self._names.requests[cell.band]
            self._report.wait(Pending(task_id, cell.origin(offset), topic, NAMES[state & STATUS], attempt, where))

    def bounds(self, cell: Cell) -> None:
        """Gaps in the logs, and a committed offset beyond the end of its log."""
        topic = self._names.requests[cell.band]
        if cell.committed is None:
            return
        if cell.committed < cell.start:
            self._report.gaps.append(Gap(topic, cell.partition, cell.committed, cell.start))
        if cell.committed > cell.end:
            at = {"topic": topic, "partition": cell.partition, "committed": cell.committed, "log_end": cell.end}
            text = f"{topic} [{cell.partition}]: {cell.committed} is committed, but the log ends at {cell.end}"
            self._tell("committed_beyond_end", text, "", None, at)
