"""Control messages: cancel requests on `<prefix>.control`, with key = task_id."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import ValidationError

from streamtask.codec.avro import CONTROL
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.wire import invalid, read_object, readable, time_spelled, time_text, wrong_fields
from streamtask.domain.identity import canonical
from streamtask.domain.model import ControlMessage, to_ms
from streamtask.errors import ClusterError, DecodeError, SchemaPending


def encode_control(message: ControlMessage) -> bytes:
    """The message as JSON, null fields left out. Its record key is the task_id."""
    document: dict[str, Any] = {"task_id": message.task_id, "action": message.action.value}
    if message.created_at is not None:
        document["created_at"] = time_text(to_ms(message.created_at))
    if message.reason is not None:
        document["reason"] = readable(message.reason)
    return orjson.dumps(document)


def decode_control(key: bytes | None, value: bytes | None, reader: Reader = PLAIN) -> ControlMessage:
    """A control message. Without `task_id` in the value, the record's key is used, as in messages written by hand.

    Raises DecodeError, also when key and value name different tasks, because the topic is compacted by key. Otherwise it
    raises only the errors of the reader's source of schemas, as RequestDecoder does.
    """
    try:
        return _read(key, value, reader)
    except (DecodeError, SchemaPending, ClusterError):
        raise
    except Exception as error:  # noqa: BLE001 every worker reads it: an unforeseen record must not end them all
        raise DecodeError(f"cannot be read: {type(error).__name__}: {error}"[:500]) from None


def _read(key: bytes | None, value: bytes | None, reader: Reader) -> ControlMessage:
    document = read_object(None if value is None else reader.json(CONTROL, value))
    held = canonical(key.decode("latin-1")) if key is not None else None
    if document.get("task_id") is None and held is not None:
        document["task_id"] = held
    if not time_spelled(document.get("created_at")):
        raise wrong_fields({"created_at": "must be an RFC 3339 time"})
    try:
        message = ControlMessage.model_validate_json(orjson.dumps(document))
    except TypeError:  # orjson reads 1,024 levels and writes 254: one such record once ended every worker of the prefix
        raise DecodeError("nested too deeply") from None
    except ValidationError as error:
        raise invalid(error) from None
    task_id = canonical(message.task_id)
    if task_id is None:
        raise wrong_fields({"task_id": "must be a UUID"})
    if key is not None and held != task_id:
        raise wrong_fields({"task_id": "differs from the record's key"}, task_id=task_id)
    return message if task_id == message.task_id else message.model_copy(update={"task_id": task_id})
