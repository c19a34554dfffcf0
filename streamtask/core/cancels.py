"""The newest ids that tasks.control cancels: who is among them never starts.

A worker reads tasks.control whole, so a storm of cancels stays with it for the retention of that topic. As a dict of texts
a million ids took 127 MB, and at the cap each further one some 40 µs (the oldest of a dict is looked for behind those that
were deleted before it). Here they are 16 bytes each, in buckets that are byte strings: 20 MB for a million, 1 µs each. Within
a bucket ids stand in the order in which they came, so the oldest of all is the first one of its bucket; which bucket that is
is all that the order has to keep.

Always true: each id is held once; at most `ids_max` are held, the newest; an id that comes again keeps its place.
"""

from __future__ import annotations

from typing import Final

ID_BYTES: Final = 16
IDS_A_BUCKET: Final = 16  # at the cap, about
ORDER_BYTES: Final = 2  # a bucket's number
BUCKETS_MAX: Final = 1 << 8 * ORDER_BYTES


class Cancels:
    """ids_max: how many are kept. task_ids are UUIDs in their one spelling."""

    __slots__ = ("_buckets", "_count", "_ids_max", "_oldest", "_order")

    def __init__(self, ids_max: int) -> None:
        assert ids_max > 0, f"{ids_max} ids"
        self._ids_max = ids_max
        self._buckets: list[bytes] = []  # made for the first one: most workers never see a cancel
        self._order = bytearray()  # numbers of buckets, oldest first; a ring once it is full
        self._oldest = 0  # where in it the oldest stands
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, task_id: str) -> bool:
        if not self._count:
            return False
        key = _key(task_id)
        return _holds(self._buckets[self._number(key)], key)

    def add(self, task_id: str) -> None:
        """Keep it; beyond the cap the oldest one is forgotten."""
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
        # Python's hash of bytes is seeded: nobody outside can choose ids that fall into one bucket.
        return hash(key) % len(self._buckets)


def _key(task_id: str) -> bytes:
    return bytes.fromhex(task_id.replace("-", ""))


def _holds(bucket: bytes, key: bytes) -> bool:
    at = bucket.find(key)
    while at >= 0 and at % ID_BYTES:  # across two ids
        at = bucket.find(key, at + 1)
    return at >= 0
