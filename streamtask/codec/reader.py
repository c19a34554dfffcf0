"""Reads what a record means, whatever its format: a Reader makes JSON of it, and leaves JSON as it is.

All three formats are understood record by record, on every topic. The Confluent wire format needs somebody who knows
the schemas; without one it is refused, naming the setting.
"""

from __future__ import annotations

from streamtask.codec.avro import read_single
from streamtask.codec.confluent import SchemaSource, read_confluent
from streamtask.codec.wire import BINARY, Format, format_of
from streamtask.errors import DecodeError


class Reader:
    """What one process can read. source: the schemas of a registry by their ids, None when there is none."""

    def __init__(self, source: SchemaSource | None = None) -> None:
        self._source = source

    def json(self, document: str, value: bytes) -> bytes:
        """The JSON text of a record that should be this document. Raises DecodeError; SchemaPending if its source does.

        document  avro.REQUEST, RESPONSE or CONTROL
        """
        if not value or value[0] not in BINARY:
            return value
        found = format_of(value)
        if found is Format.AVRO:
            return read_single(document, value)
        if found is Format.JSON:
            return value  # C3 and something else: no format begins so, and no JSON does
        if self._source is None:
            raise DecodeError("the value is in the Confluent wire format, which needs registry_url to be set")
        return read_confluent(document, value, self._source)


PLAIN = Reader()
