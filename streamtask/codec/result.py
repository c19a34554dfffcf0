"""What a handler returned → JSON text.

Accepts plain JSON values, pydantic models, dataclasses, TypedDicts, datetimes, UUIDs, enums, paths and sets: whatever
pydantic can write. Refuses, with DecodeError(code="not_serializable"), NaN and Infinity at any depth (a model
writes them as null unless configured otherwise), circular references, unknown objects, bytes or text that are not UTF-8,
and nesting that is too deep for readers of the status event.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json

from streamtask.domain.model import ErrorCode
from streamtask.errors import DecodeError

# Levels that a result may nest. Readers bound the whole document (serde_json 128, pydantic's parser 200): a status event
# adds one level, a list of them two more.
NESTING_MAX = 120
_LEVELS_READ = 200  # the most that pydantic's parser accepts


def encode_result(value: Any) -> bytes:
    """JSON text of a handler's return value; `null` for None. Raises DecodeError(code="not_serializable")."""
    try:
        text = to_json(value, inf_nan_mode="constants")
    except PydanticSerializationError as error:
        raise _refused(str(error)) from None
    except Exception as error:  # noqa: BLE001 a handler's own serializer, __str__ or generator may raise anything
        raise _refused(f"{type(error).__name__}: {error}") from None
    if b"NaN" in text or b"Infinity" in text:
        try:
            from_json(text, allow_inf_nan=False)  # the word may be inside a string
        except ValueError:
            raise _refused("NaN and Infinity are not JSON") from None
    if b"null" in text and _hides_nan(value, NESTING_MAX):
        raise _refused("NaN and Infinity are not JSON")
    if text.count(b"[") + text.count(b"{") > NESTING_MAX:
        spare = _LEVELS_READ - NESTING_MAX
        try:
            from_json(b"[" * spare + text + b"]" * spare)
        except ValueError:
            raise _refused(f"nested more than {NESTING_MAX} levels deep") from None
    return text


def _refused(text: str) -> DecodeError:
    return DecodeError(f"the value cannot be written as JSON: {text}"[:1_000], code=ErrorCode.NOT_SERIALIZABLE.value)


def _hides_nan(value: Any, levels: int) -> bool:
    """True when `value` contains a number that is not finite: models write it as null without an error."""
    if type(value) is float:
        return not math.isfinite(value)
    if levels == 0 or isinstance(value, str | bytes | int):
        return False
    if isinstance(value, BaseModel):
        return any(_hides_nan(item, levels - 1) for item in dict(value).values())
    if isinstance(value, dict):
        return any(_hides_nan(item, levels - 1) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_hides_nan(item, levels - 1) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return any(_hides_nan(getattr(value, item.name), levels - 1) for item in fields(value))
    return False
