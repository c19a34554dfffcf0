"""What one process writes: requests, status events and control messages in the configured format.

The JSON writers are those of request.py, status.py and control.py. Avro is written from the same fields, by the current
schema, after a header that identifies the schema. Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from streamtask.codec import avro, confluent
from streamtask.codec.control import encode_control
from streamtask.codec.plain import plain_writer
from streamtask.codec.request import encode_request, request_datum
from streamtask.codec.status import encode_status, status_datum
from streamtask.codec.wire import Format, readable
from streamtask.domain.model import ControlMessage, StatusEvent, TaskRequest, to_ms
from streamtask.errors import DecodeError


class Encoder:
    """Writes requests, status events and control messages in one format.

    headers  {topic: the first bytes of its records}; records of other topics are written as JSON
    """

    def __init__(self, output: Format = Format.JSON, headers: Mapping[str, bytes] | None = None) -> None:
        self.output = output
        self._headers = dict(headers or {})

    @property
    def json(self) -> bool:
        """True when everything is written as JSON."""
        return not self._headers

    def status(self, topic: str, event: StatusEvent, *, locale: str, worker: str) -> bytes:
        """encode_status in this format. Never raises: what Avro cannot hold is written as JSON, which readers also know."""
        header = self._headers.get(topic)
        if header is None:
            return encode_status(event, locale=locale, worker=worker)
        datum = status_datum(event, locale=locale, worker=worker)
        try:
            return avro.write(avro.RESPONSE, datum, header)
        except Exception:  # noqa: BLE001 inside the group commit one event must not stop all the others
            return self._status_again(datum, header, event, locale=locale, worker=worker)

    def status_writer(
        self, topic: str, *, locale: str, worker: str, tracebacks: bool = True
    ) -> Callable[[StatusEvent], bytes]:
        """`status` for one process; for JSON it skips a step (three calls a task).

        tracebacks  False: events are written without them
        """
        if topic not in self._headers:
            write = plain_writer(locale=locale, worker=worker)
        else:
            write = functools.partial(self.status, topic, locale=locale, worker=worker)
        if tracebacks:
            return write
        return lambda event: write(event if event.traceback is None else replace(event, traceback=None))

    def _status_again(
        self, datum: dict[str, Any], header: bytes, event: StatusEvent, *, locale: str, worker: str
    ) -> bytes:
        """Try again with lone surrogates in its texts escaped, then as JSON."""
        try:
            return avro.write(avro.RESPONSE, _readable(datum), header)
        except Exception:  # noqa: BLE001 see above
            return encode_status(event, locale=locale, worker=worker)

    def request(self, topic: str, request: TaskRequest) -> bytes:
        """encode_request in this format. Raises DecodeError."""
        header = self._headers.get(topic)
        if header is None:
            return encode_request(request)
        datum = request_datum(request)
        try:
            return avro.write(avro.REQUEST, datum, header)
        except (UnicodeEncodeError, ValueError, TypeError) as error:  # a lone surrogate in one of the texts
            raise DecodeError(f"cannot be written as Avro: {error}") from None

    def control(self, topic: str, message: ControlMessage) -> bytes:
        """encode_control in this format."""
        header = self._headers.get(topic)
        if header is None:
            return encode_control(message)
        datum: dict[str, Any] = {"task_id": message.task_id, "action": message.action.value}
        if message.created_at is not None:
            datum["created_at"] = to_ms(message.created_at)
        if message.reason is not None:
            datum["reason"] = readable(message.reason)
        return avro.write(avro.CONTROL, datum, header)


def avro_encoder(documents: Mapping[str, str]) -> Encoder:
    """Writes Avro single-object encoding. documents: {topic: document}."""
    return Encoder(Format.AVRO, {topic: avro.single_header(document) for topic, document in documents.items()})


def confluent_encoder(ids: Mapping[str, int]) -> Encoder:
    """Writes the Confluent wire format. ids: {topic: schema id}."""
    return Encoder(Format.CONFLUENT, {topic: confluent.header(schema_id) for topic, schema_id in ids.items()})


def _readable(held: Any) -> Any:
    if isinstance(held, dict):
        return {_readable(name): _readable(part) for name, part in held.items()}
    return readable(held) if isinstance(held, str) else held
