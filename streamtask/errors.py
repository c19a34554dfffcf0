"""Every error streamtask raises on purpose, grouped by what the caller can do about it.

    StreamtaskError
    ├── ConfigError             wrong settings or arguments: change them (CLI: exit code 2)
    ├── ClusterError            the cluster is not as needed: the text names the command that mends it
    │   ├── TopicsMissing       topics do not exist yet
    │   ├── NotAllowed          its ACLs do not let this client do it
    │   └── Unreachable         no broker answered in time
    │       └── RegistryUnreachable   nor did the schema registry
    ├── DecodeError             bytes that are no valid document (the record goes to tasks.dead)
    │   └── SchemaUnavailable   the schema registry did not say by which schema they were written
    ├── SchemaPending           the schema registry is being asked: read the record again a little later
    ├── RequestRefused          a request that cannot be sent as it is; nothing was sent
    ├── SubmitError             the broker did not take the request in time, or refused it
    ├── TaskError               how a task ended, seen by somebody who waits for it
    │   ├── TaskFailed          FAILED; carries error_details
    │   └── TaskCancelled       CANCELLED
    ├── WaitTimeout             the task has not ended in the time given; it goes on
    ├── UnknownTask             nobody knows this task_id
    ├── LifespanError           the app's lifespan did not open: its own cause is attached
    └── DevBrokerUnavailable    the local Apache Kafka cannot be had; the text names the alternatives

A handler raises two more to steer its own retries: RetryLater and GiveUp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class StreamtaskError(Exception):
    """Root of the tree."""


class ConfigError(StreamtaskError):
    """Settings or arguments that cannot work; the text names the setting, its value and what to do."""


class ClusterError(StreamtaskError):
    """The cluster lacks something that is needed."""


class TopicsMissing(ClusterError):
    """Topics do not exist; `streamtask topics create` makes them."""


class NotAllowed(ClusterError):
    """The ACLs of the cluster do not let this client do it; `streamtask topics acls ROLE` names what a role needs."""


class Unreachable(ClusterError):
    """No broker answered within the time given."""


class RegistryUnreachable(Unreachable):
    """The schema registry did not answer within the time given, or not as one."""


class DecodeError(StreamtaskError):
    """Bytes that are no valid document of their kind.

    code    `invalid_request` (see model.ErrorCode)
    fields  {path: what is wrong with it}, as far as it could be told
    task_id set when it could be read although the rest could not
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


class SchemaUnavailable(DecodeError):
    """The schema registry did not answer in time, so nobody knows what the bytes mean; they may well be valid."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="schema_unavailable")


class SchemaPending(StreamtaskError):
    """The schema of a record is being asked for. Nothing is known of the record yet; its reader goes on with others.

    settled  tells whether it is worth reading the record again
    """

    def __init__(self, message: str, settled: Callable[[], bool]) -> None:
        super().__init__(message)
        self.settled = settled


class RequestRefused(StreamtaskError):
    """A request that cannot be sent as it is. Nothing was sent. `fields` as in DecodeError."""

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


class SubmitError(StreamtaskError):
    """The broker did not acknowledge the request: it may or may not be there.

    Submitting again with the same task_id does not run it twice while the first record is open. It does once that has
    ended. Look first whether it arrived: `client.status(task_id)` (docs/wire.md, «Sending again»).

    task_ids  the requests that were not acknowledged, as far as they are known
    """

    def __init__(self, message: str, *, task_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.task_ids = task_ids


class TaskError(StreamtaskError):
    """A task that ended otherwise than COMPLETED.

    task_id  the task
    code     error_details.code, e.g. `handler_error`, `timeout`, `cancelled`
    details  the whole error_details as a plain mapping, {} when there are none
    """

    def __init__(self, message: str, *, task_id: str, code: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.code = code
        self.details = details or {}


class TaskFailed(TaskError):
    """The task is FAILED."""


class TaskCancelled(TaskError):
    """The task is CANCELLED."""


class WaitTimeout(StreamtaskError):
    """The task has not ended within the time given. It goes on; wait again."""


class UnknownTask(StreamtaskError):
    """No request and no status event with this task_id is known."""


class LifespanError(StreamtaskError):
    """The app's lifespan could not be opened; no task was taken. The cause is attached (`__cause__`)."""


class DevBrokerUnavailable(StreamtaskError):
    """The local Apache Kafka cannot be started here."""


class RetryLater(StreamtaskError):
    """Raised by a handler: end this attempt as failed and run again after `after` seconds.

    Counts as a failed attempt: `Retry.attempts` bounds it as any other failure, only the wait is the
    handler's own.
    """

    def __init__(self, reason: str = "", *, after: float) -> None:
        super().__init__(reason or f"retry after {after:g} s")
        self.after = after


class GiveUp(StreamtaskError):
    """Raised by a handler: FAILED now, whatever attempts are left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
