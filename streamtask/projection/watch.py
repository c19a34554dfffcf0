"""Who waits for what: a task to change, or a partition to be read up to an offset. Bounded, without polling.

The order is what makes it safe without a lock. A waiter registers *first* and looks *then*; the tail thread writes
first and asks `awaited` then. So whichever comes second sees the other, and nobody sleeps over a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager

from streamtask.errors import StreamtaskError

WAITERS_MAX = 10_000


class TooManyWaiters(StreamtaskError):
    """As many requests wait as may; ask again without waiting, or later."""


class Watchers:
    """Waiters by key (a task_id, or a topic partition). All but `awaited` belongs to the event loop's thread."""

    def __init__(self, waiters_max: int = WAITERS_MAX) -> None:
        self._waiters_max = waiters_max
        self._waiters: dict[Hashable, set[asyncio.Event]] = {}
        self._count = 0

    def awaited(self, keys: Iterable[Hashable]) -> list[Hashable]:
        """Those of `keys` that somebody waits for. From any thread."""
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
        """Something happened to these."""
        for key in keys:
            for event in self._waiters.get(key, ()):
                event.set()

    def wake_all(self) -> None:
        """The service ends: everybody looks once more and leaves."""
        self.wake(list(self._waiters))

    @property
    def count(self) -> int:
        return self._count
