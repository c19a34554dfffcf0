"""The live feed: fans out every status event that the view folds to its listeners. Bounded, without polling.

    tail thread:  fold a batch → publish the positions → is there a listener? → one callback per batch
    event loop:   deliver → the buffer of each listener → the stream that reads it (live.py)

Invariants. A listener misses nothing between two reads, or it is cut and knows it: the tail thread publishes the positions
first and then looks for listeners; a listener registers first and then reads the positions (as in watch.py). Within a
partition, events arrive in the order of their offsets.

Memory. A listener for one task holds EVENTS_OF_TASK_MAX events, then only the latest; a listener for a filter holds up to
EVENTS_MAX and BYTES_MAX and then is cut. All together hold at most HELD_BYTES_MAX: a body that many listeners hold counts
once. When that is full, the listeners that hold most are cut until a quarter is free; the others, which read in time, are
not affected. Between the threads there are at most HANDED_MAX batches and HANDED_BYTES_MAX (or one batch).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from streamtask.errors import StreamtaskError
from streamtask.projection.watch import TooManyWaiters

LISTENERS_MAX = 12_000  # each takes 45 KB of the process, including its stream
EVENTS_OF_TASK_MAX = 64
EVENTS_MAX = 1_000
BYTES_MAX = 4_000_000
HELD_BYTES_MAX = 64_000_000
TAKE_BYTES = 64_000  # written at once, or one event if that is larger
HANDED_MAX = 64
HANDED_BYTES_MAX = 16_000_000
HOLDER_BYTES = 16  # of an event that another listener also holds: a reference in the buffer
HANDED_WAIT_S = 1.0  # after this time the event loop is stuck: all listeners are cut, and the view continues


class Cut(StreamtaskError):
    """A stream that was cut: slow (it held too much), restarted, overrun (the view started again, or was faster than the
    event loop), stopping (the service ends). The client resumes from the stream's last id."""


class Heard(NamedTuple):
    """A status event for listeners. body: as in the store; origin: "" when the event does not contain it."""

    partition: int
    offset: int
    task_id: str
    status: str
    task_type: str | None
    origin: str
    body: bytes


class _Shared:
    """An event that listeners hold. Its body counts as long as at least one of them does."""

    __slots__ = ("event", "holders", "size")

    def __init__(self, event: Heard) -> None:
        self.event, self.size, self.holders = event, len(event.body), 0


class Listener:
    """The buffer between the feed and one stream. Used on the event loop only.

    cut  why it gets no more events; what it held then is gone, and the client resumes from its last id
    """

    __slots__ = ("_events", "_feed", "_held", "_news", "_taken", "cut", "status", "task_id", "task_type")

    def __init__(self, feed: Feed, task_id: str | None, status: str | None, task_type: str | None) -> None:
        self.task_id, self.status, self.task_type = task_id, status, task_type
        self.cut: str | None = None
        self._feed = feed
        self._events: deque[_Shared] = deque()  # bounded by offer
        self._held = 0  # bytes in _events, shared or not
        self._taken: list[_Shared] = []  # that the stream is writing
        self._news = asyncio.Event()

    @property
    def held(self) -> int:
        """Bytes that wait for the stream, shared or not."""
        return self._held

    def offer(self, shared: _Shared) -> None:
        """Hold the event. Beyond the limits keep only the latest (one task), or cut the listener (a filter)."""
        if self.cut is not None:
            return
        full = self._held + shared.size > BYTES_MAX and self._events
        if full or len(self._events) >= (EVENTS_MAX if self.task_id is None else EVENTS_OF_TASK_MAX):
            self.fall_behind()
            if self.cut is not None:
                return
        self._feed.hold(shared)
        self._events.append(shared)
        self._held += shared.size
        self._news.set()

    def fall_behind(self) -> None:
        """It holds too much: drop the events, or, for a filter, cut it so that its stream resumes."""
        if self.task_id is None:
            self.end("slow")
        else:
            self._drop()

    def take(self) -> list[Heard]:
        """The held events, oldest first, up to TAKE_BYTES but at least one; [] when there are none. Calling it means that the
        stream has written the events of the previous call."""
        self._written()
        size = 0
        while self._events and (not self._taken or size + self._events[0].size <= TAKE_BYTES):
            shared = self._events.popleft()
            self._taken.append(shared)
            size += shared.size
        self._held -= size
        return [shared.event for shared in self._taken]

    async def wait(self, timeout_s: float) -> bool:
        """True when there are events to take or it was cut; False after timeout_s."""
        self._news.clear()
        if not self._events and self.cut is None:
            # Not asyncio.timeout, which takes longer than all the rest: ten thousand streams wait for every event.
            alarm = asyncio.get_running_loop().call_later(timeout_s, self._news.set)
            try:
                await self._news.wait()
            finally:
                alarm.cancel()
        return bool(self._events) or self.cut is not None

    def end(self, reason: str) -> None:
        """Cut the listener, which frees its memory at once."""
        if self.cut is None:
            self.cut = reason
            self._drop()
            self._news.set()

    def leave(self) -> None:
        self.end("left")
        self._written()

    def _drop(self) -> None:
        self._held = 0
        self._feed.let_go(self._events)
        self._events.clear()

    def _written(self) -> None:
        if self._taken:
            self._feed.let_go(self._taken)
            self._taken = []


