"""The judge: facts in (requests, status events, dead letters, committed offsets), a Report out. Pure.

It has its own table of the state machine and shares no rule with the worker, so that it is able to disagree.

What must be true of every request record (its `origin`):
  - its events follow the machine from exactly one CREATED to at most one end, in the partition of the request, with its
    task_id as key; attempt and updated_at never fall; the first RUNNING is attempt 1, each next one the same or one more
  - a committed offset has passed it only if it ended: with a terminal event, as a duplicate, or in the dead letters (not
    a valid request, or one whose schema the registry did not provide). Only the offset counts as proof; what its
    metadata says about later offsets is not checked
  - a FAILED one is in the dead letters, once. A record that never became a task may be there again: only the group's
    offsets know that it was refused, and they can be lost

What one event shows is reported at once; what only the whole shows (conclusions.py) when `conclude` says that everything up
to now was fed. Facts of one partition must come in the order of their offsets; otherwise any order will do.

Compaction is no violation. The cleaner works from the front up to some point C and leaves one record of each key before
it. So two surviving events of one history, the later one at b, prove C <= b. If a history begins without CREATED at or
after the smallest such b, the cleaner cannot be the reason; before it, the history is counted as truncated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamtask.audit.conclusions import Conclusions
from streamtask.audit.kinds import KINDS
from streamtask.audit.places import (
    BLOCK,
    CODES,
    DUPLICATE,
    ENDED,
    FAILED,
    INVALID,
    LETTER,
    NAMES,
    OLD,
    REQUEST,
    SLACK,
    STATUS,
    TOLD,
    UNAVAILABLE,
    ZONE,
    Block,
    Cell,
    Open,
    bytes_of,
    text_of,
)
from streamtask.audit.report import Report, Violation
from streamtask.codec import DeadRecord, decode_status
from streamtask.codec.reader import PLAIN, Reader
from streamtask.config import TopicNames
from streamtask.domain.identity import Origin
from streamtask.domain.model import RequestRecord, TaskResponse, to_ms
from streamtask.errors import DecodeError

REFRESH_MS_MIN = 86_400_000  # such a late CREATED is the refresh of a task that waits for days
BEYOND = 1 << 63  # later than every time
# With `since`: a request is compared with its events only if it is younger than the window by this much, because its
# timestamp comes from its producer's clock and those of its events come from the worker's.
CLOCKS_MS = 300_000

# The judge's own copy of the machine: which status may follow which. Not imported: see above.
_FOLLOWS: dict[str, frozenset[str]] = {
    "created": frozenset({"running", "cancelled"}),
    "running": frozenset({"running", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
_ENDS = frozenset(status for status, following in _FOLLOWS.items() if not following)
assert {name for name, code in CODES.items() if code >= ENDED} == _ENDS

_LETTERS = {"duplicate": DUPLICATE, "schema_unavailable": UNAVAILABLE}


class Judge:
    """Takes the facts of one prefix: first starts and bounds, then rounds, each ended by conclude().

    since_ms      only facts from then on are fed; histories that began earlier are judged leniently
    on_violation  called for each violation as soon as it is found, also for those that the report only counts
    """

    def __init__(
        self,
        names: TopicNames,
        reader: Reader = PLAIN,
        *,
        since_ms: int | None = None,
        on_violation: Callable[[Violation], None] | None = None,
    ) -> None:
        self._reader = reader
        self._names = names
        self._since_ms = since_ms
        self._on_violation = on_violation
        self._report = Report()
        self._cells: dict[str, Cell] = {}  # by `high-3`, the front of an origin
        self._counts = [0] * len(NAMES)  # number of histories by the code of their last status
        self._cut: set[int] = set()  # partitions whose first status events were not read
        self._dead_cut = False  # retention has removed dead letters
        self._cleaned_max: dict[int, int] = {}  # partition → smallest b (see the module docstring)
        self._floor_ms: dict[int, int] = {}  # partition → timestamp of the first status event held
        self._conclusions = Conclusions(names, self._report, self._violation)

    # --- Facts --------------------------------------------------------------------------------------------------------

    def starts(self, *, status: dict[int, int], dead: dict[int, int]) -> None:
        """First offsets that will be fed, by partition. Above 0: retention has removed records, or they were not asked for."""
        self._cut |= {partition for partition, start in status.items() if start > 0}
        self._dead_cut = self._dead_cut or any(start > 0 for start in dead.values())

    def bounds(
        self,
        band: int,
        partition: int,
        committed: int | None,
        *,
        log_start: int,
        log_end: int,
        begin: int = 0,
        read_to: int = 0,
    ) -> None:
        """A request partition: the workers' committed offset (None: nothing is committed), the bounds of its log, and which of
        its records are fed: begin..read_to-1.

        The committed offset was read before the status events, so the end of every request that it has passed is fed.
        """
        cell = self._cell(band, partition)
        cell.committed, cell.start, cell.end = committed, log_start, log_end
        cell.begin, cell.read_to = max(cell.begin, begin), max(cell.read_to, read_to)

    def request(self, record: RequestRecord) -> None:
        """A request record, as decoded."""
        self._report.requests += 1
        valid = record.problem is None
        bits = REQUEST
        if not valid:
            self._report.invalid += 1
            bits |= INVALID
        if self._since_ms is not None and record.timestamp_ms < self._since_ms + CLOCKS_MS:
            bits |= OLD
        cell, offset = self._cell(record.band, record.partition), record.offset
        block, slot = cell.block(offset), offset % BLOCK
        before = block.mark(slot, bits)
        if before & REQUEST and not before & TOLD:
            return  # its log was created again; the reader has reported that
        if block.oldest_ms is None or record.timestamp_ms < block.oldest_ms:
            block.oldest_ms = record.timestamp_ms
        id16 = bytes_of(record.task_id)
        if before & STATUS and (known := block.id_of(slot)) and known != id16:
            task_id = text_of(known)
            at = self._at(cell.partition, cell.open[offset].first if offset in cell.open else None, before)
            text = f"{cell.origin(offset)} is the request of {record.task_id!r}, but has events of {task_id}"
            cell.strangers[offset] = (task_id, text, at)
        block.name(slot, id16)

    def status(self, partition: int, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None) -> None:
        """A committed record of the status topic."""
        self._report.events += 1
        if partition not in self._floor_ms:
            self._floor_ms[partition] = timestamp_ms
        try:
            event = decode_status(value, self._reader)
        except DecodeError as error:
            at = self._at(partition, offset)
            self._violation("unreadable_event", f"{_spot(at)}: {error}", error.task_id or "", None, at)
            return
        if key != event.task_id.encode():
            at = self._at(partition, offset, event=event)
            text = f"{_spot(at)} has the key {key!r}, but the task_id {event.task_id}"
            self._violation("wrong_key", text, event.task_id, None, at)
        found = self._place(event.origin)
        if found is None:
            at = self._at(partition, offset, event=event)
            text = f"{_spot(at)} names the origin {event.origin!r}, which is not a request record"
            self._violation("unknown_origin", text, event.task_id, None, at)
            return
        cell, number = found
        if cell.partition != partition:
            at = self._at(partition, offset, event=event)
            text = f"{_spot(at)} belongs to the request {event.origin}"
            self._violation("wrong_partition", text, event.task_id, event.origin, at)
            return  # not part of its history: there is no order between two partitions
        history = cell.open.get(number)
        if history is not None:
            self._step(cell, number, history, event, partition, offset, timestamp_ms)
        else:
            block = cell.block(number)
            state = block.states[number % BLOCK]
            if state & STATUS:
                self._after_end(state, event, partition, offset)
            else:
                self._begin(cell, number, block, state, event, partition, offset, timestamp_ms)

    def dead(self, letter: DeadRecord) -> None:
        """A committed dead letter."""
        self._report.letters += 1
        at = {
            "topic": self._names.dead,
            "partition": letter.partition,
            "offset": letter.offset,
            "reason": letter.reason,
        }
        found = self._place(letter.origin)
        if found is None:
            text = f"{_spot(at)} names the origin {letter.origin!r}, which is not a request record"
            self._violation("unknown_origin", text, letter.task_id, None, at)
            return
        cell, number = found
        block, slot = cell.block(number), number % BLOCK
        before = block.mark(slot, LETTER | _LETTERS.get(letter.reason, 0))
        cell.failed.pop(number, None)
        if before & LETTER:
            cell.repeated[number] = (letter.task_id, f"{_spot(at)}: a second dead letter ({letter.reason})", at)
        elif not before & REQUEST:
            block.name(slot, block.id_of(slot) or bytes_of(letter.task_id))
        if letter.reason == "duplicate":
            self._report.duplicates += 1
            if before & STATUS:
                self._refused(letter.task_id, letter.origin, at)

    def unreadable_letter(self, partition: int, offset: int, text: str) -> None:
        """A record of the dead letter topic that the codec could not read."""
        self._report.letters += 1
        at = {"topic": self._names.dead, "partition": partition, "offset": offset}
        self._violation("unreadable_letter", f"{_spot(at)}: {text}", "", None, at)

    def unread(self, text: str) -> None:
        """Something could not be read to its end: the report will not be clean."""
        if text not in self._report.unread:
            self._report.unread.append(text)

    # --- One event ----------------------------------------------------------------------------------------------------

    def _begin(
        self,
        cell: Cell,
        number: int,
        block: Block,
        state: int,
        event: TaskResponse,
        partition: int,
        offset: int,
        timestamp_ms: int,
    ) -> None:
        status: str = event.status._value_
        slot = number % BLOCK
        code = CODES[status]
        self._counts[code] += 1
        if event.updated_at is not None and event.created_at is not None and event.updated_at < event.created_at:
            at = self._at(partition, offset, event=event)
            text = f"{_spot(at)}: updated_at is before created_at"
            self._violation("time_back", text, event.task_id, event.origin, at)
        if state & DUPLICATE:
            self._refused(event.task_id, event.origin, self._at(partition, offset, event=event))
        id16 = bytes_of(event.task_id)
        if state & REQUEST:
            known = block.id_of(slot)
            if known != id16 and block.ids is not None:
                at = self._at(partition, offset, event=event)
                text = f"{_spot(at)} has the task_id {event.task_id}, but its request {event.origin} has {text_of(known)!r}"
                cell.strangers[number] = (event.task_id, text, at)
        else:
            block.name(slot, id16)
            if cell.missing(number):
                at = self._at(partition, offset, event=event)
                text = f"{_spot(at)} belongs to {event.origin}, which does not exist"
                self._violation("unknown_origin", text, event.task_id, event.origin, at)
                block.mark(slot, TOLD | REQUEST)
        if partition not in self._cleaned_max:
            block.pinned = True
            block.mark(slot, ZONE)
        if code != CODES["created"]:
            self._judge_beginning(event, state, partition, offset)
        block.status(slot, code)
        if code >= ENDED:
            self._ended(cell, number, block, code, event, partition, offset)
            return
        cell.open[number] = Open(
            task_id=event.task_id,
            status=status,
            partition=partition,
            first=offset,
            last=offset,
            timestamp_ms=timestamp_ms,
            created_at=event.created_at,
            updated_at=event.updated_at,
            attempt=event.attempt,
        )

    def _judge_beginning(self, event: TaskResponse, state: int, partition: int, offset: int) -> None:
        """A history that does not begin with CREATED: a violation unless retention or compaction can explain it."""
        young = self._since_ms is not None and state & REQUEST and not state & OLD
        if (partition in self._cut and not young) or partition not in self._cleaned_max:
            self._report.truncated += 1
            return
        at = self._at(partition, offset, event=event)
        text = f"{_spot(at)} is the first event of {event.origin}, but not CREATED"
        self._violation("created_missing", text, event.task_id, event.origin, at)

    def _step(
        self,
        cell: Cell,
        number: int,
        history: Open,
        event: TaskResponse,
        partition: int,
        offset: int,
        timestamp_ms: int,
    ) -> None:
        status: str = event.status._value_
        wrong = self._wrong_step(history, event, status, timestamp_ms)
        if wrong:
            at = self._at(partition, offset, event=event)
            at["before"] = history.evidence(self._names.status)
            for kind, text in wrong:
                self._violation(kind, f"{_spot(at)}{text}", history.task_id, event.origin, at)
        if partition not in self._cleaned_max and event.task_id == history.task_id:
            self._cleaned_max[partition] = offset
        if status != history.status:
            code = CODES[status]
            self._counts[CODES[history.status]] -= 1
            self._counts[code] += 1
            block = cell.block(number)
            block.status(number % BLOCK, code)
            if code >= ENDED:
                del cell.open[number]
                self._ended(cell, number, block, code, event, partition, offset)
                return
        history.status, history.last, history.timestamp_ms = status, offset, timestamp_ms
        if event.attempt is not None:
            history.attempt = event.attempt
        if event.updated_at is not None:
            history.updated_at = event.updated_at

    def _ended(
        self, cell: Cell, number: int, block: Block, code: int, event: TaskResponse, partition: int, offset: int
    ) -> None:
        if code == FAILED and not self._dead_cut and not block.states[number % BLOCK] & LETTER:
            cell.failed[number] = (event.task_id, self._at(partition, offset, event=event))

    def _wrong_step(self, history: Open, event: TaskResponse, status: str, timestamp_ms: int) -> list[tuple[str, str]]:
        """(kind, text) for everything that is wrong with the next event of an open history."""
        wrong: list[tuple[str, str]] = []
        if event.task_id != history.task_id:
            wrong.append(("wrong_task_id", f" has the task_id {event.task_id}, but its history has {history.task_id}"))
        if event.attempt is not None:
            wrong += _wrong_attempt(history, event.attempt, status)
        updated, created = event.updated_at, event.created_at
        if updated is not None and history.updated_at is not None and updated < history.updated_at:
            wrong.append(("time_back", f": updated_at decreased by {to_ms(history.updated_at) - to_ms(updated)} ms"))
        if created is not None and history.created_at is not None and created != history.created_at:
            wrong.append(
                ("created_at_changed", f": created_at changed by {to_ms(created) - to_ms(history.created_at)} ms")
            )
        if status == "created":
            if history.status == "created" and timestamp_ms - history.timestamp_ms >= REFRESH_MS_MIN:
                self._report.refreshed += 1
            else:
                wrong.append(("two_created", f": created after {history.status}"))
        elif status not in _FOLLOWS[history.status]:
            wrong.append(("off_machine", f": {status} after {history.status}"))
        return wrong

    def _after_end(self, state: int, event: TaskResponse, partition: int, offset: int) -> None:
        """An event of a history that has ended: the first end remains the end."""
        status: str = event.status._value_
        before = NAMES[state & STATUS]
        kind = "two_ends" if status in _ENDS else "two_created" if status == "created" else "event_after_end"
        at = self._at(partition, offset, event=event) | {"before": {"topic": self._names.status, "status": before}}
        self._violation(kind, f"{_spot(at)}: {status} after {before}", event.task_id, event.origin, at)

    def _refused(self, task_id: str, origin: str | None, at: dict[str, Any]) -> None:
        text = f"{origin} was refused as a duplicate, but has status events"
        self._violation("duplicate_with_history", text, task_id, origin, at)

    # --- The verdict --------------------------------------------------------------------------------------------------

    def conclude(self, *, last: bool = False) -> None:
        """Judge what only the whole can show. Call it when everything up to one moment was fed: the end of every request that
        the committed offsets pass, and the dead letters and requests of all events.

        Does nothing while something is unread, because then missing records prove nothing. last: nothing more will be fed.
        """
        if self._report.unread:
            return
        for cell in self._ordered():
            cut = cell.partition in self._cut and self._since_ms is None  # otherwise OLD says it, record by record
            floor_ms = self._floor_ms.get(cell.partition, BEYOND) if cut else None
            self._conclusions.judge(cell, self._neighbours(cell), floor_ms, dead_cut=self._dead_cut, last=last)
            cell.forget()

    def report(self) -> Report:
        """conclude(), and add what is pending. Call it once, after all facts."""
        self.conclude(last=True)
        report = self._report
        report.counts = {name: count for name, count in zip(NAMES, self._counts, strict=True) if name and count}
        if not report.unread:
            for cell in self._ordered():
                self._conclusions.pending(cell)
                self._conclusions.bounds(cell)
        return report

    def figures(self) -> dict[str, int]:
        """Progress so far: requests, events, letters, open and ended histories, violations."""
        report = self._report
        return {
            "requests": report.requests,
            "events": report.events,
            "letters": report.letters,
            "open": sum(self._counts[1:ENDED]),
            "ended": sum(self._counts[ENDED:]),
            "violations": report.violations_total,
        }

    # --- Words --------------------------------------------------------------------------------------------------------

    def _ordered(self) -> list[Cell]:
        return sorted(self._cells.values(), key=lambda cell: (cell.band, cell.partition))

    def _neighbours(self, cell: Cell) -> list[Cell]:
        """The cells whose histories are in the same status partition."""
        return [other for other in self._cells.values() if other.partition == cell.partition]

    def _cell(self, band: int, partition: int) -> Cell:
        name = self._names.bands[band].name
        front = f"{name}-{partition}"
        found = self._cells.get(front)
        if found is None:
            found = self._cells[front] = Cell(band, partition, name)
        return found

    def _place(self, origin: str | None) -> tuple[Cell, int] | None:
        """The cell and offset of an origin; None when no such request record is possible."""
        front, _, digits = (origin or "").rpartition("@")
        cell = self._cells.get(front)
        if cell is None or not (digits.isascii() and digits.isdigit()) or len(digits) > 19:
            parsed = Origin.parse(origin or "")  # high-03@7 is high-3@7
            band = self._names.band_named(parsed.band) if parsed else None
            if parsed is None or band is None:
                return None
            cell = self._cells.get(f"{parsed.band}-{parsed.partition}")
            if cell is None:
                return None
        offset = int(digits)
        return None if offset >= cell.end + SLACK else (cell, offset)

    def _at(
        self, partition: int, offset: int | None, state: int = 0, *, event: TaskResponse | None = None
    ) -> dict[str, Any]:
        """Evidence: the position of a record of the status topic, and what it says."""
        at: dict[str, Any] = {"topic": self._names.status, "partition": partition}
        if offset is not None:
            at["offset"] = offset
        if event is not None:
            at |= {"status": event.status.value, "attempt": event.attempt}
        elif state & STATUS:
            at["status"] = NAMES[state & STATUS]
        return at

    def _violation(self, kind: str, text: str, task_id: str, origin: str | None, evidence: dict[str, Any]) -> None:
        assert kind in KINDS, kind
        violation = Violation(kind, text, task_id, origin or "", dict(evidence))
        self._report.add(violation)
        if self._on_violation is not None:
            self._on_violation(violation)


def _wrong_attempt(history: Open, attempt: int, status: str) -> list[tuple[str, str]]:
    before = history.attempt
    if before is not None and attempt < before:
        return [("attempt_back", f": attempt {attempt} after {before}")]
    if status == "running":
        if before is None and history.status == "created" and attempt != 1:
            return [("attempt_skipped", f": the first RUNNING is attempt {attempt}")]
        if before is not None and attempt > before + 1:
            return [("attempt_skipped", f": attempt {attempt} after {before}")]
    elif attempt > (before or 0):
        return [("attempt_skipped", f": {status} in attempt {attempt}, which has no RUNNING event")]
    return []


def _spot(at: dict[str, Any]) -> str:
    return f"{at['topic']} [{at['partition']}] @{at['offset']}"
