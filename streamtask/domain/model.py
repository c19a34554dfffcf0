"""The models of the contract: requests, status events, control messages, and the values that modules exchange.

Wire models (pydantic): TaskRequest, TaskResponse, ErrorDetails, ControlMessage. Null fields are left out when written; absent
and null mean the same when read; unknown fields are ignored here and rejected at the entry points (`unknown_fields`). Times
are RFC 3339 in UTC with milliseconds on the wire, and integer milliseconds since the epoch inside (`…_ms`).

Inner values (slotted, cheap): RequestRecord, StatusEvent, DeadLetter, Outcome. They hold no Kafka object. Those that are made
several times a task are structs of msgspec, which are made in a third of the time (0.07 µs instead of 0.3), and which the
collector need not look at, because they refer to nothing that refers to them.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Annotated, Any

from msgspec import Struct
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
)

from streamtask.public import public

PRIORITY_MIN, PRIORITY_MAX, PRIORITY_DEFAULT = 1, 10, 5
TASK_TYPE_MAX = 255
LABELS_MAX = 64
LABEL_TEXT_MAX = 1_024
MESSAGE_TEXT_MAX = 1_000  # characters of a message; longer ones are truncated
ERROR_TEXT_MAX = 4_000  # characters of an error text or exception name
TRACEBACK_TEXT_MAX = 16_000  # characters of a traceback; its end is kept


@public
class TaskStatus(StrEnum):
    """Upper case in code, lower case on the wire."""

    CREATED = "created"  #: the broker has the request
    RUNNING = "running"  #: an attempt was started (or waits for its next one)
    COMPLETED = "completed"  #: the handler returned
    FAILED = "failed"  #: no attempt is left, or the request could not run
    CANCELLED = "cancelled"  #: by a cancel request, or expired before its start


class ErrorCode(StrEnum):
    """`error_details.code` of a task that is FAILED or CANCELLED, and the reason of a dead letter."""

    HANDLER_ERROR = "handler_error"
    TIMEOUT = "timeout"
    INVALID_REQUEST = "invalid_request"
    INVALID_PARAMETERS = "invalid_parameters"
    UNKNOWN_TASK_TYPE = "unknown_task_type"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    WORKER_LOST = "worker_lost"
    RESULT_TOO_LARGE = "result_too_large"
    NOT_SERIALIZABLE = "not_serializable"
    SCHEMA_UNAVAILABLE = "schema_unavailable"  #: the registry did not provide the schema; the bytes may be valid
    DUPLICATE = "duplicate"  #: dead letters only: the task_id was still open in its shard


class HandlerKind(StrEnum):
    """How a handler runs. Each kind has its own slots."""

    ASYNC = "async"  #: a coroutine on the event loop
    THREAD = "thread"  #: a synchronous function in a thread of the pool
    PROCESS = "process"  #: a function in a killable child process


def _whole_number(value: Any) -> Any:
    """Accept 5.0 as 5; reject "5", true and 5.5."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise ValueError("must be a whole number")


def _number(value: Any) -> Any:
    if type(value) is float or type(value) is int:
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValueError("must be a finite number")


def rfc3339(when: datetime) -> str:
    """For example `2026-11-24T07:26:00.123Z`."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_ms(when: datetime) -> int:
    """Milliseconds since the epoch, rounded down (exact: no float is used)."""
    delta = when - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000 + delta.microseconds // 1_000


def from_ms(ms: int) -> datetime:
    """An aware datetime in UTC."""
    seconds, rest = divmod(ms, 1_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1_000)


def now_ms() -> int:
    """Wall clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Timestamp = Annotated[AwareDatetime, Strict(), PlainSerializer(rfc3339, return_type=str, when_used="json-unless-none")]
Priority = Annotated[int, BeforeValidator(_whole_number), Field(ge=PRIORITY_MIN, le=PRIORITY_MAX)]
Attempt = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Text = Annotated[str, Strict()]
TaskType = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=TASK_TYPE_MAX)]
LabelText = Annotated[str, Strict(), StringConstraints(max_length=LABEL_TEXT_MAX)]
Labels = Annotated[dict[LabelText, LabelText], Field(max_length=LABELS_MAX)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="null")

    def to_json(self) -> str:
        """The document as it goes on the wire: null fields left out."""
        return self.model_dump_json(exclude_none=True)


