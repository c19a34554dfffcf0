"""Avro ⇄ the same document in JSON, and Avro's single-object encoding: C3 01, the schema's fingerprint, the body.

A document has one meaning, that of its JSON: whatever is read as Avro is first converted to JSON text and then handled as
all JSON is (null and absent fields, defaults, bounds, error texts), so the formats cannot diverge. `parameters` and
`result` are JSON text inside Avro; times are milliseconds since the epoch.

The fingerprint (CRC-64-AVRO of the schema's canonical form) says which schema wrote a body; it is known for every version
in schemas/. For the Confluent format the registry says it (confluent.py). A body is read by the schema that wrote it and
its fields are taken by name, so a later field is ignored, an enum is a string, and a union of one type is that type. Pure.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple
from uuid import UUID

import fastavro
import orjson
from fastavro.schema import fingerprint, to_parsing_canonical_form

from streamtask.codec import schema
from streamtask.codec.wire import AVRO_MAGIC, TIME_MS_MAX, time_text, wrong_fields
from streamtask.domain.identity import canonical
from streamtask.domain.model import to_ms
from streamtask.errors import DecodeError

REQUEST, RESPONSE, CONTROL = "task_request", "task_response", "task_control"
HEADER_BYTES = len(AVRO_MAGIC) + 8
TIME_MS_MIN = -62_135_596_800_000  # 0001-01-01T00:00:00Z

_JSON_TEXTS = frozenset({"parameters", "result"})


class Shape(NamedTuple):
    """What is needed to read and write one document by its current schema."""

    fields: frozenset[str]
    times: frozenset[str]
    fingerprint: bytes  # 8 bytes, as in the header
    writer: Any  # parsed, without logical types: their integers are written unchanged


class Known(NamedTuple):
    """A schema that a fingerprint identifies."""

    document: str
    version: str
    parsed: Any


def fingerprint_of(text: dict[str, Any]) -> bytes:
    """The eight bytes that identify a schema in a single-object header (least significant first)."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(text), "CRC-64-AVRO"))


@cache
def shape(document: str) -> Shape:
    """The current schema of a document."""
    held = schema.read(document)
    times = {field["name"] for field in held["fields"] if "timestamp-millis" in orjson.dumps(field["type"]).decode()}
    names = frozenset(field["name"] for field in held["fields"])
    return Shape(names, frozenset(times), fingerprint_of(held), fastavro.parse_schema(_bare(held)))


@cache
def known() -> dict[bytes, Known]:
    """{fingerprint: schema} for every document in every released version and in this one."""
    found: dict[bytes, Known] = {}
    for version in schema.versions():
        for document in schema.names(version):
            held = schema.read(document, version)
            found.setdefault(fingerprint_of(held), Known(document, version, fastavro.parse_schema(_bare(held))))
    for document in schema.names():
        here = shape(document)
        found.setdefault(here.fingerprint, Known(document, "next", here.writer))
    return found


def _bare(held: Any) -> Any:
    """The schema without logical types and documentation: the bytes are the same, and times stay integers."""
    if isinstance(held, dict):
        return {name: _bare(part) for name, part in held.items() if name not in ("logicalType", "doc")}
    return [_bare(part) for part in held] if isinstance(held, list) else held


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_single(document: str, value: bytes) -> bytes:
    """The JSON text of a document in single-object encoding. Raises DecodeError."""
    print_ = value[2:HEADER_BYTES]
    if len(print_) < 8:
        raise DecodeError("truncated Avro: the value ends within its header")
    held = known().get(print_)
    if held is None:
        raise DecodeError(
            f"Avro by an unknown schema: its fingerprint {print_.hex()} is none of {document}'s "
            f"(this one's is {shape(document).fingerprint.hex()}; `streamtask schemas show`)"
        )
    if held.document != document:
        raise DecodeError(f"Avro of a {held.document}; a {document} is needed")
    return json_of(document, read_body(held.parsed, value, HEADER_BYTES))


def read_body(parsed: Any, value: bytes, start: int) -> dict[str, Any]:
    """The record from `start` to the end of the value, read by the schema that wrote it. Raises DecodeError."""
    body = BytesIO(value)
    body.seek(start)
    try:
        held = fastavro.schemaless_reader(body, parsed, None)
    except EOFError:
        raise DecodeError("truncated Avro: the value ends within its body") from None
    except Exception as error:  # noqa: BLE001 garbled bytes: fastavro raises whatever its parts raise (IndexError, ...)
        raise DecodeError(f"truncated or garbled Avro: {type(error).__name__}: {error}"[:500]) from None
    if body.tell() != len(value):
        raise DecodeError(f"garbled Avro: {len(value) - body.tell()} bytes follow the document")
    if type(held) is not dict:
        raise DecodeError("the Avro value is not a record")
    return held


def json_of(document: str, held: dict[str, Any]) -> bytes:
    """A record as the JSON text of its document, without null and unknown fields. Raises DecodeError that names the fields
    which JSON cannot hold."""
    here = shape(document)
    out: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, value in held.items():
        if value is None or name not in here.fields:
            continue
        try:
            if name in _JSON_TEXTS:
                out[name] = _json_text(value)
            elif name in here.times:
                out[name] = _time(value)
            elif name == "error_details" and isinstance(value, dict):
                out[name] = {inner: _plain(part) for inner, part in value.items() if part is not None}
            else:
                out[name] = _plain(value)
        except ValueError as error:
            wrong[name] = str(error)
    if wrong:
        named = out.get("task_id")
        raise wrong_fields(wrong, task_id=canonical(named) if isinstance(named, str) else None)
    try:
        return orjson.dumps(out)
    except TypeError as error:
        raise DecodeError(f"Avro that cannot be written as JSON: {error}") from None


def _json_text(value: Any) -> Any:
    """`parameters` or `result`. A schema that streamtask did not write may hold the value itself instead of JSON text."""
    if not isinstance(value, str | bytes):
        return _plain(value)
    try:
        orjson.loads(value)  # parsed by itself: `1,"priority":10` must not add a field to the document
    except orjson.JSONDecodeError as error:
        raise ValueError(f"must be JSON text: {error}") from None
    return orjson.Fragment(value)


def _time(value: Any) -> str:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("must be a time with a UTC offset")
        value = to_ms(value)
    if type(value) is not int:
        return str(_plain(value))  # a string: the JSON reader checks it
    if not TIME_MS_MIN <= value <= TIME_MS_MAX:
        raise ValueError("must be a time between the years 1 and 9999")
    return time_text(value)


def _plain(value: Any) -> Any:
    """A value of any Avro schema as JSON. Raises ValueError."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and Infinity are not JSON")
        return value
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return value.decode()  # UnicodeDecodeError is a ValueError
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat() if value.tzinfo is not None else value.isoformat()
    if isinstance(value, UUID | Decimal | date | time):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__} cannot be written as JSON")


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(document: str, held: dict[str, Any], header: bytes) -> bytes:
    """`header` and the record, by the current schema. A missing field is null or has its default.

    Raises whatever fastavro raises for a value that does not fit; callers pass valid documents.
    """
    body = BytesIO()
    body.write(header)
    fastavro.schemaless_writer(body, shape(document).writer, held)
    return body.getvalue()


def single_header(document: str) -> bytes:
    """The first bytes of a single-object encoding of this document."""
    return AVRO_MAGIC + shape(document).fingerprint
