"""Waiters: for a task to change, or for a partition to be read up to an offset. Bounded, without polling.

The order of steps makes this safe without a lock. A waiter first registers and then looks; the tail thread first writes
and then calls `awaited`. So the later of the two sees the other, and no waiter sleeps through a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager

from streamtask.errors import StreamtaskError

WAITERS_MAX = 10_000


class TooManyWaiters(StreamtaskError):
    """Too many requests are waiting already. Ask again without waiting, or later."""


class Watchers:
    """Waiters by key (a task_id, or a topic partition). Only `awaited` may be called outside the event loop's thread."""

    def __init__(self, waiters_max: int = WAITERS_MAX) -> None:
        self._waiters_max = waiters_max
        self._waiters: dict[Hashable, set[asyncio.Event]] = {}
        self._count = 0

    def awaited(self, keys: Iterable[Hashable]) -> list[Hashable]:
        """The keys among `keys` that have waiters. From any thread."""
        waiters = self._waiters
        return [key for key in keys if key in waiters] if waiters else []

    @contextmanager
    def waiting(self, key: Hashable) -> Iterator[asyncio.Event]:
        """An event that is set by the next `wake` of this key. Raises TooManyWaiters."""
        if self._count >= self._waiters_max:
            raise TooManyWaiters(f"{self._count} requests are already waiting. Try again later.")
        event = asyncio.Event()
        self._waiters.setdefault(key, set()).add(event)
        self._count += 1
        try:
            yield event
        finally:
            self._count -= 1
            held = self._waiters[key]
            held.discard(event)
            if not held:
                del self._waiters[key]

    def wake(self, keys: Iterable[Hashable]) -> None:
        """Wake the waiters of these keys."""
        for key in keys:
            for event in self._waiters.get(key, ()):
                event.set()

    def wake_all(self) -> None:
        """Wake all waiters because the service ends: each looks once more and leaves."""
        self.wake(list(self._waiters))

    @property
    def count(self) -> int:
        return self._count
