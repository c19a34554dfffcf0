"""Task requests: a record of a band ⇄ TaskRequest, and the identity of every request record.

There are two readers. RequestDecoder reads topics, where anyone may have written: it ignores unknown fields and raises
nothing; an invalid request gets a `RequestRecord.problem`. decode_request_strict reads requests in our own clients and
services: it refuses unknown fields and names the nearest known one.

Identity (a function of the record alone, so worker, view and audit agree): the field `task_id`, else the header, else the
record's key if it is a UUID, else an id derived from the record's position. A field or header that is not a UUID cannot
be a status key: the record has a problem and no id. A request that is invalid otherwise keeps an id only if the record
contains one; none is derived.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from streamtask.codec.avro import REQUEST
from streamtask.codec.plain_request import plain_request
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.result import NESTING_MAX, encode_result
from streamtask.codec.wire import (
    BINARY,
    TIME_MS_MAX,
    HeaderInput,
    Headers,
    header,
    invalid,
    named_task,
    read_object,
    time_spelled,
    time_text,
    wrong_fields,
)
from streamtask.config import TopicNames
from streamtask.domain.identity import canonical, derived
from streamtask.domain.model import ErrorCode, RequestRecord, TaskRequest, to_ms, unknown_fields
from streamtask.errors import ClusterError, DecodeError, SchemaPending

TASK_ID_HEADER = "task_id"
CREATED_AT_WINDOW_MS = 86_400_000  # a producer's clock is trusted if it is less than a day off
_NOT_A_UUID = "must be a UUID"
_TIMES = ("created_at", "expires_at", "not_before")
_GIVEN_MAX = 256  # combinations of fields that producers set: one or two of each service
# A small request stays decoded while it waits: decoding it again would cost a no-op task 2 us of its 28.
WHOLE_BYTES_MAX = 1_024
WHOLE_UNCOUNTED_MAX = 256  # a text this short cannot hold enough containers to matter
WHOLE_CONTAINERS_MAX = 8

# For values that orjson would write differently from pydantic, orjson raises an error.
_PLAIN_ONLY = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS

_validate_json = TaskRequest.__pydantic_validator__.validate_json


class _Raw(NamedTuple):
    """A record that could not be decoded; no header in `headers` is null."""

    band: int
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class RequestDecoder:
    """Reads the request records of one cluster. `decode` raises only errors of its reader's source of schemas: SchemaPending
    (the record cannot be read yet), or ClusterError.

    compact  every request is validated in full, then the parameters of all but tiny ones are dropped again: a worker keeps
             thousands of waiting requests, and decoded JSON takes up to 40 times its bytes (RequestRecord.text)
    """

    def __init__(self, names: TopicNames, cluster_id: str, reader: Reader = PLAIN, *, compact: bool = False) -> None:
        self._compact = compact
        self._reader = reader
        self._topics = names.requests
        self._middles = tuple(band.middle for band in names.bands)
        self._cluster_id = cluster_id

    def decode(
        self,
        band: int,
        partition: int,
        offset: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: HeaderInput,
    ) -> RequestRecord:
        """The record with its request, or with a problem `(code, text)` and `request` None. `value` stays unchanged, because
        a dead letter of the record contains it."""
        kept: Headers = tuple((name, held or b"") for name, held in headers) if headers else ()
        document: dict[str, Any] | None = None
        try:
            text = value or b""
            request = plain_request(text)
            if request is None:
                try:
                    document = read_object(value)
                except DecodeError:
                    # JSON comes first, so that it does not pay for formats whose first byte it never has.
                    if not value or value[0] not in BINARY:
                        raise
                    text = self._reader.json(REQUEST, value)
                    document = read_object(text)
                request = _checked(document, text)
                _share_given(request)
            fields = request.__dict__  # a model takes 0.05 µs to find an attribute, a dict 0.01
            task_id = _task_id(fields["task_id"], kept, key)
            if task_id is None:
                task_id = derived(self._cluster_id, self._topics[band], partition, offset, timestamp_ms)
        except DecodeError as error:
            if document is None and error.task_id is not None:
                document = {"task_id": error.task_id}
            raw = _Raw(band, partition, offset, timestamp_ms, key, value, kept)
            return self._problem(raw, document, (error.code, str(error)))
        except (SchemaPending, ClusterError):
            raise
        except Exception as error:  # noqa: BLE001 an unforeseen record must not stop a partition
            why = f"cannot be read: {type(error).__name__}: {error}"[:500]
            code = ErrorCode.INVALID_REQUEST.value
            raw = _Raw(band, partition, offset, timestamp_ms, key, value, kept)
            return self._problem(raw, document, (code, why))
        priority, created_at = fields["priority"], fields["created_at"]
        expires_at, not_before = fields["expires_at"], fields["not_before"]
        dropped = None
        if self._compact and len(text) > WHOLE_UNCOUNTED_MAX and _takes_room(text):
            # In place: only this function has the model, and copying a frozen one costs 2 us.
            fields.update(parameters=None, description="")
            dropped = text
        return RequestRecord(
            band,
            partition,
            offset,
            timestamp_ms,
            task_id,
            request,
            self._middles[band] if priority is None else priority,
            _created_ms(created_at, timestamp_ms),
            value or b"",
            key,
            kept,
            None,
            None if expires_at is None else to_ms(expires_at),
            None if not_before is None else to_ms(not_before),
            dropped,
        )

    def _problem(self, raw: _Raw, document: dict[str, Any] | None, problem: tuple[str, str]) -> RequestRecord:
        try:
            named = (_lenient(raw.value) if document is None else document).get("task_id")
            task_id = _task_id(named, raw.headers, raw.key) or ""
        except DecodeError:
            task_id = ""
        return RequestRecord(
            band=raw.band,
            partition=raw.partition,
            offset=raw.offset,
            timestamp_ms=raw.timestamp_ms,
            task_id=task_id,
            request=None,
            priority=self._middles[raw.band],
            created_ms=min(max(raw.timestamp_ms, 0), TIME_MS_MAX),
            value=raw.value or b"",
            key=raw.key,
            headers=raw.headers,
            problem=problem,
        )


def _takes_room(text: bytes) -> bool:
    return len(text) > WHOLE_BYTES_MAX or text.count(b"[") + text.count(b"{") > WHOLE_CONTAINERS_MAX


def reopened(text: bytes) -> TaskRequest:
    """The complete request of a record whose parameters were dropped (RequestRecord.text). It has been validated before, so
    only a lack of memory can make this raise. Returns a new object each time: the caller owns its parameters."""
    request = plain_request(text)
    return _validated(text) if request is None else request


def _validated(text: bytes) -> TaskRequest:
    request: TaskRequest = _validate_json(text)
    return request


_given: dict[frozenset[str], set[str]] = {}


def _share_given(request: TaskRequest) -> None:
    """Share the set of field names that pydantic keeps in each model: 730 of the 2,070 bytes that a waiting request takes.
    Requests with the same names share one set, which is safe because the model is frozen and nothing adds to it."""
    names = request.__pydantic_fields_set__
    same = _given.get(key := frozenset(names))
    if same is not None:
        object.__setattr__(request, "__pydantic_fields_set__", same)
    elif len(_given) < _GIVEN_MAX:
        _given[key] = names


def _lenient(value: bytes | None) -> dict[str, Any]:
    """The object in `value`, parsed leniently (NaN and a byte order mark are accepted); {} when there is none.

    Only used to find the task_id of a request that is refused anyway: its owner waits for a FAILED event.
    """
    try:
        document = from_json((value or b"").removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return {}
    return document if type(document) is dict else {}


def _created_ms(created_at: datetime | None, timestamp_ms: int) -> int:
    """The request's own time if it is plausible, else the record's: depends on the record alone."""
    if created_at is not None:
        created_ms = to_ms(created_at)
        if -CREATED_AT_WINDOW_MS <= created_ms - timestamp_ms <= CREATED_AT_WINDOW_MS and created_ms >= 0:
            return created_ms
    return min(max(timestamp_ms, 0), TIME_MS_MAX)


def _task_id(named: Any, headers: Headers, key: bytes | None) -> str | None:
    """The id in the record, in canonical form; None when it has none. Raises DecodeError when it is not a UUID.

    named  the value of its field task_id
    """
    if named is not None:
        task_id = canonical(named) if type(named) is str else None
        if task_id is None:
            raise wrong_fields({"task_id": _NOT_A_UUID})
        return task_id
    if headers:
        held = header(headers, TASK_ID_HEADER)
        if held:
            task_id = canonical(held.decode("latin-1"))
            if task_id is None:
                raise wrong_fields({"task_id": f"{_NOT_A_UUID} (header)"})
            return task_id
    return canonical(key.decode("latin-1")) if key is not None and len(key) == 36 else None


def _checked(document: dict[str, Any], value: bytes) -> TaskRequest:
    """The request, validated. `document` is `value` parsed."""
    try:
        request = _validated(value)
    except ValidationError as error:
        raise invalid(error) from None
    if request.created_at is not None or request.expires_at is not None or request.not_before is not None:
        wrong = {
            name: "must be an RFC 3339 time, e.g. 2026-11-24T07:26:00.123Z"
            for name in _TIMES
            if not time_spelled(document.get(name))
        }
        if request.not_before is not None and request.ordering_key is not None:
            wrong["not_before"] = "cannot be combined with ordering_key: later tasks with that key would have to wait"
        if wrong:
            raise wrong_fields(wrong)
    return request


def peek_request(value: bytes | None) -> dict[str, Any] | None:
    """A JSON request with a `task_id` field, as a plain mapping (1 µs). `task_id` is canonical and the one that `decode`
    gives the record, even if it is invalid otherwise; the rest is not validated. None: use `decode`."""
    try:
        document = read_object(value)
    except DecodeError:
        return None
    task_id = named_task(document)
    if task_id is None:
        return None
    document["task_id"] = task_id
    return document


def decode_request_strict(value: bytes | dict[str, Any]) -> TaskRequest:
    """A request passed to one of our own clients or services: JSON bytes, or a dict (times as datetime or text).

    Raises DecodeError with `fields`; for an unknown field it names the nearest known one.
    """
    unwritable: dict[str, str] = {}
    if isinstance(value, bytes):
        raw = value
    else:
        unwritable = _unwritable(value)
        raw = _as_json({name: held for name, held in value.items() if str(name) not in unwritable})
    document = read_object(raw)
    wrong = unknown_fields(TaskRequest, document) | unwritable
    task_id = document.get("task_id")
    spelled = named_task(document)
    if task_id is not None and spelled is None:
        wrong["task_id"] = _NOT_A_UUID
    try:
        request = _checked(document, raw)
    except DecodeError as error:
        raise wrong_fields({**error.fields, **wrong}) if error.fields else error from None
    if wrong:
        raise wrong_fields(wrong)
    return request if spelled == task_id else request.model_copy(update={"task_id": spelled})


def _unwritable(document: dict[str, Any]) -> dict[str, str]:
    """{field that JSON cannot hold: why}, in the order of the model's fields: NaN, lone surrogates, unknown objects.

    Both paths of the client (client/build.py) refuse such a field here, so that the error is the same.
    """
    wrong: dict[str, str] = {}
    for name in (*TaskRequest.model_fields, *(name for name in document if name not in TaskRequest.model_fields)):
        if name not in document:
            continue
        try:
            encode_result(document[name])
        except DecodeError as error:
            wrong[str(name)] = str(error)
    return wrong


def _as_json(document: dict[str, Any]) -> bytes:
    try:
        return to_json(document)
    except (PydanticSerializationError, RecursionError) as error:
        raise DecodeError(f"cannot be written as JSON: {error}") from None


def encode_request(request: TaskRequest, task_id: str | None = None, priority: int | None = None) -> bytes:
    """The request as JSON, without the fields that were not given.

    task_id, priority  replace the request's own: copying the model costs 2 us more

    Raises DecodeError when `parameters` cannot be written as JSON (NaN, an object of an unknown type).
    """
    # The model's own dict, in the order of its fields: takes half the time of model_dump.
    document = {name: held for name, held in request.__dict__.items() if held is not None}
    if task_id is not None:
        document["task_id"] = task_id
    if priority is not None:
        document["priority"] = priority
    return encode_fields(document)


def encode_fields(document: dict[str, Any]) -> bytes:
    """encode_request for fields that are validated and not None. Changes `document`. Raises DecodeError."""
    if not document.get("description", True):
        del document["description"]
    if "created_at" in document or "expires_at" in document or "not_before" in document:
        for name in _TIMES:
            if name in document:
                document[name] = time_text(to_ms(document[name]))
    try:
        # orjson (0.15 us; pydantic with its checks: 0.9) writes plain values as pydantic does, except NaN, which becomes null.
        text = orjson.dumps(document, None, _PLAIN_ONLY)
        if b"null" not in text and not _may_be_deep(text):
            return text
    except TypeError:
        pass  # another type of value, a number beyond 64 bits, or not JSON: pydantic writes it or raises
    try:
        if "parameters" not in document:
            return orjson.dumps(document)
        return orjson.dumps({**document, "parameters": orjson.Fragment(encode_result(document["parameters"]))})
    except (TypeError, DecodeError):  # NaN or an unknown object in the parameters, a lone surrogate in a text
        raise wrong_fields(_unwritable(document)) from None


def request_datum(request: TaskRequest) -> dict[str, Any]:
    """The fields of encode_request in Avro's form. Raises DecodeError."""
    datum = dict(request.__dict__)
    if request.parameters is not None:
        datum["parameters"] = _parameters(request.parameters).decode()
    for name in _TIMES:
        if datum[name] is not None:
            datum[name] = to_ms(datum[name])
    return datum


def _may_be_deep(text: bytes) -> bool:
    """Whether its values may nest more than NESTING_MAX levels; each level takes at least two characters."""
    return len(text) > 2 * NESTING_MAX and text.count(b"[") + text.count(b"{") > NESTING_MAX


def _parameters(parameters: dict[str, Any]) -> bytes:
    try:
        return encode_result(parameters)
    except DecodeError as error:
        raise wrong_fields({"parameters": str(error)}) from None
