"""The models as JSON Schema (2020-12), each under its name.

There are two kinds of documents. In those that streamtask receives (requests, control messages, frames for `/ws`), null is
the same as absent. In those that it sends (all others), nulls are left out unless a field says otherwise. On the topics
both are open, as in the contract: a reader ignores fields that it does not know. Bodies that are posted to the query
service are closed: unknown fields are refused (`closed`).

Types and bounds come from the fields of the models; descriptions come from the Avro schemas, the source of truth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel

from streamtask.codec import schema as avro
from streamtask.codec.avro import CONTROL, REQUEST, RESPONSE
from streamtask.codec.dead import OURS, TEXT_BYTES_MAX
from streamtask.documents.answers import Asked, CancelAsked, CancelBody, Health, LiveFrame, Problem, Stats, TaskPage
from streamtask.domain.model import (
    ERROR_TEXT_MAX,
    MESSAGE_TEXT_MAX,
    TRACEBACK_TEXT_MAX,
    ControlMessage,
    ErrorCode,
    TaskRequest,
    TaskResponse,
)

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = "1"  # of the contract: schemas/golden/v1
HERE = "#/$defs/"

_MODELS: tuple[type[BaseModel], ...] = (
    *(TaskRequest, TaskResponse, ControlMessage),
    *(TaskPage, CancelBody, CancelAsked, Health, Stats, Problem),
    *(Asked, LiveFrame),
)
_RECEIVED = frozenset({"TaskRequest", "ControlMessage", "CancelBody", "Asked"})  # in these, null is the same as absent
AVRO = {"TaskRequest": REQUEST, "TaskResponse": RESPONSE, "ControlMessage": CONTROL}
_RENAMED = {"Asked": "LiveAsk"}

_UUID = {"format": "uuid", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}
_UUID_ANY_CASE = {"format": "uuid", "pattern": _UUID["pattern"].replace("a-f", "a-fA-F")}
_TIME = {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
_CODES = sorted(code.value for code in ErrorCode)
# Constraints on strings that the models lack: lengths that the writers keep (codec/status.py), patterns, known values.
_FACETS: dict[tuple[str, str], Schema] = {
    ("TaskRequest", "task_id"): _UUID_ANY_CASE,
    ("ControlMessage", "task_id"): _UUID_ANY_CASE,
    ("TaskResponse", "task_id"): _UUID,
    ("TaskResponse", "origin"): {"pattern": "^[A-Za-z0-9_.]+-[0-9]+@[0-9]+$", "examples": ["high-3@12345"]},
    ("TaskResponse", "error"): {"maxLength": ERROR_TEXT_MAX},
    ("TaskResponse", "message"): {"maxLength": MESSAGE_TEXT_MAX},
    **{("TaskResponse", name): _TIME for name in ("created_at", "updated_at", "started_at", "finished_at")},
    ("ErrorDetails", "code"): {"examples": [code for code in _CODES if code != ErrorCode.DUPLICATE.value]},
    ("ErrorDetails", "exception"): {"maxLength": ERROR_TEXT_MAX},
    ("ErrorDetails", "traceback"): {"maxLength": TRACEBACK_TEXT_MAX},
    ("CancelAsked", "task_id"): _UUID,
    ("Problem", "task_id"): _UUID,
    ("Problem", "type"): {"pattern": "^urn:streamtask:problem:[a-z-]+$"},
}

# Descriptions for fields where JSON differs from Avro, or where a list is given in addition.
_WORDS: dict[tuple[str, str], str] = {
    ("TaskRequest", "parameters"): "The parameters of the handler.",
    ("TaskResponse", "result"): "What the handler returned.",
    ("TaskResponse", "status"): "Later releases may add values.",
}
_TEXT: Schema = {"type": "string"}
_NOT_TOGETHER: Schema = {  # not both given with values other than null
    "required": ["not_before", "ordering_key"],
    "properties": {"not_before": _TEXT, "ordering_key": _TEXT},
}

# name → (description, whether always present, further keywords); UTF-8 text, as all headers. codec/dead.py writes them.
_NUMBER = {"pattern": "^-?[0-9]+$"}
DEAD_HEADERS: dict[str, tuple[str, bool, Schema]] = {
    "reason": ("The reason: an error code, or `duplicate`.", True, {"examples": _CODES}),
    "text": (f"The error message, at most {TEXT_BYTES_MAX:,} bytes.", True, {}),
    "origin": ("The position of the request record.", True, _FACETS["TaskResponse", "origin"]),
    "topic": ("Topic of the request record.", True, {}),
    "partition": ("Partition of the request record.", True, _NUMBER),
    "offset": ("Offset of the request record.", True, _NUMBER),
    "timestamp": ("Timestamp of the request record, in milliseconds.", True, _NUMBER),
    "worker": ("The worker that wrote the dead letter.", True, {}),
    "failed-at": ("Time of the failure.", True, _TIME),
    "value-bytes": ("Length of the original bytes.", True, _NUMBER),
    "value": (
        "reference: the bytes did not fit; read them at topic, partition, offset.",
        True,
        {"enum": ["original", "reference"]},
    ),
    "task-id": ("The task_id of the request, if it has one.", False, _UUID),
    "attempt": ("The last attempt, if there was one.", False, _NUMBER),
    "key": ("The key of the request record, if it differs from the key of the dead letter.", False, {}),
    "traceback": ("Traceback of the failure, if the worker keeps it here instead of in the event.", False, {}),
    "headers-dropped": ("Number of headers of the request record that did not fit.", False, _NUMBER),
}


@cache
def _components() -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    for model in _MODELS:
        made = model.model_json_schema(ref_template=HERE + "{model}")
        for name, part in {model.__name__: made, **made.pop("$defs", {})}.items():
            found.setdefault(name, part)
    found = {_RENAMED.get(name, name): _tidy(name, part) for name, part in found.items()}
    found |= {"TaskHeaders": _request_headers(), "StatusHeaders": _trace(), "DeadLetterHeaders": _dead_headers()}
    for name, document in AVRO.items():
        _describe(found[name], avro.read(document))
    details = next(field for field in avro.read(RESPONSE)["fields"] if field["name"] == "error_details")
    _describe(found["ErrorDetails"], details["type"][1])
    for (name, field), words in _WORDS.items():
        found[name]["properties"][field]["description"] = words
    found["TaskRequest"]["not"] = _NOT_TOGETHER
    for (name, field), facets in _FACETS.items():
        held = found[name]["properties"][field]
        # In a nullable field, the facets belong to the string, not to the null.
        (held["anyOf"][0] if "anyOf" in held else held).update(facets)
    return dict(sorted(found.items()))


def components(prefix: str = HERE) -> dict[str, Schema]:
    """Every schema by its name; references between them begin with `prefix`."""
    return {name: refer(part, prefix) for name, part in _components().items()}


def needed_by(name: str) -> list[str]:
    """The other schemas that this one needs."""
    held, wanted = _components(), [name]
    needed: set[str] = set()
    while wanted:
        fresh = _referred(held[wanted.pop()]) - needed - {name}
        needed |= fresh
        wanted += fresh
    return sorted(needed)


def standalone(name: str, file: str) -> Schema:
    """One schema together with all schemas that it refers to, as a document of its own."""
    held, others = _components(), needed_by(name)
    head: Schema = {"$schema": DIALECT, "$id": f"urn:streamtask:schema:{VERSION}:{file}"}
    return copy.deepcopy(head | held[name] | ({"$defs": {other: held[other] for other in others}} if others else {}))


def closed(part: Schema) -> Schema:
    """The same schema, which refuses objects with other fields than those named."""
    shut: Schema = _walked(
        part, lambda held: held | {"additionalProperties": False} if "properties" in held and "type" in held else held
    )
    return shut


def refer(part: Schema, prefix: str) -> Schema:
    """The same schema with references that begin with `prefix`."""

    def change(held: Schema) -> Schema:
        target = held.get("$ref")
        return held | {"$ref": prefix + target.removeprefix(HERE)} if isinstance(target, str) else held

    changed: Schema = _walked(part, change)
    return changed


# --- From pydantic's schemas to ours ----------------------------------------------------------------------------------

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _tidy(name: str, part: Schema) -> Schema:
    """One model's schema, without redundant parts, in the keywords of JSON Schema."""
    nulls = name in _RECEIVED

    def change(held: Schema) -> Schema:
        # A bound that follows one of our validators comes out under pydantic's own name.
        held = {_BOUNDS.get(word, word): plain(value) for word, value in held.items()}
        if held.get("additionalProperties") is True:  # the default; not every version of pydantic writes it
            del held["additionalProperties"]
        if "$ref" in held:
            target = held["$ref"].removeprefix(HERE)
            held["$ref"] = HERE + _RENAMED.get(target, target)
        if isinstance(held.get("title"), str):
            del held["title"]
        if "default" in held and held["default"] is None:
            del held["default"]
            if not nulls:  # null values are left out
                held = _without_null(held)
        return held

    tidied: Schema = _walked(part, change)
    return {"title": _RENAMED.get(name, name)} | tidied


