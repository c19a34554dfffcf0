"""Reads a record in any format: a Reader converts it to JSON and leaves JSON unchanged.

Every topic may mix all three formats. The Confluent wire format needs a source of schemas; without one, the record is
refused with an error that names the setting.
"""

from __future__ import annotations

from streamtask.codec.avro import read_single
from streamtask.codec.confluent import SchemaSource, read_confluent
from streamtask.codec.wire import BINARY, Format, format_of
from streamtask.errors import DecodeError


class Reader:
    """What one process can read. source: returns a registry's schema by its id; None: there is no registry."""

    def __init__(self, source: SchemaSource | None = None) -> None:
        self._source = source

    def json(self, document: str, value: bytes) -> bytes:
        """The JSON text of a record that should be this document. Raises DecodeError, and SchemaPending from its source.

        document  avro.REQUEST, RESPONSE or CONTROL
        """
        if not value or value[0] not in BINARY:
            return value
        found = format_of(value)
        if found is Format.AVRO:
            return read_single(document, value)
        if found is Format.JSON:
            return value  # C3 and another byte: no format begins like this, and no JSON does
        if self._source is None:
            raise DecodeError("the value is in the Confluent wire format, which needs registry_url to be set")
        return read_confluent(document, value, self._source)


PLAIN = Reader()
