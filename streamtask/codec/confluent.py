"""The Confluent wire format: 00, four bytes of schema id, the body. Pure: the source of schemas is passed in.

Strangers write the schemas of a registry, and a record chooses among them. So a schema is checked before it is used: it
is refused if a few bytes could grow without bound (an array whose items take no bytes, a type inside itself). After that
check no record can take more time or memory than its own length allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastavro

from streamtask.codec.avro import json_of, read_body
from streamtask.codec.wire import CONFLUENT_MAGIC, Format, format_of
from streamtask.errors import DecodeError

HEADER_BYTES = 5
NODES_MAX = 5_000  # types in a schema, each counted as often as it is used
SCHEMA_BYTES_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """A registered schema, prepared for reading. parsed: None for JSON Schema, whose bodies are JSON."""

    schema_id: int
    parsed: Any


# Returns the schema with an id. Raises DecodeError, or SchemaPending while it is being fetched.
SchemaSource = Callable[[int], WriterSchema]


def header(schema_id: int) -> bytes:
    """The first bytes of a record with this schema."""
    return CONFLUENT_MAGIC + schema_id.to_bytes(4, "big")


def read_confluent(document: str, value: bytes, source: SchemaSource) -> bytes:
    """The JSON text of a document in the wire format. Raises DecodeError, and SchemaPending from the source."""
    if len(value) < HEADER_BYTES:
        raise DecodeError("truncated: the value ends within the header of the Confluent wire format")
    found = source(int.from_bytes(value[1:HEADER_BYTES], "big"))
    if found.parsed is not None:
        return json_of(document, read_body(found.parsed, value, HEADER_BYTES))
    body = value[HEADER_BYTES:]
    if format_of(body) is not Format.JSON:
        raise DecodeError(f"schema {found.schema_id} is a JSON Schema, but the body is not JSON")
    return body


def writer_schema(schema_id: int, kind: str, text: str, *, references: bool) -> WriterSchema:
    """Prepare a registered schema. Raises DecodeError when its records cannot be read.

    kind  AVRO, JSON or PROTOBUF, as the registry says ("" means AVRO)
    """
    if kind == "JSON":
        return WriterSchema(schema_id, None)
    if kind not in ("", "AVRO"):
        raise DecodeError(f"schema {schema_id} is {kind[:20]}; only Avro and JSON Schema are supported")
    if references:
        raise DecodeError(f"schema {schema_id} refers to other subjects; only self-contained schemas are supported")
    if len(text) > SCHEMA_BYTES_MAX:
        raise DecodeError(f"schema {schema_id} has {len(text):,} characters; the limit is {SCHEMA_BYTES_MAX:,}")
    try:
        held = json.loads(text)
        look_over(held)
        parsed = fastavro.parse_schema(held)
    except DecodeError as error:
        raise DecodeError(f"schema {schema_id}: {error}") from None
    except Exception as error:  # noqa: BLE001 a stranger's schema: fastavro raises whatever its parts raise
        text = f"schema {schema_id} is no Avro schema: {type(error).__name__}: {error}"
        raise DecodeError(text[:500]) from None
    return WriterSchema(schema_id, parsed)


def look_over(held: Any) -> None:
    """Raises DecodeError unless this is a record whose size in memory is bounded by its size in bytes."""
    if not isinstance(held, dict) or held.get("type") not in ("record", "error"):
        raise DecodeError("it is not a record")
    _Look().width(held, "", ())


class _Look:
    """One walk over a schema that enters named types wherever they are used."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}
        self._nodes = 0

    def width(self, held: Any, space: str, within: tuple[str, ...]) -> int:
        """The minimum number of bytes of a value. within: names of the enclosing types."""
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise DecodeError(f"it has more than {NODES_MAX:,} types")
        if isinstance(held, list):
            return 1 + min((self.width(part, space, within) for part in held), default=0)
        kind = held.get("type") if isinstance(held, dict) else held
        if isinstance(kind, dict | list):
            return self.width(kind, space, within)
        if not isinstance(held, dict) or kind not in ("record", "error", "enum", "fixed", "array", "map"):
            return self._plain(str(kind), space, within)
        if kind == "map":
            self.width(held.get("values"), space, within)
            return 1
        if kind == "array":
            if self.width(held.get("items"), space, within) == 0:
                raise DecodeError("it has an array whose items take no bytes")
            return 1
        return self._define(held, str(kind), space, within)

    def _define(self, held: dict[str, Any], kind: str, space: str, within: tuple[str, ...]) -> int:
        name = str(held.get("name"))
        space = str(held.get("namespace") or (name.rpartition(".")[0] if "." in name else space))
        full = name if "." in name or not space else f"{space}.{name}"
        self._named[full] = (held, space)
        if kind == "enum":
            return 1
        if kind == "fixed":
            return int(held.get("size", 0))
        return self._fields(held, full, space, within)

    def _fields(self, held: dict[str, Any], full: str, space: str, within: tuple[str, ...]) -> int:
        return sum(self.width(field.get("type"), space, (*within, full)) for field in held.get("fields", ()))

    def _plain(self, name: str, space: str, within: tuple[str, ...]) -> int:
        full = f"{space}.{name}" if "." not in name and f"{space}.{name}" in self._named else name
        if full in within:
            raise DecodeError(f"the type {full} is inside itself")
        if full in self._named:
            named, own = self._named[full]
            return self._define(named, str(named.get("type")), own, within)
        return {"null": 0, "float": 4, "double": 8}.get(name, 1)
