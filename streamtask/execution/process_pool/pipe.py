"""What travels between a worker and one of its children: frames over their own socket pairs.

Jobs and answers share one pair. Stops have the other one, `control`, so that a child finds them without reading the jobs that
wait before them. (A quarantine child has one pair, because a thread of it reads everything at once.)

A frame is a header (length of the payload, kind, token of the execution) and the payload. The worker trusts nothing: a frame
of an unknown kind, of another execution or too long is Garbage, and the child is killed. What the worker sends is pickled (the
child trusts its worker); what comes back never is.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from streamtask.codec import reopened
from streamtask.domain.model import Ending, ErrorCode, HandlerKind, Outcome, RequestRecord, TaskRequest
from streamtask.domain.ports import Start

OVERRIDES_VARIABLE = "STREAMTASK_CHILD_OVERRIDES"  # for the child: settings from the worker's command line, JSON
HEADER = struct.Struct("<IBQ")
PAYLOAD_MAX = 64 * 1024 * 1024  # of a result; no event can hold this much
EXIT_DEAF = 113  # of a child that finds its pipe closed: its worker no longer listens
LOG_MAX = 64 * 1024  # characters of one field of a log line

JOB, STOP = 1, 2  # to the child
HELLO, RETURNED, ENDED, PROGRESS, LOG, BACK, LEAVING, BEGUN = 11, 12, 13, 14, 15, 16, 17, 18  # from the child
TO_CHILD = frozenset((JOB, STOP))
FROM_CHILD = frozenset((HELLO, RETURNED, ENDED, PROGRESS, LOG, BACK, LEAVING, BEGUN))
RECEIVE_BYTES = 256 * 1024
STOPS_BYTES = 256 * HEADER.size  # a STOP is a header alone: what is read from `control` is a whole number of them
MS = struct.Struct("<f")  # before a result: how long its handler took

Frame = tuple[int, int, bytes]  # kind, token, payload


class Garbage(Exception):
    """Not a valid frame: other code has written into the pipe, or the child is corrupted."""


def frame(kind: int, token: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, token) + payload


def received(channel: socket.socket) -> Frame | None:
    """The next frame from the worker, in its child; None if the worker has closed the pipe."""
    header = _exactly(channel, HEADER.size)
    if header is None:
        return None
    length, kind, token = HEADER.unpack(header)
    payload = _exactly(channel, length) if length else b""
    return None if payload is None else (kind, token, payload)


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    try:
        data = channel.recv(count, socket.MSG_WAITALL)
        while len(data) < count:
            more = channel.recv(count - len(data))
            if not more:
                return None
            data += more
    except OSError:
        os._exit(EXIT_DEAF)  # a handler has closed a descriptor that is not its own
    return data


class Frames:
    """Converts bytes to frames of these kinds, of at most this many bytes of payload."""

    __slots__ = ("_bytes", "_kinds", "_payload_max")

    def __init__(self, kinds: frozenset[int] = FROM_CHILD, payload_max: float = PAYLOAD_MAX) -> None:
        self._bytes = bytearray()
        self._kinds = kinds
        self._payload_max = payload_max

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises Garbage."""
        buffer = self._bytes
        buffer += data
        at, end = 0, len(buffer)
        try:
            while end - at >= HEADER.size:
                length, kind, token = HEADER.unpack_from(buffer, at)
                if kind not in self._kinds or length > self._payload_max:
                    raise Garbage(f"it wrote an invalid frame into its pipe: {bytes(buffer[at : at + 32])!r}")
                stop = at + HEADER.size + length
                if stop > end:
                    break
                payload = bytes(buffer[at + HEADER.size : stop])
                at = stop
                yield kind, token, payload
        finally:
            del buffer[:at]


def stops_in(data: bytes) -> set[int]:
    """The tokens of these STOP frames."""
    return {token for _length, _kind, token in HEADER.iter_unpack(data)}


