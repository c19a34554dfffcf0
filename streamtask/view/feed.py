"""The live feed: every status event that the view folds, fanned out to those who listen. Bounded, without polling.

    tail thread:  fold a batch → publish the positions → someone listens? → one callback per batch
    event loop:   deliver → the buffer of each listener → the stream that reads it (live.py)

Invariants. Nothing between two reads of a listener is missed, or it is cut, and knows it: the tail thread publishes
positions first and looks for listeners then; a listener registers first and reads the positions then (as in watch.py).
Within a partition events come in the order of their offsets.

Memory. A listener for one task holds EVENTS_OF_TASK_MAX events and then only the latest; one for a filter holds
EVENTS_MAX and BYTES_MAX and then is cut. All of them together hold HELD_BYTES_MAX, counted once per listener (bodies
are shared, so it is less). Between the threads there are at most HANDED_MAX batches.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from streamtask.errors import StreamtaskError
from streamtask.view.watch import TooManyWaiters

LISTENERS_MAX = 12_000  # each takes 45 KB of the process with its stream
EVENTS_OF_TASK_MAX = 64
EVENTS_MAX = 1_000
BYTES_MAX = 4_000_000
HELD_BYTES_MAX = 64_000_000
TAKE_BYTES = 64_000  # written at once, or one event if that is larger
HANDED_MAX = 64
HANDED_WAIT_S = 1.0  # then the event loop is stuck: everybody is cut, the view goes on


class Cut(StreamtaskError):
    """A stream ends before its end: slow (too much was held for it), restarted, overrun (the view begins anew, or was
    faster than the event loop), stopping (the service ends). Whoever reads it resumes from its last id."""


class Heard(NamedTuple):
    """A status event on its way out. body: as the store has it; origin: "" when the event does not say."""

    partition: int
    offset: int
    task_id: str
    status: str
    task_type: str | None
    origin: str
    body: bytes


class Listener:
    """The buffer between the feed and one stream. Event loop only.

    cut  why nothing more will come; what it held then is gone, whoever reads it resumes from its last id
    """

    __slots__ = ("_events", "_feed", "_held", "_news", "_taken", "cut", "status", "task_id", "task_type")

    def __init__(self, feed: Feed, task_id: str | None, status: str | None, task_type: str | None) -> None:
        self.task_id, self.status, self.task_type = task_id, status, task_type
        self.cut: str | None = None
        self._feed = feed
        self._events: deque[Heard] = deque()  # bounded by offer
        self._held = 0  # bytes in _events
        self._taken = 0  # bytes that the stream is writing
        self._news = asyncio.Event()

    def offer(self, event: Heard) -> None:
        """Hold it; over the bounds keep the latest (one task), or cut (a filter)."""
        if self.cut is not None:
            return
        size = len(event.body)
        full = self._feed.held_bytes + size > HELD_BYTES_MAX or self._held + size > BYTES_MAX
        if self.task_id is not None:
            if full or len(self._events) >= EVENTS_OF_TASK_MAX:
                self._drop()
        elif full or len(self._events) >= EVENTS_MAX:
            self.end("slow")
            return
        self._events.append(event)
        self._count(size)
        self._news.set()

    def take(self) -> list[Heard]:
        """What is held, oldest first, up to TAKE_BYTES and at least one; [] when nothing is. What was taken before is
        written by now."""
        self._feed.held_bytes -= self._taken
        self._taken = 0
        out: list[Heard] = []
        while self._events and (not out or self._taken + len(self._events[0].body) <= TAKE_BYTES):
            event = self._events.popleft()
            out.append(event)
            self._taken += len(event.body)
        self._held -= self._taken
        return out

    async def wait(self, timeout_s: float) -> bool:
        """True when there is something to take, or it was cut; False after timeout_s."""
        self._news.clear()
        if not self._events and self.cut is None:
            # Not asyncio.timeout, which takes longer than the rest: ten thousand streams wait for every event.
            alarm = asyncio.get_running_loop().call_later(timeout_s, self._news.set)
            try:
                await self._news.wait()
            finally:
                alarm.cancel()
        return bool(self._events) or self.cut is not None

    def end(self, reason: str) -> None:
        """Cut it: its memory is free at once."""
        if self.cut is None:
            self.cut = reason
            self._drop()
            self._news.set()

    def leave(self) -> None:
        self.end("left")
        self._feed.held_bytes -= self._taken
        self._taken = 0

    def _drop(self) -> None:
        self._events.clear()
        self._count(-self._held)

    def _count(self, size: int) -> None:
        self._held += size
        self._feed.held_bytes += size


class Feed:
    """Who listens to what. All but `listening` and `may_hand` belongs to the event loop's thread.

    positions  {partition of the status topic: next offset} up to which every listener has been offered what it wants
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.positions: Mapping[int, int] = {}
        self.stopping = asyncio.Event()
        self._left = asyncio.Event()  # somebody did
        self._of_tasks: dict[str, list[Listener]] = {}
        self._of_filters: list[Listener] = []
        self._count = 0
        self._reserved = 0
        self._slots = threading.Semaphore(HANDED_MAX)

    @property
    def count(self) -> int:
        """Listeners, and whoever reserved a place like theirs."""
        return self._count + self._reserved

    @property
    def listening(self) -> bool:
        """Whether anybody listens. From any thread."""
        return self._count > 0

    def may_hand(self) -> bool:
        """Wait for a place among the batches that are under way to `deliver`. From the tail thread."""
        return self._slots.acquire(timeout=HANDED_WAIT_S)

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
        """A place for a connection that may listen later. Raises TooManyWaiters."""
        self._check_room()
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1
            self._left.set()

    def deliver(self, events: Sequence[Heard], positions: Mapping[int, int]) -> None:
        """A batch that was folded, and the positions behind it."""
        self._slots.release()
        of_tasks, of_filters = self._of_tasks, self._of_filters
        for event in events:
            for listener in of_tasks.get(event.task_id, ()):
                listener.offer(event)
            for listener in of_filters:
                if listener.status in (None, event.status) and listener.task_type in (None, event.task_type):
                    listener.offer(event)
        self.positions = positions

    def cut_all(self, reason: str) -> None:
        """What comes next does not follow on what came: everybody resumes."""
        self.positions = {}
        for listener in [*self._of_filters, *(one for group in self._of_tasks.values() for one in group)]:
            listener.end(reason)

    def stop(self) -> None:
        """The service ends: streams end, and new ones at once."""
        self.stopping.set()
        self.cut_all("stopping")

    async def until_empty(self, timeout_s: float) -> None:
        """Wait until nobody listens any more, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.count:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass

    def _check_room(self) -> None:
        if self.count >= LISTENERS_MAX:
            raise TooManyWaiters(f"{self.count} streams are open already.")