class Feed:
    """The listeners and their filters. Only `listening` and `may_hand` may be called outside the event loop's thread.

    positions  {partition of the status topic: next offset} up to which every listener was offered its events
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.positions: Mapping[int, int] = {}
        self.stopping = asyncio.Event()
        self._left = asyncio.Event()  # set when a listener has left
        self._of_tasks: dict[str, list[Listener]] = {}
        self._of_filters: list[Listener] = []
        self._count = 0
        self._reserved = 0
        self._handing = threading.Condition()
        self._handed: deque[int] = deque()  # bytes of each batch on its way to `deliver`; bounded by may_hand

    @property
    def count(self) -> int:
        """The number of listeners and reserved places."""
        return self._count + self._reserved

    @property
    def listening(self) -> bool:
        """Whether there is a listener. From any thread."""
        return self._count > 0

    def may_hand(self, events: Sequence[Heard] = ()) -> bool:
        """Wait for room among the batches on their way to `deliver`; False after HANDED_WAIT_S. From the tail thread."""
        size = sum(len(event.body) for event in events)

        def fits() -> bool:
            return len(self._handed) < HANDED_MAX and (not self._handed or sum(self._handed) + size <= HANDED_BYTES_MAX)

        with self._handing:
            if not self._handing.wait_for(fits, HANDED_WAIT_S):
                return False
            self._handed.append(size)
            return True

    def hold(self, shared: _Shared) -> None:
        """Count one more listener that holds the event."""
        self.held_bytes += HOLDER_BYTES if shared.holders else shared.size
        shared.holders += 1

    def let_go(self, held: Iterable[_Shared]) -> None:
        """Count one listener less for each of these events."""
        for shared in held:
            shared.holders -= 1
            self.held_bytes -= HOLDER_BYTES if shared.holders else shared.size

    @contextmanager
    def listen(
        self, task_id: str | None = None, *, status: str | None = None, task_type: str | None = None
    ) -> Iterator[Listener]:
        """A listener for one task, or for all events with this status and type (None: any). Raises TooManyWaiters."""
        self._check_room()
        listener = Listener(self, task_id, status, task_type)
        if self.stopping.is_set():
            listener.end("stopping")
        group = self._of_filters if task_id is None else self._of_tasks.setdefault(task_id, [])
        group.append(listener)
        self._count += 1
        try:
            yield listener
        finally:
            self._count -= 1
            self._left.set()
            group.remove(listener)
            if task_id is not None and not group:
                self._of_tasks.pop(task_id, None)
            listener.leave()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Reserve a place for a connection that may listen later. Raises TooManyWaiters."""
        self._check_room()
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1
            self._left.set()

    def deliver(self, events: Sequence[Heard], positions: Mapping[int, int]) -> None:
        """Offer a folded batch to the listeners. positions: next offsets after it."""
        with self._handing:
            self._handed.popleft()
            self._handing.notify()
        of_tasks, of_filters = self._of_tasks, self._of_filters
        for event in events:
            shared = _Shared(event)
            if self.held_bytes + shared.size > HELD_BYTES_MAX:
                self._make_room(shared.size)
            for listener in of_tasks.get(event.task_id, ()):
                listener.offer(shared)
            for listener in of_filters:
                if listener.status in (None, event.status) and listener.task_type in (None, event.task_type):
                    listener.offer(shared)
        self.positions = positions

    def _make_room(self, size: int) -> None:
        """Make the listeners that hold most fall behind, until a quarter of HELD_BYTES_MAX is free."""
        everybody = [*self._of_filters, *(one for group in self._of_tasks.values() for one in group)]
        for listener in sorted(everybody, key=lambda one: one.held, reverse=True):
            if self.held_bytes + size <= HELD_BYTES_MAX * 3 // 4 or not listener.held:
                return
            listener.fall_behind()

    def cut_all(self, reason: str) -> None:
        """Cut all listeners, because the next events do not continue the previous ones: all streams resume."""
        self.positions = {}
        for listener in [*self._of_filters, *(one for group in self._of_tasks.values() for one in group)]:
            listener.end(reason)

    def stop(self) -> None:
        """End all streams, and new ones at once, because the service ends."""
        self.stopping.set()
        self.cut_all("stopping")

    async def until_empty(self, timeout_s: float) -> None:
        """Wait until there are no listeners and no reserved places, for at most timeout_s."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.count:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass

    def _check_room(self) -> None:
        if self.count >= LISTENERS_MAX:
            raise TooManyWaiters(f"{self.count} streams are already open. Try again later.")