@public
class TaskRequest(_Document):
    """A request to run a task (topics `<prefix>.requests.<band>`)."""

    task_type: TaskType
    description: Text = ""
    parameters: dict[str, Any] | None = None
    priority: Priority | None = None  #: None: the middle of the band it arrives in (client and HTTP: 5)
    timeout_seconds: Seconds | None = None  #: per attempt, from the handler's start
    task_id: Text | None = None  #: UUID; any other string sends the record to tasks.dead
    created_at: Timestamp | None = None
    expires_at: Timestamp | None = None  #: do not start after this time (CANCELLED, `expired`)
    not_before: Timestamp | None = None
    ordering_key: Annotated[str, Strict(), StringConstraints(min_length=1, max_length=1_024)] | None = None
    tenant: Annotated[str, Strict(), StringConstraints(max_length=255)] | None = None
    idempotency_key: Annotated[str, Strict(), StringConstraints(max_length=1_024)] | None = None
    labels: Labels | None = None


@public
class ErrorDetails(_Document):
    """Why a task is FAILED or CANCELLED."""

    code: Text
    exception: Text | None = None
    traceback: Text | None = None
    attempt: Attempt | None = None


@public
class TaskResponse(_Document):
    """A status event of a task (topic `<prefix>.status`), and the answer of the query service."""

    task_id: Text
    status: TaskStatus
    progress: Fraction | None = None
    result: Any = None
    error: Text | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None
    message: Text | None = None
    task_type: Text | None = None
    priority: Priority | None = None
    attempt: Attempt | None = None
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    worker: Text | None = None
    error_details: ErrorDetails | None = None
    labels: dict[str, str] | None = None
    origin: Text | None = None

    @property
    def ended(self) -> bool:
        """True for COMPLETED, FAILED and CANCELLED."""
        return self.status in ENDED


class ControlAction(StrEnum):
    CANCEL = "cancel"


class ControlMessage(_Document):
    """A control message for a task, such as a cancel request (topic `<prefix>.control`, key = task_id)."""

    task_id: Text
    action: ControlAction
    created_at: Timestamp | None = None
    reason: Annotated[str, Strict(), StringConstraints(max_length=MESSAGE_TEXT_MAX)] | None = None


ENDED = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})

MESSAGES: dict[str, dict[str, str]] = {
    "en": {"created": "Task created", "other": "Task status: {status}"},
    "zh": {"created": "任务已创建", "other": "任务状态: {status}"},
}
LOCALES = tuple(MESSAGES)


def message_of(status: TaskStatus, locale: str) -> str:
    """The default message of a status event."""
    table = MESSAGES[locale]
    return table["created"] if status is TaskStatus.CREATED else table["other"].format(status=status.value)


def unknown_fields(model: type[BaseModel], names: Iterable[str]) -> dict[str, str]:
    """{unknown name: advice with the nearest known name}; {} if all are known."""
    known = list(model.model_fields)
    out = {}
    for name in names:
        if name not in model.model_fields:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            out[name] = f"unknown field; did you mean {near[0]!r}?" if near else "unknown field"
    return out


# --- Inner values -----------------------------------------------------------------------------------------------------


class RequestRecord(Struct, gc=False):
    """A request record as the worker sees it: its position, its bytes, and what the codec made of them.

    band, partition, offset  its position; `band` is the index of the band, 0 = lead
    timestamp_ms             the record's own timestamp
    task_id                  canonical; "" if it has no usable one (then `request` is None)
    request                  None if it could not be decoded; then `problem` says why
    problem                  (code, text) for tasks.dead, or None
    priority                 the one in its events (the request's own, otherwise the band's middle)
    created_ms, expires_ms, not_before_ms   resolved by the codec; None = not given
    headers                  as received; traceparent and tracestate pass through
    value                    the bytes of the record, for its dead letter
    text                     the request as JSON if its `parameters` and `description` were dropped from `request` while it
                             waits (codec.reopened reads them again); None: `request` is complete
    weight, opened           bytes that it holds here, and bytes that its parameters take while it runs (core/memory.py);
                             0: not computed yet
    """

    band: int
    partition: int
    offset: int
    timestamp_ms: int
    task_id: str
    request: TaskRequest | None
    priority: int
    created_ms: int
    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    problem: tuple[str, str] | None = None
    expires_ms: int | None = None
    not_before_ms: int | None = None
    text: bytes | None = None
    weight: int = 0
    opened: int = 0


