"""What the audit remembers of every request record: two bytes, and sixteen more until its whole block is judged.

Request records of one partition are numbered without big holes, so the place of a record is an index and needs no hash
table: a Cell (one partition of one band) holds Blocks of 1,024 places. A Block keeps the task_ids of its places until
none of them is open; then they are dropped, and the remaining state says how each place ended. Histories that have not
ended are separate objects (`Cell.open`, about 400 bytes each), which are dropped at their end.

Invariant: `Block.rest` counts the places of which something is known and that are not judged yet.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

BLOCK = 1_024
SLACK = 1 << 20  # an origin this far beyond the end of its log is not a record: garbled data must not cost memory

# The state of a place. The lowest three bits hold its last status, 0 when it has no event.
STATUS = 7
REQUEST = 8  # its record was read, or is no longer in the log
INVALID = 16  # and it is not a valid request
LETTER = 32
DUPLICATE = 64  # a letter says that it was refused as a duplicate
UNAVAILABLE = 128  # a letter says that its schema was unavailable
OLD = 256  # so old that retention may have removed its end
TOLD = 512  # a violation that only the whole shows was reported for it
ZONE = 1_024  # its history begins before the point that compaction may have reached
MASK = 2_047

NAMES = ("", "created", "running", "completed", "failed", "cancelled")
CODES = {name: code for code, name in enumerate(NAMES) if name}
ENDED = 3  # codes from this one on are ends
FAILED = CODES["failed"]


def judged(state: int) -> bool:
    """Whether this place is settled."""
    if not state & REQUEST:
        return state == 0
    if state & TOLD:
        return True
    if state & INVALID:
        return bool(state & LETTER)
    return state & STATUS >= ENDED or bool(state & (DUPLICATE | UNAVAILABLE))


_ORPHAN = 1 << 16  # larger than the number of places in a block
_COUNTS = [(not judged(state)) + _ORPHAN * bool(state and not state & REQUEST) for state in range(MASK + 1)]


class Block:
    """1,024 places.

    ids        16 bytes each; None once they were dropped
    rest       number of places not judged, plus 65,536 for each place with an event or letter and no request yet
    oldest_ms  the earliest timestamp of a request in it; None: none was read
    pinned     its ids are needed to the end, because some of its histories begin where compaction may have been
    """

    __slots__ = ("first", "ids", "oldest_ms", "pinned", "rest", "states")

    def __init__(self, first: int) -> None:
        self.first = first
        self.states = array("H", bytes(2 * BLOCK))
        self.ids: bytearray | None = bytearray(16 * BLOCK)
        self.rest = 0
        self.oldest_ms: int | None = None
        self.pinned = False

    def mark(self, slot: int, bits: int) -> int:
        """Add bits; returns the previous state."""
        before = self.states[slot]
        self.states[slot] = after = before | bits
        self.rest += _COUNTS[after] - _COUNTS[before]
        return before

    def status(self, slot: int, code: int) -> None:
        """Set the last status."""
        before = self.states[slot]
        self.states[slot] = after = before & ~STATUS | code
        self.rest += _COUNTS[after] - _COUNTS[before]

    def id_of(self, slot: int) -> bytes:
        """16 bytes; b"" when the id is not known."""
        held = b"" if self.ids is None else bytes(self.ids[16 * slot : 16 * slot + 16])
        return held if any(held) else b""

    def name(self, slot: int, id16: bytes) -> None:
        if self.ids is not None:
            self.ids[16 * slot : 16 * slot + 16] = id16

    @property
    def orphans(self) -> bool:
        return self.rest >= _ORPHAN

    def unjudged(self) -> Iterator[int]:
        """Slots of which something is known and that are not judged."""
        return (slot for slot, state in enumerate(self.states) if _COUNTS[state])


@dataclass(slots=True)
class Open:
    """A history that has not ended, for comparison with its next event. `first`, `last`: offsets of its events."""

    task_id: str
    status: str
    partition: int
    first: int
    last: int
    timestamp_ms: int
    created_at: datetime | None
    updated_at: datetime | None
    attempt: int | None

    def evidence(self, topic: str) -> dict[str, Any]:
        """The position of its last event, and what it said."""
        return {
            "topic": topic,
            "partition": self.partition,
            "offset": self.last,
            "status": self.status,
            "attempt": self.attempt,
        }


@dataclass(slots=True)
class Cell:
    """One partition of one band.

    committed   the workers' committed offset; None: nothing is committed
    start, end  bounds of its log; its records begin..read_to-1 were read
    open        histories without an end
    failed      FAILED ones whose dead letter was not seen yet: task_id and evidence
    repeated    places with a second dead letter, a violation if they have a history: task_id, text, evidence
    strangers   events whose task_id is not their request's: task_id, text, evidence
    """

    band: int
    partition: int
    name: str  # of the band
    committed: int | None = None
    start: int = 0
    end: int = 0
    begin: int = 0
    read_to: int = 0
    blocks: dict[int, Block] = field(default_factory=dict)
    open: dict[int, Open] = field(default_factory=dict)
    failed: dict[int, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    repeated: dict[int, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)
    strangers: dict[int, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)

    def block(self, offset: int) -> Block:
        """The block of a place; created when it does not exist."""
        number = offset // BLOCK
        found = self.blocks.get(number)
        if found is None:
            found = self.blocks[number] = Block(number * BLOCK)
        return found

    def origin(self, offset: int) -> str:
        return f"{self.name}-{self.partition}@{offset}"

    def passed(self, offset: int) -> bool:
        return self.committed is not None and offset < self.committed

    def missing(self, offset: int) -> bool:
        """Whether a place was read and has no request record. Places before the start of the log are unknown."""
        return self.begin <= offset < self.read_to

    def unjudged(self, *, urgent: bool) -> Iterator[tuple[Block, int, int]]:
        """(block, slot, offset) in order. urgent: without those that merely wait above the committed offset."""
        for number in sorted(self.blocks):
            block = self.blocks[number]
            if block.rest and (not urgent or block.orphans or self.passed(block.first)):
                for slot in block.unjudged():
                    yield block, slot, block.first + slot

    def forget(self) -> None:
        """Drop the task_ids of blocks that are fully judged."""
        for block in self.blocks.values():
            if block.ids is not None and not block.rest and not block.pinned and block.first + BLOCK <= self.read_to:
                block.ids = None


def bytes_of(task_id: str) -> bytes:
    """The 16 bytes of a canonical task_id; zeroes when it is empty."""
    return bytes.fromhex(task_id.replace("-", "")) if task_id else bytes(16)


def text_of(id16: bytes) -> str:
    """A task_id in canonical form; "" for zeroes."""
    text = id16.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" if any(id16) else ""