def plain(value: Any) -> Any:
    """60.0 as 60: the version of pydantic decides which of the two a bound is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_null(held: Schema) -> Schema:
    kept: list[Schema] = [one for one in held.get("anyOf", ()) if one != {"type": "null"}]
    rest = {word: value for word, value in held.items() if word != "anyOf"}
    if not kept:
        return held
    return kept[0] | rest if len(kept) == 1 else rest | {"anyOf": kept}


def _walked(part: Any, change: Callable[[Schema], Schema]) -> Any:
    """A copy in which `change` was applied to every schema, inner ones first. Names of properties are not keywords."""
    if isinstance(part, list):
        return [_walked(one, change) for one in part]
    if not isinstance(part, dict):
        return part
    out = {}
    for word, held in part.items():
        if word in ("properties", "patternProperties", "$defs"):
            out[word] = {name: _walked(one, change) for name, one in held.items()}
        elif word in ("example", "examples", "default", "const", "enum", "value"):
            out[word] = copy.deepcopy(held)
        else:
            out[word] = _walked(held, change)
    return change(out)


def _referred(part: Any) -> set[str]:
    found: set[str] = set()

    def look(held: Schema) -> Schema:
        if isinstance(held.get("$ref"), str):
            found.add(held["$ref"].removeprefix(HERE))
        return held

    _walked(part, look)
    return found


def _describe(part: Schema, record: Schema) -> None:
    """Copy the descriptions of an Avro schema."""
    part["description"] = record["doc"]
    for field in record["fields"]:
        part["properties"][field["name"]]["description"] = field["doc"]


# --- Headers ----------------------------------------------------------------------------------------------------------


def _headers(title: str, about: str, properties: Schema, required: Iterable[str] = ()) -> Schema:
    needed = sorted(required)
    return {
        "title": title,
        "description": f"{about} Kafka's headers are bytes; these are texts in UTF-8.",
        "type": "object",
        "properties": properties,
        **({"required": needed} if needed else {}),
    }


def _trace_properties() -> Schema:
    return {
        "traceparent": {
            "type": "string",
            "description": "W3C trace context.",
            "examples": ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        },
        "tracestate": {"type": "string", "description": "W3C trace context, what vendors add."},
    }


def _trace() -> Schema:
    return _headers("StatusHeaders", "The trace context of the request, nothing else.", _trace_properties())


def _request_headers() -> Schema:
    task_id = {"type": "string", "description": "Counts when the request has no field `task_id`."} | _UUID_ANY_CASE
    about = "What we know of them; the handler gets all."
    return _headers("TaskHeaders", about, {**_trace_properties(), "task_id": task_id})


def _dead_headers() -> Schema:
    ours: Schema = {
        OURS + name: _TEXT | {"description": about} | more for name, (about, _, more) in DEAD_HEADERS.items()
    }
    needed = [OURS + name for name, (_, always, _) in DEAD_HEADERS.items() if always]
    about = "Why it is here, and the record's own headers beside."
    return _headers("DeadLetterHeaders", about, ours, needed)