def job_of(start: Start, memory_mb: int | None, trace: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """One execution for the child.

    The record's own bytes stay here, because the request is already decoded, except for the parameters of one that waited as
    text (RequestRecord.text): the child decodes those, so they never exist as objects in the worker. trace: the context of
    its span, as headers.

    Field by field: pickle takes 3 µs for a tuple of plain values and 60 for the objects, round trip.
    """
    record = start.record
    request = record.request
    assert request is not None, f"{record.offset} was not decoded"
    ours = (start.token, start.attempt, start.timeout_ms, start.group, memory_mb, trace)
    place = (record.band, record.partition, record.offset, record.timestamp_ms, record.task_id)
    times = (record.priority, record.created_ms, record.expires_ms, record.not_before_ms, record.headers)
    text = record.text
    return pickle.dumps((*ours, place, times, text, None if text else request.__getstate__()), pickle.HIGHEST_PROTOCOL)


def read_job(payload: bytes) -> tuple[Start, int | None, Sequence[tuple[str, bytes]]]:
    """Read (start, memory_mb, trace) from the result of job_of."""
    token, attempt, timeout_ms, group, memory_mb, trace, place, times, text, state = pickle.loads(payload)
    if text is not None:
        request = reopened(text)
    else:
        request = TaskRequest.__new__(TaskRequest)
        request.__setstate__(state)
    priority, created_ms, expires_ms, not_before_ms, headers = times
    band, partition, offset, timestamp_ms, task_id = place
    record = RequestRecord(
        band, partition, offset, timestamp_ms, task_id, request, priority, created_ms, b"", None, headers
    )
    record.expires_ms, record.not_before_ms = expires_ms, not_before_ms
    return Start(token, record, attempt, HandlerKind.PROCESS, timeout_ms, group), memory_mb, trace


def fitting(outcome: Outcome) -> Outcome:
    """The outcome, or a failure in place of a result that is too large for a frame."""
    size = len(outcome.result or b"")
    if size <= PAYLOAD_MAX:
        return outcome
    text = f"the result has {size} bytes; a child can hand over {PAYLOAD_MAX}"
    return Outcome(Ending.RAISED, code=ErrorCode.RESULT_TOO_LARGE.value, error=text, retryable=False)


def said(token: int, outcome: Outcome) -> bytes:
    """The frame of an outcome."""
    if outcome.ending is Ending.RETURNED:
        return frame(RETURNED, token, MS.pack(outcome.ran_ms or 0.0) + (outcome.result or b""))
    fields = {
        "ending": outcome.ending.value,
        "code": outcome.code,
        "error": outcome.error,
        "exception": outcome.exception,
        "traceback": outcome.traceback,
        "retryable": outcome.retryable,
        "after_ms": outcome.after_ms,
        "ran_ms": outcome.ran_ms,
    }
    return frame(ENDED, token, orjson.dumps(fields))


def heard(kind: int, payload: bytes) -> Outcome:
    """The outcome in a frame. Raises Garbage."""
    try:
        if kind == RETURNED:
            outcome = Outcome(Ending.RETURNED, result=payload[MS.size :] or None, ran_ms=MS.unpack_from(payload)[0])
        else:
            fields = _json(payload, dict)
            outcome = Outcome(Ending(fields.pop("ending")), **fields)
        if outcome.ran_ms is not None and not 0 <= outcome.ran_ms < math.inf:
            raise ValueError(f"it took {outcome.ran_ms} ms")
    except (TypeError, ValueError, KeyError, struct.error) as error:
        raise Garbage(f"it sent an invalid outcome: {error}") from None
    return outcome


def progress(token: int, fraction: float, message: str | None) -> bytes:
    return frame(PROGRESS, token, orjson.dumps([fraction, message]))


def read_progress(payload: bytes) -> tuple[float, str | None]:
    """Raises Garbage."""
    fields = _json(payload, list)
    if len(fields) == 2 and isinstance(fields[0], float) and isinstance(fields[1], str | None):
        return fields[0], fields[1]
    raise Garbage(f"it sent invalid progress: {fields!r:.100}")


def log(level: str, event: str, fields: dict[str, Any]) -> bytes:
    """A line of the handler's log. Values that JSON cannot hold are written as their repr."""
    event = event[:LOG_MAX].encode("utf-8", "backslashreplace").decode()
    short = {name: value[:LOG_MAX] if isinstance(value, str) else value for name, value in fields.items()}
    try:
        payload = orjson.dumps([level, event, short], default=repr, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:  # nested too deep, not UTF-8, a number beyond 64 bits
        payload = orjson.dumps([level, event, {"fields": ascii(short)[:LOG_MAX], "problem": str(error)}])
    return frame(LOG, 0, payload if len(payload) <= PAYLOAD_MAX else orjson.dumps([level, event, {}]))


def read_log(payload: bytes) -> tuple[str, str, dict[str, Any]]:
    """Raises Garbage."""
    fields = _json(payload, list)
    if len(fields) == 3 and isinstance(fields[0], str) and isinstance(fields[1], str) and isinstance(fields[2], dict):
        return fields[0], fields[1], fields[2]
    raise Garbage(f"it sent an invalid log line: {fields!r:.100}")


def _json(payload: bytes, kind: type) -> Any:
    try:
        found = orjson.loads(payload)
    except ValueError as error:
        raise Garbage(f"it sent invalid JSON: {error}") from None
    if not isinstance(found, kind):
        raise Garbage(f"it sent {type(found).__name__} instead of {kind.__name__}")
    return found
