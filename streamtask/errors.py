"""Every error streamtask raises on purpose, grouped by what the caller can do about it.

    StreamtaskError
    ├── ConfigError             wrong settings or arguments: change them (CLI: exit code 2)
    ├── ClusterError            the cluster is misconfigured: the text names the command that fixes it
    │   ├── TopicsMissing       topics do not exist
    │   ├── NotAllowed          the cluster's ACLs do not allow this client to do it
    │   └── Unreachable         no broker answered in time
    │       └── RegistryUnreachable   the schema registry did not answer in time
    ├── DecodeError             the bytes are not a valid document (the record goes to tasks.dead)
    │   └── SchemaUnavailable   the schema registry did not provide the schema of the bytes
    ├── SchemaPending           the schema is being fetched from the registry: read the record again a little later
    ├── RequestRefused          the request is invalid; nothing was sent
    ├── SubmitError             the broker did not acknowledge the request in time, or rejected it
    ├── TaskError               the task did not complete; raised where its result is awaited
    │   ├── TaskFailed          FAILED; carries error_details
    │   └── TaskCancelled       CANCELLED
    ├── WaitTimeout             the task did not end within the timeout; it continues
    ├── UnknownTask             no task with this task_id is known
    ├── LifespanError           the app's lifespan did not open; the cause is attached
    └── DevBrokerUnavailable    the local Apache Kafka cannot be started; the text names the alternatives

A handler can raise two more to control its own retries: RetryLater and GiveUp.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

from streamtask.public import public


@public
class StreamtaskError(Exception):
    """Base class of all streamtask errors."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ passes the message alone, and classes with further arguments refuse that call.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


@public
class ConfigError(StreamtaskError):
    """A setting or argument is invalid. The message names it, its value and what to do."""


@public
class ClusterError(StreamtaskError):
    """The Kafka cluster is misconfigured or cannot be used. The message says how to fix it."""


@public
class TopicsMissing(ClusterError):
    """Topics do not exist. Create them with `streamtask topics create`."""


@public
class NotAllowed(ClusterError):
    """The cluster's ACLs do not allow the operation. `streamtask topics acls ROLE` prints what a role needs."""


@public
class Unreachable(ClusterError):
    """No broker answered within the timeout."""


@public
class RegistryUnreachable(Unreachable):
    """The schema registry did not answer within the timeout, or its answer was not valid."""


@public
class DecodeError(StreamtaskError):
    """The bytes are not a valid document of their kind.

    code     `invalid_request` (see model.ErrorCode)
    fields   {path: what is wrong with it}, as far as it is known
    task_id  set when it could be read even though the document is invalid
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid_request",
        fields: dict[str, str] | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields or {}
        self.task_id = task_id


@public
class SchemaUnavailable(DecodeError):
    """The schema registry did not answer in time, so the bytes cannot be decoded. They may be valid."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="schema_unavailable")


class SchemaPending(StreamtaskError):
    """The schema of a record is being fetched. The record cannot be decoded yet; its reader continues with others.

    settled  returns True when the record is worth reading again
    """

    def __init__(self, message: str, settled: Callable[[], bool]) -> None:
        super().__init__(message)
        self.settled = settled


@public
class RequestRefused(StreamtaskError):
    """The request is invalid, and nothing was sent. `fields` has the same form as in DecodeError."""

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


@public
class SubmitError(StreamtaskError):
    """The broker did not acknowledge the request, so it may or may not be stored.

    Submitting again with the same task_id does not run the task twice while the first request is open, but it does
    once that has ended. Check first whether it arrived: `client.status(task_id)` (docs/wire.md, "Sending again").

    task_ids  the requests that were not acknowledged, as far as they are known
    """

    def __init__(self, message: str, *, task_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.task_ids = task_ids


@public
class TaskError(StreamtaskError):
    """The task ended, but did not complete.

    task_id    the task
    code       error_details.code, e.g. `handler_error`, `timeout`, `cancelled`
    details    error_details as a plain mapping; {} when there are none
    task_type  as in its last status event; None if the event does not say it
    attempt    its last attempt, 1, 2 ...; None if there was none
    text       the error in its last status event, as the handler raised it; "" if there was none
    """

    def __init__(
        self,
        message: str,
        *,
        task_id: str,
        code: str,
        details: dict[str, Any] | None = None,
        task_type: str | None = None,
        attempt: int | None = None,
        text: str = "",
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.code = code
        self.details = details or {}
        self.task_type = task_type
        self.attempt = attempt
        self.text = text


@public
class TaskFailed(TaskError):
    """The task failed."""


@public
class TaskCancelled(TaskError):
    """The task was cancelled."""


@public
class WaitTimeout(StreamtaskError):
    """The task did not end within the timeout. It continues; you can wait again."""


@public
class UnknownTask(StreamtaskError):
    """No request or status event with this task_id is known."""


@public
class LifespanError(StreamtaskError):
    """The app's lifespan could not be opened, and no task was started. The cause is attached (`__cause__`)."""


class DevBrokerUnavailable(StreamtaskError):
    """The local Apache Kafka cannot be started here."""


@public
class RetryLater(StreamtaskError):
    """Raise it in a handler to fail this attempt and run the task again after `after` seconds.

    It counts as a failed attempt, so `Retry.attempts` limits it like any other failure. Only the delay is the
    handler's choice.
    """

    def __init__(self, reason: str = "", *, after: float) -> None:
        super().__init__(reason or f"retry after {after:g} s")
        self.after = after


@public
class GiveUp(StreamtaskError):
    """Raise it in a handler to fail the task now, without using the attempts that are left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