class StatusEvent(Struct, gc=False):
    """One status event before it is encoded. `result` is JSON text in bytes; `message` None means the default one.

    partition is the shard: a status event keeps the partition number of its request.
    """

    task_id: str
    partition: int
    status: TaskStatus
    created_ms: int
    updated_ms: int
    origin: str
    task_type: str | None = None
    priority: int | None = None
    attempt: int | None = None
    progress: float | None = None
    result: bytes | None = None
    error: str | None = None
    error_code: str | None = None
    exception: str | None = None
    traceback: str | None = None
    message: str | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    labels: dict[str, str] | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class DeadLetter:
    """A record for tasks.dead: the original bytes, the reason, and where they came from.

    task_id is the key if there is one, otherwise the record's own key (which may be None: `delete` topics accept that).
    """

    record: RequestRecord
    reason: str
    text: str
    origin: str
    task_id: str = ""
    attempt: int | None = None
    reference: bool = False  #: the bytes are left out because the broker rejected them
    traceback: str | None = None  #: of the failure, if it is kept here and not in the event


class Ending(Enum):
    """How one execution of a handler ended."""

    RETURNED = "returned"
    RAISED = "raised"
    STOPPED = "stopped"  #: it was stopped (Stop effect)
    INVALID = "invalid"  #: its parameters do not match; the handler was not called
    LOST = "lost"  #: its child process died without having been stopped


@dataclass(slots=True)
class Outcome:
    """The outcome of one execution, as the executor reports it.

    result     JSON text of the returned value (RETURNED only)
    code       error code of a failure (model.ErrorCode)
    retryable  False: retry_on / give_up_on / GiveUp forbid another attempt
    after_ms   the delay that the handler asked for (RetryLater), otherwise None
    ran_ms     how long it occupied its thread or child; None: it shares neither with others
    begun      False: it was stopped while it waited behind others, and was never called
    beside     how many others ran in the process that died (LOST only); 0: the death is its own
    """

    ending: Ending
    result: bytes | None = None
    code: str = ""
    error: str = ""
    exception: str | None = None
    traceback: str | None = None
    retryable: bool = True
    after_ms: int | None = None
    ran_ms: float | None = field(default=None, compare=False)
    begun: bool = True
    beside: int = 0


@dataclass(frozen=True, slots=True)
class Band:
    """A priority band: its name, its range, its middle and its share of turns (16:4:1)."""

    name: str
    priority_min: int
    priority_max: int
    weight: int

    @property
    def middle(self) -> int:
        """The priority of a request without one: 9, 5, 2."""
        return (self.priority_min + self.priority_max) // 2


BANDS = (Band("high", 8, 10, 16), Band("normal", 4, 7, 4), Band("low", 1, 3, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and after what delay, a failed attempt is repeated.

    attempts       executions that may fail before the task is FAILED (1 = no retry)
    backoff_ms     the first wait; doubled for every failure, up to backoff_max_ms; the real wait is drawn
                   evenly from 0..that (full jitter)
    """

    attempts: int = 1
    backoff_ms: int = 1_000
    backoff_max_ms: int = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPolicy:
    """What the engine needs to know about a task type.

    concurrency  concurrent executions of this type on this worker; None: limited only by the slots of its kind
    lost_max     deaths of its own after which a task is FAILED `worker_lost`; 0 = never
    """

    kind: HandlerKind = HandlerKind.ASYNC
    timeout_ms: int | None = None
    timeout_max_ms: int | None = None
    retry: Retry = field(default_factory=Retry)
    concurrency: int | None = None
    lost_max: int = 3
