"""The newest task ids that tasks.control cancels. A task whose id is among them never starts.

A worker reads tasks.control whole, so a storm of cancels stays in memory for the retention of that topic. As a dict of strings
a million ids took 127 MB, and at the cap each further one took about 40 µs (to find the oldest key, a dict walks over those
that were deleted before it). Here each id takes 16 bytes, in buckets that are byte strings: 20 MB for a million, 1 µs each.
Within a bucket ids stand in order of arrival, so the oldest of all is the first one of its bucket, and the order only has to
record which bucket that is.

Always true: each id is held once; at most `ids_max` are held, the newest; an id that comes again keeps its place.
"""

from __future__ import annotations

from typing import Final

ID_BYTES: Final = 16
IDS_A_BUCKET: Final = 16  # at the cap, on average
ORDER_BYTES: Final = 2  # a bucket's number
BUCKETS_MAX: Final = 1 << 8 * ORDER_BYTES


class Cancels:
    """Keeps at most ids_max ids. task_ids are UUIDs in their canonical spelling."""

    __slots__ = ("_buckets", "_count", "_ids_max", "_oldest", "_order")

    def __init__(self, ids_max: int) -> None:
        assert ids_max > 0, f"{ids_max} ids"
        self._ids_max = ids_max
        self._buckets: list[bytes] = []  # created with the first id: most workers never see a cancel
        self._order = bytearray()  # bucket numbers, oldest first; a ring once it is full
        self._oldest = 0  # index of the oldest in _order
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, task_id: str) -> bool:
        if not self._count:
            return False
        key = _key(task_id)
        return _holds(self._buckets[self._number(key)], key)

    def add(self, task_id: str) -> None:
        """Keep this id; beyond the cap, forget the oldest one."""
        if not self._buckets:
            self._buckets = [b""] * max(1, min(BUCKETS_MAX, self._ids_max // IDS_A_BUCKET))
        key = _key(task_id)
        number = self._number(key)
        if _holds(self._buckets[number], key):
            return
        name = number.to_bytes(ORDER_BYTES, "big")
        if self._count < self._ids_max:
            self._order += name
            self._count += 1
        else:
            at = self._oldest
            place = slice(at, at + ORDER_BYTES)
            gone = int.from_bytes(self._order[place], "big")
            self._buckets[gone] = self._buckets[gone][ID_BYTES:]
            self._order[place] = name
            self._oldest = (at + ORDER_BYTES) % len(self._order)
        self._buckets[number] += key

    def _number(self, key: bytes) -> int:
        # Python's hash of bytes is seeded, so an attacker cannot choose ids that fall into one bucket.
        return hash(key) % len(self._buckets)


def _key(task_id: str) -> bytes:
    return bytes.fromhex(task_id.replace("-", ""))


def _holds(bucket: bytes, key: bytes) -> bool:
    at = bucket.find(key)
    while at >= 0 and at % ID_BYTES:  # a match across two ids
        at = bucket.find(key, at + 1)
    return at >= 0
