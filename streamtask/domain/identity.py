"""Identifies a task: its id, and the request record that its history belongs to.

Three format decisions outlive every release (docs/decisions/0003): the namespace below, the order of the five parts of a
derived id, and the text of an origin. Worker, view and audit call these functions, so they cannot differ.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable
from typing import NamedTuple

# Never change this: every derived task_id of every cluster depends on it.
DERIVED_NAMESPACE = uuid.UUID("6f1d5c1e-6d0e-5b8a-9a51-73747265616d")
# Never change this either: an interrupted redrive uses it to find what it has already done.
REDRIVE_NAMESPACE = uuid.UUID("6f1d5c1e-6d0e-5b8a-9a51-726564726976")

_TAILS = 256  # tails generated at once
_TAIL = "7...-....-............ "  # what follows the time, and a space
_BLANK = _TAIL.encode() * _TAILS
_PLACES = tuple(place for place, letter in enumerate(_TAIL) if letter not in "- ")  # positions of its 20 digits
_VERSION = bytes(byte & 0x0F | 0x70 for byte in range(256))  # maps the first of the 10 random bytes
_VARIANT = bytes(byte & 0x3F | 0x80 for byte in range(256))  # maps the third

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-|\Z)")
_ORIGIN = re.compile(r"([A-Za-z0-9_.]+)-(\d{1,10})@(\d{1,19})\Z")


def canonical(text: str) -> str | None:
    """The task_id in its canonical spelling (lower case, hyphens), or None if `text` is not a UUID."""
    if _UUID.match(text):
        return text
    lowered = text.lower()
    if _UUID.match(lowered):
        return lowered
    return None


def derived(cluster_id: str, topic: str, partition: int, offset: int, timestamp_ms: int) -> str:
    """The task_id of a request record without one: the UUIDv5 of `cluster id/topic/partition/offset/timestamp`."""
    return str(uuid.uuid5(DERIVED_NAMESPACE, f"{cluster_id}/{topic}/{partition}/{offset}/{timestamp_ms}"))


def redriven(topic: str, partition: int, offset: int, timestamp_ms: int) -> str:
    """The task_id of the task that redrives a dead letter: UUIDv5 of `topic/partition/offset/timestamp` of the letter."""
    return str(uuid.uuid5(REDRIVE_NAMESPACE, f"{topic}/{partition}/{offset}/{timestamp_ms}"))


def new_task_id() -> str:
    """A new UUIDv7: 48 bits of milliseconds, then 74 random bits. It sorts by time of creation."""
    global _moment
    try:
        tail = _tails.pop()
    except IndexError:
        tail = _refill()
    now_ms = time.time_ns() // 1_000_000
    known_ms, head = _moment  # read once: another thread may replace it with a later one
    if now_ms != known_ms:
        text = f"{now_ms:012x}"
        head = f"{text[:8]}-{text[8:]}-"
        _moment = now_ms, head
    return head + tail


_moment = (-1, "")  # the last millisecond, and the start of every id of it


# Random parts of the next ids, from the system's generator. To draw them one by one would be half of the cost of an id.
_tails: list[str] = []  # each is popped once, by any thread
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tails.clear)  # a forked process must not use the same tails


def _refill() -> str:
    """Generate _TAILS more, and return one of them.

    Column by column each takes 0.1 us; by slices of each text 0.33 us.
    """
    drawn = bytearray(os.urandom(10 * _TAILS))
    drawn[0::10] = drawn[0::10].translate(_VERSION)
    drawn[2::10] = drawn[2::10].translate(_VARIANT)
    digits, made = drawn.hex().encode(), bytearray(_BLANK)
    for column, place in enumerate(_PLACES):
        made[place :: len(_TAIL)] = digits[column::20]
    texts = made.decode().split()
    tail = texts.pop()
    _tails.extend(texts)
    return tail


TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context: of a request, copied to its status events


def trace_id(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The trace id in a request's W3C `traceparent` header: 32 hex digits, not all zero. None if there is none."""
    for name, value in headers:
        if name == "traceparent" and (found := _TRACEPARENT.match(value)) is not None:
            return found[1].decode()
    return None


def origin_text(band: str, partition: int, offset: int) -> str:
    """The text of an Origin."""
    return f"{band}-{partition}@{offset}"


class Origin(NamedTuple):
    """A request record: band name, partition, offset. Written `high-3@12345`."""

    band: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return origin_text(*self)

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Parse an origin. None if `text` is not one."""
        found = _ORIGIN.match(text)
        return cls(found[1], int(found[2]), int(found[3])) if found else None
