"""What a client knows about the tasks that it tracks: their latest status, and the callers that wait for the next event.

A Track lives as long as it is referenced (by a receipt, a waiter or an iterator); the client only keeps weak references,
so submitting millions of tasks and never waiting costs nothing. Only the client's event loop touches a Track.

Always true: an event is seen once, in the order of the topic (the offsets of one task are in one partition, so they only
rise); after a terminal event nothing more is seen. So a scan of the past and the tail of the present may deliver into
the same Track in any interleaving.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from streamtask.domain.model import TaskResponse
from streamtask.errors import StreamtaskError, WaitTimeout

Mark = dict[int, int]  # partition of the status topic → offset

EVENTS_KEPT_MAX = 1_000  # per iterator that is slower than its task; the oldest progress events are dropped first


class Track:
    """One task as this client sees it.

    seen, latest  offset of the last event, and the event
    gap           events may have been missed (the tail failed): scan the past before relying on this track
    left_behind   it is a copy in a forked child: only the parent's sees events
    """

    __slots__ = ("__weakref__", "_followers", "_futures", "gap", "history", "latest", "left_behind", "seen", "task_id")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.latest: TaskResponse | None = None
        self.seen = -1
        self.gap = False
        self.left_behind = False
        self.history: str | None = None  # the origin of these events: a later request record may use the same id
        self._futures: set[asyncio.Future[None]] = set()
        self._followers: list[deque[TaskResponse]] = []

    def offer(self, offset: int, task: TaskResponse) -> None:
        """Add an event of this task. Drops events that are known or belong to a later history."""
        assert task.task_id == self.task_id, f"{task.task_id} in the track of {self.task_id}"
        if offset <= self.seen or self.ended:
            return
        if self.history is not None and task.origin is not None and task.origin != self.history:
            return
        self.seen, self.latest = offset, task
        self.history = self.history or task.origin
        for follower in self._followers:
            follower.append(task)
        self._wake(None)

    def break_off(self, error: Exception) -> None:
        """No more events will come: raise `error` in all waiters."""
        self._wake(error)

    @property
    def ended(self) -> bool:
        return self.latest is not None and self.latest.ended

    def _wake(self, error: Exception | None) -> None:
        waiting, self._futures = self._futures, set()
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def limit(self, deadline: float | None) -> AbstractAsyncContextManager[object]:
        """A block that raises TimeoutError at the deadline."""
        return asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic()))

    async def change(self, deadline: float | None) -> None:
        """Wait for the next event. deadline: seconds on the transport's clock. Raises WaitTimeout, or StreamtaskError for an
        iterator that began before this process was forked."""
        if self.left_behind:
            raise StreamtaskError(
                f"These events of task {self.task_id} belong to the process that forked this one. Call events() again."
            )
        future = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        try:
            async with self.limit(deadline):
                await future
        except TimeoutError:
            raise WaitTimeout(f"Task {self.task_id} did not end within the timeout; it continues.") from None
        finally:
            self._futures.discard(future)

    async def end(self, deadline: float | None) -> TaskResponse:
        """Wait for the terminal event. Raises WaitTimeout."""
        while self.latest is None or not self.latest.ended:
            await self.change(deadline)
        return self.latest

    def follow(self) -> AsyncIterator[TaskResponse]:
        """The known status, then each event until the terminal one. No event after this call is missed."""
        follower: deque[TaskResponse] = deque(() if self.latest is None else (self.latest,), EVENTS_KEPT_MAX)
        self._followers.append(follower)
        return self._iterate(follower)

    async def _iterate(self, follower: deque[TaskResponse]) -> AsyncIterator[TaskResponse]:
        try:
            while True:
                while follower:
                    task = follower.popleft()
                    yield task
                    if task.ended:
                        return
                await self.change(None)
        finally:
            self._followers = [kept for kept in self._followers if kept is not follower]
