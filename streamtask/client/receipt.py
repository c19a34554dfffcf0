"""The receipt of a request that the broker has stored: its position, and what you can do with the task.

Receipt is asynchronous; SyncReceipt (client/blocking.py) is the same for synchronous code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from streamtask.client.tracking import Track
from streamtask.domain.identity import Origin
from streamtask.domain.model import ErrorCode, TaskResponse, TaskStatus
from streamtask.errors import TaskCancelled, TaskFailed
from streamtask.public import public


class ReceiptClient(Protocol):
    """The methods of its client that a receipt uses."""

    async def wait(self, task_id: Receipt, timeout: float | None = None, /) -> TaskResponse: ...

    async def status(self, task_id: Receipt, /) -> TaskResponse: ...

    def events(self, task_id: Receipt, /) -> AsyncIterator[TaskResponse]: ...

    async def cancel(self, task_id: str, reason: str | None = None) -> None: ...


class Watch(Protocol):
    """The part of the client that follows the status topic (client.watching.StatusWatch)."""

    async def follow(self, task_id: str, since: dict[int, int] | None) -> Track: ...


@public
class Receipt:
    """A request record acknowledged by all in-sync replicas.

    task_id    canonical UUID text
    band       name of the band: high, normal, low
    partition  of the request topic; the task's status events have the same partition number in the status topic
    offset     of the request record
    """

    __slots__ = ("__weakref__", "_client", "_since", "_track", "band", "offset", "partition", "task_id")

    def __init__(
        self,
        client: ReceiptClient,
        task_id: str,
        band: str,
        partition: int,
        offset: int,
        *,
        track: Track | None = None,
        since: dict[int, int] | None = None,
    ) -> None:
        self.task_id = task_id
        self.band = band
        self.partition = partition
        self.offset = offset
        self._client = client
        self._track = track  # this receipt keeps the track alive, so that events before the first wait are not lost
        self._since = since  # the end of the status topic before the request was sent, when no tail was running

    def __repr__(self) -> str:
        return f"Receipt(task_id={self.task_id!r}, origin={self.origin!r})"

    @property
    def origin(self) -> str:
        """`high-3@12345`: the position of the request record, as in its status events."""
        return str(Origin(self.band, self.partition, self.offset))

    async def wait(self, timeout: float | None = None) -> TaskResponse:
        """Wait for the terminal event, whatever its status. timeout: seconds. Raises WaitTimeout."""
        return await self._client.wait(self, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """What the handler returned. Raises TaskFailed, TaskCancelled, WaitTimeout."""
        return result_of(await self.wait(timeout))

    async def status(self) -> TaskResponse:
        """The latest status."""
        return await self._client.status(self)

    def events(self) -> AsyncIterator[TaskResponse]:
        """Status events until the terminal one."""
        return self._client.events(self)

    async def cancel(self, reason: str | None = None) -> None:
        """Request its cancellation; returns when the broker has acknowledged the request, not when the task has ended."""
        await self._client.cancel(self.task_id, reason)

    async def followed(self, watch: Watch) -> Track:
        """For its client: the track of this task; a scan of the past adds events that the tail may have missed."""
        track = self._track
        if track is None or track.gap or track.left_behind:
            track = self._track = await watch.follow(self.task_id, self._since)
        return track

    def to_dict(self) -> dict[str, Any]:
        """The receipt as plain values."""
        return {"task_id": self.task_id, "band": self.band, "partition": self.partition, "offset": self.offset}


def result_of(task: TaskResponse) -> Any:
    """The result of a task that has ended. Raises TaskFailed, TaskCancelled."""
    assert task.ended, f"{task.task_id} is {task.status.value}: it has no result yet"
    if task.status is TaskStatus.COMPLETED:
        return task.result
    details = task.error_details.model_dump(mode="json", exclude_none=True) if task.error_details is not None else {}
    failed = task.status is TaskStatus.FAILED
    code = details.get("code", (ErrorCode.HANDLER_ERROR if failed else ErrorCode.CANCELLED).value)
    kind, what = (TaskFailed, "failed") if failed else (TaskCancelled, "was cancelled")
    raise kind(
        _sentence(task, what, code),
        task_id=task.task_id,
        code=code,
        details=details,
        task_type=task.task_type,
        attempt=task.attempt,
        text=task.error or "",
    )


def _sentence(task: TaskResponse, what: str, code: str) -> str:
    """`Task 0193a5b0-… (charge) failed after 3 attempts [handler_error]: a negative amount`."""
    named = f" ({task.task_type})" if task.task_type else ""
    after = f" after {task.attempt} attempts" if task.attempt is not None and task.attempt > 1 else ""
    return f"Task {task.task_id}{named} {what}{after} [{code}]" + (f": {task.error}" if task.error else ".")
