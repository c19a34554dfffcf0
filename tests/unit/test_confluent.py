"""Records by schemas of other people: read by name and meaning, and no schema that lets a few bytes grow without bound."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import BytesIO
from typing import Any
from uuid import UUID

import fastavro
import pytest

from streamtask.codec import RequestDecoder, decode_control, decode_status
from streamtask.codec.confluent import WriterSchema, header, writer_schema
from streamtask.codec.reader import Reader
from streamtask.config import TopicNames
from streamtask.domain.model import RequestRecord, TaskRequest, TaskStatus
from streamtask.errors import DecodeError

ONE = "0192f0c1-2b3c-7d4e-8f50-112233445566"
NOW_MS = 1_795_505_160_123


def _record(schema: Any, datum: Any, *, kind: str = "AVRO") -> tuple[bytes, Reader]:
    known = writer_schema(7, kind, json.dumps(schema), references=False)

    def source(schema_id: int) -> WriterSchema:
        if schema_id != 7:
            raise DecodeError(f"knows no schema {schema_id}")
        return known

    body = BytesIO()
    if kind == "AVRO":
        fastavro.schemaless_writer(body, fastavro.parse_schema(schema), datum)
    else:
        body.write(datum)
    return header(7) + body.getvalue(), Reader(source)


def _decode(value: bytes, reader: Reader) -> RequestRecord:
    return RequestDecoder(TopicNames(), "cluster", reader).decode(0, 3, 1, NOW_MS, None, value, None)


def _foreign(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Order",
        "namespace": "com.acme",
        "fields": [{"name": name, "type": kind} for name, kind in fields],
    }


def test_a_record_by_somebody_elses_schema_is_read_by_the_names_of_its_fields() -> None:
    schema = _foreign(
        ("task_type", {"type": "enum", "name": "Kind", "symbols": ["CENSUS", "OTHER"]}),
        ("task_id", {"type": "string", "logicalType": "uuid"}),
        ("priority", "long"),
        ("timeout_seconds", "int"),
        ("created_at", {"type": "long", "logicalType": "timestamp-micros"}),
        ("expires_at", "long"),
        ("parameters", {"type": "map", "values": ["null", "int", "string"]}),
        ("labels", {"type": "map", "values": "string"}),
        ("tenant", "bytes"),
        ("invoice", {"type": "record", "name": "Invoice", "fields": [{"name": "total", "type": "double"}]}),
    )
    when = datetime(2026, 11, 24, 7, 26, 0, 123_000, UTC)
    datum = {
        "task_type": "CENSUS",
        "task_id": UUID(ONE),
        "priority": 8,
        "timeout_seconds": 300,
        "created_at": when,
        "expires_at": NOW_MS + 1,
        "parameters": {"n": 1, "path": "a.py", "nothing": None},
        "labels": {"team": "x"},
        "tenant": "名".encode(),
        "invoice": {"total": 1.0},
    }
    record = _decode(*_record(schema, datum))
    assert record.problem is None, record.problem
    assert record.request == TaskRequest(
        task_type="CENSUS",
        task_id=ONE,
        priority=8,
        timeout_seconds=300,
        created_at=when,
        expires_at=datetime(2026, 11, 24, 7, 26, 0, 124_000, UTC),
        parameters={"n": 1, "path": "a.py", "nothing": None},
        labels={"team": "x"},
        tenant="名",
    )


@pytest.mark.parametrize(
    ("field", "kind", "value", "word"),
    [
        ("tenant", "bytes", b"\xff", "tenant"),
        ("parameters", {"type": "map", "values": "double"}, {"n": float("nan")}, "NaN"),
        ("created_at", {"type": "long", "logicalType": "local-timestamp-millis"}, datetime(2026, 1, 1), "offset"),
        ("created_at", "string", "yesterday", "created_at"),
        ("priority", "string", "5", "priority"),
    ],
)
def test_what_has_no_place_in_the_document_is_named(field: str, kind: Any, value: Any, word: str) -> None:
    record = _decode(*_record(_foreign(("task_type", "string"), (field, kind)), {"task_type": "x", field: value}))
    assert record.problem is not None
    assert word in record.problem[1]


def test_a_status_event_and_a_cancel_in_the_wire_format_are_read() -> None:
    value, reader = _record(
        _foreign(("task_id", "string"), ("status", "string")), {"task_id": ONE, "status": "running"}
    )
    assert decode_status(value, reader).status is TaskStatus.RUNNING
    value, reader = _record(_foreign(("action", "string")), {"action": "cancel"})
    assert decode_control(ONE.encode(), value, reader).task_id == ONE


def test_a_record_by_a_json_schema_is_its_body() -> None:
    assert _decode(*_record({}, b'{"task_type": "x"}', kind="JSON")).request == TaskRequest(task_type="x")
    for body in (b"", b"{", b"\xc3\x01" + b"\x00" * 9, b"\x00\x00\x00\x00\x07"):
        assert _decode(*_record({}, body, kind="JSON")).problem is not None


@pytest.mark.parametrize("value", [b"\x00", b"\x00\x00\x00\x00", header(7), header(8) + b"\x02x", header(2**32 - 1)])
def test_a_truncated_record_or_an_unknown_id_is_a_problem(value: bytes) -> None:
    _, reader = _record(_foreign(("task_type", "string")), {"task_type": "x"})
    assert _decode(value, reader).problem is not None


NULLS = {"type": "array", "items": "null"}
EMPTY = {"type": "record", "name": "Empty", "fields": []}
LIST = {
    "type": "record",
    "name": "List",
    "fields": [{"name": "next", "type": ["null", "List"]}],
}


def _doubling(levels: int) -> dict[str, Any]:
    """A few lines of schema that stand for 2 ** levels fields."""
    held: Any = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": "null"}]}
    for level in range(1, levels):
        fields = [{"name": "a", "type": held}, {"name": "b", "type": f"R{level - 1}"}]
        held = {"type": "record", "name": f"R{level}", "fields": fields}
    return dict(held)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        (_foreign(("a", NULLS)), "take no bytes"),
        (_foreign(("a", {"type": "array", "items": EMPTY})), "take no bytes"),
        (_foreign(("a", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}})), "take no bytes"),
        (LIST, "inside itself"),
        (_foreign(("a", {"type": "array", "items": "com.acme.Order"})), "inside itself"),
        (_doubling(20), "more than 5,000 types"),
        ("string", "not a record"),
        (["null", "string"], "not a record"),
        (_foreign(("a", "nonsense")), "no Avro schema"),
        ({"type": "record"}, "no Avro schema"),
    ],
)
def test_a_schema_that_cannot_be_read_by_in_bounds_is_refused(schema: Any, word: str) -> None:
    with pytest.raises(DecodeError, match=word):
        writer_schema(7, "AVRO", json.dumps(schema), references=False)


@pytest.mark.parametrize(
    ("kind", "text", "references", "word"),
    [
        ("PROTOBUF", "syntax", False, "PROTOBUF"),
        ("AVRO", '"string"', True, "other subjects"),
        ("AVRO", "{", False, "no Avro schema"),
        ("AVRO", "[" * 100_000, False, "no Avro schema"),
        ("AVRO", " " * 1_000_001, False, "the limit is"),
    ],
)
def test_a_schema_of_another_kind_is_refused_with_its_id(kind: str, text: str, references: bool, word: str) -> None:
    with pytest.raises(DecodeError, match=f"schema 7.*{word}"):
        writer_schema(7, kind, text, references=references)


def test_named_types_may_be_used_again_in_another_place() -> None:
    point = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "int"}]}
    schema = _foreign(("task_type", "string"), ("a", point), ("b", "Point"), ("c", ["null", "com.acme.Point"]))
    datum = {"task_type": "x", "a": {"x": 1}, "b": {"x": 2}, "c": None}
    assert _decode(*_record(schema, datum)).request == TaskRequest(task_type="x")
