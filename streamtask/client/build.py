"""From what a caller hands over to the record that is sent: checked, complete, encoded. Nothing is sent from here.

What stays true: every record that leaves carries its task_id (a UUID in its one spelling) and a priority that lies in
the band of its topic; its key is the ordering key, else the task_id. Whatever cannot be sent is a RequestRefused that
names each field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from streamtask import codec, tracing
from streamtask.codec.formats import Encoder
from streamtask.codec.wire import invalid
from streamtask.config import TopicNames
from streamtask.errors import DecodeError, RequestRefused
from streamtask.identity import canonical, new_task_id
from streamtask.model import PRIORITY_DEFAULT, TaskRequest
from streamtask.tracing import Sending

Headers = Mapping[str, str | bytes]

_FIELDS = frozenset(TaskRequest.model_fields)


class Prepared(NamedTuple):
    """A request record before it is sent. `band` is the index of its band; `span`: see `traced`."""

    task_id: str
    band: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]] | None
    task_type: str
    span: Sending | None = None


def from_arguments(parameters: Any, **fields: Any) -> TaskRequest:
    """The request of a submit by arguments. Raises RequestRefused naming each wrong one."""
    if isinstance(parameters, BaseModel):
        parameters = parameters.model_dump(mode="json")
    elif isinstance(parameters, Mapping) and not isinstance(parameters, dict):
        parameters = dict(parameters)
    try:
        return TaskRequest(parameters=parameters, **fields)
    except ValidationError as error:
        raise refused(invalid(error)) from None


def request_of(given: TaskRequest | Mapping[str, Any]) -> TaskRequest:
    """The request that a caller means. Raises RequestRefused: unknown fields are refused here, not ignored."""
    if isinstance(given, TaskRequest):
        return given
    if not isinstance(given, Mapping):
        raise RequestRefused(f"A request is a TaskRequest or a mapping of its fields, not {type(given).__name__}.")
    if given.keys() <= _FIELDS:
        try:
            return TaskRequest(**given)  # 2 us; the strict reader below: 6
        except ValidationError:
            pass  # a time as text, or wrong: the strict reader tells
    try:
        return codec.decode_request_strict(dict(given))
    except DecodeError as error:
        raise refused(error) from None


def prepare(
    given: TaskRequest | Mapping[str, Any],
    topics: TopicNames,
    headers: Headers | None = None,
    encoder: Encoder | None = None,
) -> Prepared:
    """Check, complete and encode one request; without an encoder as JSON. Raises RequestRefused."""
    request = request_of(given)
    task_id = request.task_id
    if task_id is not None and (task_id := canonical(task_id)) != request.task_id:
        if task_id is None:
            raise _refused("task_id", f"{str(request.task_id)[:80]!r} is no UUID")
        request = request.model_copy(update={"task_id": task_id})
    if request.ordering_key is not None and request.not_before is not None:
        raise _refused("not_before", "cannot be combined with ordering_key: the key would be held until then")
    try:
        if encoder is not None and not encoder.json:
            return _prepare_binary(request, topics, headers, encoder)
        task_id = task_id or new_task_id()
        priority = request.priority or PRIORITY_DEFAULT
        value = codec.encode_request(request, task_id, priority)
    except DecodeError as error:
        raise refused(error) from None
    key = (request.ordering_key or task_id).encode()
    return Prepared(task_id, topics.band_of(priority), key, value, _headers(headers), request.task_type)


def _prepare_binary(request: TaskRequest, topics: TopicNames, headers: Headers | None, encoder: Encoder) -> Prepared:
    """Complete and encode in another format than JSON. Raises DecodeError."""
    task_id = request.task_id or new_task_id()
    priority = PRIORITY_DEFAULT if request.priority is None else request.priority
    if task_id != request.task_id or priority != request.priority:
        request = request.model_copy(update={"task_id": task_id, "priority": priority})
    band = topics.band_of(priority)
    value = encoder.request(topics.requests[band], request)
    key = (request.ordering_key or task_id).encode()
    return Prepared(task_id, band, key, value, _headers(headers), request.task_type)


def traced(prepared: list[Prepared], topics: TopicNames, *, door: bool = False) -> list[Prepared]:
    """The same, each with its span and the context of that in its headers; as they are when there is no provider."""
    if not tracing.active():
        return prepared
    out = []
    for one in prepared:
        topic = topics.requests[one.band]
        span = tracing.sending(one.task_type, one.task_id, topic, one.headers, door=door)
        out.append(one if span is None else one._replace(span=span, headers=span.headers))
    return out


@contextmanager
def told_of_failure(prepared: list[Prepared]) -> Iterator[None]:
    """Their spans end with what this block raises; else whoever knows what became of each ends it."""
    try:
        yield
    except BaseException as error:
        for one in prepared:
            if one.span is not None:
                one.span.end(error=str(error) or type(error).__name__)
        raise


def _headers(headers: Headers | None) -> list[tuple[str, bytes]] | None:
    if not headers:
        return None
    return [(name, text.encode() if isinstance(text, str) else text) for name, text in headers.items()]


def refused(error: DecodeError) -> RequestRefused:
    """The same fault in the caller's terms: nothing was sent."""
    return RequestRefused(f"Request refused: {error}.", fields=error.fields)


def _refused(field: str, problem: str) -> RequestRefused:
    return RequestRefused(f"Request refused: {field}: {problem}.", fields={field: problem})
