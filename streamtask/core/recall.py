"""What tasks.status says about request records of one cell that have not been received yet.

A fact is about one record: it counts for the offset *and* the task_id that its event names. If a request topic was recreated
or cut, other records stand at the same offsets; facts about the former records must not mark those as done.

One conclusion goes further. tasks.status is compacted by task_id: where an id was reused after its end, only the events of
the later record may remain. The records of a cell are taken in order, and a record with the id of an open task has no events.
So a terminal event of a *later* record of the cell with the same task_id proves that the earlier record has ended, although
no event of it remains.
"""

from __future__ import annotations

from array import array
from typing import Final

_EMPTY: Final = bytes(array("I").itemsize << 10)  # keys of an empty page


_BUCKETS: Final = 14  # bits of a hash that choose a bucket of later ends
_PART: Final = (1 << 40) - 1  # bits of the hash that an entry keeps
_PAGE: Final = (1 << 24) - 1  # bits of the page number that it keeps: enough to compare within 8 billion offsets


def _key(task_id: str) -> int:
    """A 32-bit hash of the task_id, never 0. Not its digits: UUIDv7s begin alike, UUIDv1s end alike."""
    return hash(task_id) & 0xFFFF_FFFF or 1


def _entry(task_id: str, page: int) -> tuple[int, int]:
    """(bucket, its entry) for an id that has ended in this page."""
    hashed = hash(task_id) & 0xFFFF_FFFF_FFFF_FFFF
    return hashed >> 64 - _BUCKETS, (hashed >> 10 & _PART) << 24 | page & _PAGE


class Recall:
    """Facts from tasks.status about offsets that have not been received yet.

    There may be many: they take four bytes and a bit for each offset from the first ended one to the last, in pages of
    1,024 (4 KB for a page with a single one in it).

    If a different task has ended at the offset of a new record, the record is mistaken for it with a chance of 2**-32: one
    in 4,300 that a recreated topic loses any of its first million requests. Whole ids would be 60 bytes each.

    Another eight bytes for each ended request serve to find a later end of an id: 54 bits of its hash, because a record
    without a fact of its own is compared with all of them. With a million facts and a million such records, the chance that
    any record is wrongly taken as ended is one in 18,000.

    known  {offset: attempt} of requests that have not ended; kept until `created` has passed the last of them
    """

    __slots__ = ("_ends", "_keys", "_known_keys", "_last", "_page", "_pages", "known")

    def __init__(self) -> None:
        self.known: dict[int, int] = {}
        self._known_keys: dict[int, int] = {}
        self._last: int | None = None  # highest key of known, computed on demand
        self._pages: dict[int, int] = {}  # offset // 1024 → bits
        self._keys: dict[int, array[int]] = {}  # offset // 1024 → keys of those that have ended
        self._page = 0  # pages below have been dropped
        self._ends: dict[int, array[int]] = {}  # bucket → partial hash and page of each ended request

    def add(self, offset: int, task_id: str, ended: bool, attempt: int) -> None:
        """Add a fact. The newest fact about an offset is about the record that stands there, if there is one: earlier
        events of another task_id belong to a record that the log has lost.
        """
        self._last = None
        key = _key(task_id)
        if self._key_at(offset) not in (0, key):
            self._drop(offset)
        if ended:
            self.known.pop(offset, None)
            self._known_keys.pop(offset, None)
            page = offset >> 10
            if page not in self._pages:
                self._pages[page] = 0
                self._keys[page] = array("I", _EMPTY)
            if not self.has_ended(offset):
                bucket, entry = _entry(task_id, page)
                self._ends.setdefault(bucket, array("Q")).append(entry)
            self._pages[page] |= 1 << (offset & 1_023)
            self._keys[page][offset & 1_023] = key
        elif not self.has_ended(offset):
            self.known[offset] = max(attempt, self.known.get(offset, 0))
            self._known_keys[offset] = key

    def has_ended(self, offset: int) -> bool:
        return bool(self._pages.get(offset >> 10, 0) >> (offset & 1_023) & 1)

    def ended_later(self, offset: int, task_id: str) -> bool:
        """True when a record after `offset` with this task_id has ended."""
        page = offset >> 10
        bucket, mine = _entry(task_id, 0)
        for entry in self._ends.get(bucket, ()):
            ahead = (entry - page) & _PAGE
            if entry & ~_PAGE == mine and ahead <= _PAGE >> 1 and self._ended_in(page + ahead, offset, task_id):
                return True
        return False

    def _ended_in(self, page: int, offset: int, task_id: str) -> bool:
        """Check that page: a fact of another task may have replaced the one that was added."""
        keys, key, first = self._keys.get(page), _key(task_id), page << 10
        if keys is None or key not in keys:
            return False
        return any(
            keys[at & 1_023] == key and self.has_ended(at) for at in range(max(offset + 1, first), first + 1_024)
        )

    def keep_own(self, offset: int, task_id: str) -> None:
        """The record at `offset` has this task_id: drop what is known there about another one."""
        held = self._key_at(offset)
        if held and held != _key(task_id):
            self._drop(offset)

    def _key_at(self, offset: int) -> int:
        """The key of the fact about this offset; 0 if there is none."""
        if self.has_ended(offset):
            return self._keys[offset >> 10][offset & 1_023]
        return self._known_keys.get(offset, 0)

    def _drop(self, offset: int) -> None:
        if self.known.pop(offset, None) is not None:
            self._last = None
            del self._known_keys[offset]
        elif self.has_ended(offset):
            page = offset >> 10
            self._pages[page] &= ~(1 << (offset & 1_023))
            if not self._pages[page]:
                del self._pages[page], self._keys[page]

    def beyond(self, received: int, created: int) -> bool:
        """True while the ledger text cannot hold all facts yet. It holds an ended request once that is received, and a
        known one once that is received and below `created`. Called for every record, so it walks only where a page begins.
        """
        page = received >> 10
        if page != self._page:
            self._page = page
            self._pages = {at: bits for at, bits in self._pages.items() if at >= page}
            self._keys = {at: keys for at, keys in self._keys.items() if at >= page}
        if self._last is None:
            self._last = max(self.known, default=-1)
        if self._last >= min(received, created) or len(self._pages) > 1:
            return True
        return any(at > page or bits >> (received & 1_023) for at, bits in self._pages.items())

    def drop_from(self, end: int) -> None:
        """Drop every fact about offsets from `end` on: they are no longer true."""
        self._last = None
        self.known = {offset: attempt for offset, attempt in self.known.items() if offset < end}
        self._known_keys = {offset: key for offset, key in self._known_keys.items() if offset < end}
        pages = {at: bits & (1 << max(end - (at << 10), 0)) - 1 for at, bits in self._pages.items() if at << 10 < end}
        self._pages = {at: bits for at, bits in pages.items() if bits}
        self._keys = {at: keys for at, keys in self._keys.items() if at in self._pages}
        if not self._pages:
            self._ends = {}
