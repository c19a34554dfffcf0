"""Dead letters: the original bytes as the value, why and where they came from in headers (topic `<prefix>.dead`).

Headers of streamtask begin with `streamtask-`; the record's own headers are kept too, as far as they fit. Names and
meanings are part of the format (docs/wire.md). A letter larger than the largest record that the broker accepts keeps
its headers and has an empty value: `streamtask-value: reference` says that the bytes are at topic, partition, offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamtask.codec.wire import TIME_MS_MAX, HeaderInput, Headers, readable, time_text
from streamtask.config import TopicNames
from streamtask.domain.model import DeadLetter
from streamtask.errors import DecodeError

OURS = "streamtask-"
TEXT_BYTES_MAX = 1_024  # of the text that says what is wrong
KEY_BYTES_MAX = 1_024  # of a record key that is kept; a longer key is left out
TRACEBACK_BYTES_MAX = 16_384  # the end is kept: the last lines of a traceback say most
HEADERS_BYTES_MAX = 16_384  # of the record's own headers; the rest are only counted
_SPARE = 128  # for the names of the headers that are added last
_HEADER_OVERHEAD = 10  # two varint lengths
_ORIGINAL, _REFERENCE = b"original", b"reference"


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A dead letter as the `dead` commands and the audit read it.

    partition, offset, timestamp_ms  of the letter itself
    task_id                          "" when the record named none
    reason, text                     a model.ErrorCode, and a description of what was wrong
    origin                           `high-3@12345`, the request record
    source_topic, _partition, _offset, _timestamp_ms   position of that record; None when a header is missing
    value, value_bytes               the original bytes (None when the letter only refers to them), and their length
    headers                          the record's own; headers_dropped: number of those that did not fit
    traceback                        of the failure, if letters keep it (setting `tracebacks`)
    """

    partition: int
    offset: int
    timestamp_ms: int
    task_id: str
    reason: str
    text: str
    origin: str
    source_topic: str
    source_partition: int | None
    source_offset: int | None
    source_timestamp_ms: int | None
    attempt: int | None
    worker: str
    failed_at: str
    key: bytes | None
    value: bytes | None
    value_bytes: int
    headers: Headers
    headers_dropped: int
    traceback: str | None = None


def encode_dead(
    letter: DeadLetter,
    names: TopicNames,
    *,
    value_bytes_max: int,
    worker: str,
    failed_at_ms: int,
    traceback: bool = False,
) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
    """Returns (key, value, headers) of the letter.

    value_bytes_max  bounds key, value and headers together (the broker's max.message.bytes less a margin)
    traceback        the letter keeps the traceback, because the event does not
    """
    record = letter.record
    task_id = letter.task_id or record.task_id
    short_key = record.key if record.key is not None and len(record.key) <= KEY_BYTES_MAX else None
    headers = [
        (OURS + "reason", letter.reason.encode()),
        (OURS + "text", _clip(letter.text, TEXT_BYTES_MAX)),
        (OURS + "origin", letter.origin.encode()),
        (OURS + "topic", names.requests[record.band].encode()),
        (OURS + "partition", b"%d" % record.partition),
        (OURS + "offset", b"%d" % record.offset),
        (OURS + "timestamp", b"%d" % record.timestamp_ms),
        (OURS + "worker", _clip(worker, 255)),
        (OURS + "failed-at", time_text(min(max(failed_at_ms, 0), TIME_MS_MAX)).encode()),
        (OURS + "value-bytes", b"%d" % len(record.value)),
    ]
    if task_id:
        headers.append((OURS + "task-id", task_id.encode()))
    if letter.attempt is not None:
        headers.append((OURS + "attempt", b"%d" % letter.attempt))
    key = task_id.encode() if task_id else short_key
    if short_key is not None and short_key != key:
        headers.append((OURS + "key", short_key))
    own, dropped = _own_headers(record.headers, min(HEADERS_BYTES_MAX, value_bytes_max // 4))
    if dropped:
        headers.append((OURS + "headers-dropped", b"%d" % dropped))
    if traceback and letter.traceback is not None:
        free = value_bytes_max - len(key or b"") - _size(headers) - _size(own) - _SPARE
        end = readable(letter.traceback).encode()[-max(min(TRACEBACK_BYTES_MAX, free // 4), 1) :]
        headers.append((OURS + "traceback", end.decode("utf-8", "ignore").encode()))
    room = value_bytes_max - len(key or b"") - _size(headers) - _size(own) - len(OURS) - 32
    fits = not letter.reference and len(record.value) <= room
    headers.append((OURS + "value", _ORIGINAL if fits else _REFERENCE))
    return key, record.value if fits else b"", headers + own


def _own_headers(headers: Headers, bytes_max: int) -> tuple[list[tuple[str, bytes]], int]:
    """The record's own headers that fit, in order, and the number of those that did not. Headers of an earlier dead letter
    (of a record that was produced again unchanged) are not its own."""
    kept: list[tuple[str, bytes]] = []
    used = dropped = 0
    for name, held in headers:
        if name.startswith(OURS):
            continue
        size = _size([(name, held)])
        if used + size > bytes_max:
            dropped += 1
            continue
        used += size
        kept.append((name, held))
    return kept, dropped


def _size(headers: Sequence[tuple[str, bytes]]) -> int:
    return sum(len(name.encode("utf-8", "replace")) + len(held) + _HEADER_OVERHEAD for name, held in headers)


def _clip(text: str, bytes_max: int) -> bytes:
    raw = readable(text[:bytes_max]).encode()
    return raw if len(raw) <= bytes_max else raw[:bytes_max].decode("utf-8", "ignore").encode()


def decode_dead(
    partition: int, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: HeaderInput
) -> DeadRecord:
    """A record of the dead letter topic. Raises DecodeError when streamtask did not write it (it has no reason header)."""
    ours: dict[str, bytes] = {}
    own: list[tuple[str, bytes]] = []
    for name, held in headers or ():
        if name.startswith(OURS):
            ours[name.removeprefix(OURS)] = held or b""
        else:
            own.append((name, held or b""))
    if "reason" not in ours:
        raise DecodeError(f"not a dead letter of streamtask: no header {OURS}reason")

    def text(name: str) -> str:
        return ours.get(name, b"").decode("utf-8", "replace")

    def number(name: str) -> int | None:
        digits = ours.get(name, b"")
        return int(digits) if digits.removeprefix(b"-").isdigit() and len(digits) < 20 else None

    refers = ours.get("value") == _REFERENCE
    size = number("value-bytes")
    return DeadRecord(
        partition=partition,
        offset=offset,
        timestamp_ms=timestamp_ms,
        task_id=text("task-id"),
        reason=text("reason"),
        text=text("text"),
        origin=text("origin"),
        source_topic=text("topic"),
        source_partition=number("partition"),
        source_offset=number("offset"),
        source_timestamp_ms=number("timestamp"),
        attempt=number("attempt"),
        worker=text("worker"),
        failed_at=text("failed-at"),
        key=ours.get("key", key),
        value=None if refers else (value or b""),
        value_bytes=len(value or b"") if size is None else size,
        headers=tuple(own),
        headers_dropped=number("headers-dropped") or 0,
        traceback=text("traceback") or None,
    )
