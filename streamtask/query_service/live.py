"""Streams of status events: where a stream begins, what it missed, and how past and present join.

A stream is an async generator of Push, the same for SSE and WebSocket. It yields its first Push once it is certain that
there will be a stream: any earlier error is raised as a Problem. It returns at its end, and raises Cut (or a Problem, or
Unreachable) when it ends early.

Invariant: the `id` of a Push names exactly what this stream has given or skipped so far; a stream resumed with it, on any
replica, gives what follows, no more and no less. The id of a task's stream is `<partition>:<offset>` of the status event;
the id of a filtered stream names every partition like this, because there is no order between partitions.

First a listener is registered, then the positions or the row are read, then the past up to that point. What the listener
holds below that point is dropped (feed.py).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import NamedTuple

from streamtask.domain.model import ENDED
from streamtask.projection.feed import Cut, Heard, Listener
from streamtask.projection.store import Filter, Row
from streamtask.projection.view import Token, ViewService
from streamtask.query_service.past import PAST_OFFSETS_MAX, Gap, Past, Pasts, Positions
from streamtask.query_service.problems import Problem, unavailable
from streamtask.query_service.route_checks import unknown

HEARTBEAT_S = 15.0  # of silence: proxies close a silent connection after 30 to 60 s
BEHIND_S = 5.0  # how long a stream waits for a view that is behind the id, which another replica gave out
TENANT_S = 1.0  # how long a stream of one tenant holds an event whose request was not read yet
NEAR_OFFSETS = 500  # such a short past is read while the listener holds new events

_ENDED = frozenset(status.value for status in ENDED)
_ID = re.compile(r"([0-9]{1,9}):(-1|[0-9]{1,18})")


class Push(NamedTuple):
    """The next item of a stream. id: resume after it (None: nothing to resume from). Without row, event, gap: a heartbeat."""

    id: str | None
    event: Heard | None = None
    row: Row | None = None  # the current status of the task, which its stream gives first
    gap: Gap | None = None

    @property
    def body(self) -> bytes | None:
        """The TaskResponse as JSON, if there is one."""
        return self.event.body if self.event is not None else self.row.body if self.row is not None else None


class Live:
    """Creates the streams of one view."""

    def __init__(self, service: ViewService) -> None:
        self.service = service
        self._pasts = Pasts(service)

    # --- One task -----------------------------------------------------------------------------------------------------

    async def of_task(self, task_id: str, last_id: str | None) -> AsyncGenerator[Push]:
        """The task's status, then each of its events until the terminal one; with `last_id`, the events after it.

        Yields nothing when `last_id` is that of the terminal event. Raises Problem, TooManyWaiters, ClusterError.
        """
        with self.service.feed.listen(task_id) as listener:
            positions = self._positions()  # read before the row, which then contains everything below them
            row = self.service.get(task_id)
            if row is None:
                raise unknown(task_id, self.service)
            begin = None if last_id is None else await self._begin_of_task(last_id, row)
            if begin is not None:
                row = self.service.get(task_id) or row  # reading the row again: there may have been a wait
                if row.version and row.version < begin:
                    raise _bad_id(f"task {task_id} has no event at or behind it: its latest is {_id_of(row, {})}")
                if row.version == begin and row.status in _ENDED:
                    return
            given = _Given(row, begin)
            missed = begin is not None and row.version > begin
            if begin is not None and missed and row.version - begin <= PAST_OFFSETS_MAX:
                async with self._pasts.opened({row.partition: begin}) as past:
                    yield Push(None)
                    async for event in self._past_of_task(past, row):
                        if given.takes(event):
                            yield Push(f"{event.partition}:{event.offset}", event)
                            if event.status in _ENDED:
                                return
            else:
                yield Push(None)
                if begin is None or missed:
                    given.offset = row.version - 1
                    yield Push(_id_of(row, positions), row=row)
                    if row.status in _ENDED:
                        return
            async for push in self._present_of_task(listener, given):
                yield push

    async def _begin_of_task(self, last_id: str, row: Row) -> int:
        """The first offset after `last_id`, once the view has read up to it. Raises Problem."""
        found = _ID.fullmatch(last_id.strip())
        if found is None:
            raise _bad_id("it must be <partition>:<offset>, e.g. 3:1042")
        partition, begin = int(found[1]), int(found[2]) + 1
        if partition != row.partition:
            raise _bad_id(f"it is of partition {partition}; this task's events are in partition {row.partition}")
        await self._reach({partition: begin})
        return begin

    async def _past_of_task(self, past: Past, row: Row) -> AsyncGenerator[Heard]:
        key = row.task_id.encode()
        async for found in past.read({row.partition: row.version}, lambda record: record.key == key):
            for event in found:
                if isinstance(event, Heard):  # a gap has no event of this task: a topic keeps the latest of every task
                    yield event

    async def _present_of_task(self, listener: Listener, given: _Given) -> AsyncGenerator[Push]:
        while True:
            events = listener.take()
            if not events:
                if listener.cut is not None:
                    raise Cut(listener.cut)
                if not await listener.wait(HEARTBEAT_S):
                    yield Push(None)
            for event in events:
                if given.takes(event):
                    yield Push(f"{event.partition}:{event.offset}", event)
                    if event.status in _ENDED:
                        return

    # --- Many tasks ---------------------------------------------------------------------------------------------------

    async def matching(self, wanted: Filter, last_id: str | None) -> AsyncGenerator[Push]:
        """Every matching event from now on, or after `last_id`. Raises Problem, TooManyWaiters, ClusterError."""
        seen = self._positions() if last_id is None else await self._begin_of_all(last_id)
        async with AsyncExitStack() as stack:
            past: Past | None = None
            if last_id is not None and self._behind(seen) > NEAR_OFFSETS:
                past = await stack.enter_async_context(self._pasts.opened(seen))
                yield Push(_id_of_all(seen))
                while self._behind(seen) > NEAR_OFFSETS:
                    async for push in self._past_of_all(past, wanted, seen):
                        yield push
            with self.service.feed.listen(status=wanted.status, task_type=wanted.task_type) as listener:
                if last_id is None:
                    seen = self._positions()  # read again: the listener holds what comes from here on
                elif self._behind(seen):
                    if past is None:
                        past = await stack.enter_async_context(self._pasts.opened(seen))
                    async for push in self._past_of_all(past, wanted, seen):
                        yield push
                await stack.aclose()
                yield Push(_id_of_all(seen))
                async for push in self._present_of_all(listener, wanted, seen):
                    yield push

    async def _begin_of_all(self, last_id: str) -> Positions:
        """The first offsets after `last_id`. Raises Problem."""
        begin: Positions = {}
        there = self._positions()
        for part in last_id.strip().split(","):
            found = _ID.fullmatch(part)
            if found is None or int(found[1]) in begin:
                raise _bad_id("it must list <partition>:<offset> of every partition, e.g. 0:17,1:-1,2:1042")
            if int(found[1]) not in there:
                raise _bad_id(f"the topic has no partition {found[1]}")
            begin[int(found[1])] = int(found[2]) + 1
        for partition in sorted(there):
            if partition not in begin:
                if partition < max(begin):
                    raise _bad_id(f"it does not name partition {partition}: it may be of a single task's stream")
                begin[partition] = 0  # a partition that was added since
        await self._reach(begin)
        if self._behind(begin) > PAST_OFFSETS_MAX:
            raise Problem(
                410,
                "resume-too-far",
                "Too many events have passed to replay them",
                f"The id is more than {PAST_OFFSETS_MAX:,} offsets behind. List the tasks, then open a stream without id.",
            )
        return begin

    async def _past_of_all(self, past: Past, wanted: Filter, seen: Positions) -> AsyncGenerator[Push]:
        """The matching events up to the view's current position; advances `seen`."""
        goal = self._positions()
        async for found in past.read(goal, lambda record: True):
            for event in found:
                if isinstance(event, Gap):
                    yield Push(_id_of_all(seen), gap=event)
                elif event.offset >= seen.get(event.partition, 0):
                    seen[event.partition] = event.offset + 1
                    if wanted.status in (None, event.status) and wanted.task_type in (None, event.task_type):
                        if wanted.tenant is None or await self._is_of(wanted.tenant, event):
                            yield Push(_id_of_all(seen), event)
        _advance(seen, goal)

    async def _present_of_all(self, listener: Listener, wanted: Filter, seen: Positions) -> AsyncGenerator[Push]:
        while True:
            events = listener.take()
            if not events:
                if listener.cut is not None:
                    raise Cut(listener.cut)
                if not await listener.wait(HEARTBEAT_S):
                    _advance(seen, self.service.feed.positions)  # everything that was offered has been given
                    yield Push(_id_of_all(seen))
            for event in events:
                if event.offset >= seen.get(event.partition, 0):
                    seen[event.partition] = event.offset + 1
                    if wanted.tenant is None or await self._is_of(wanted.tenant, event):
                        yield Push(_id_of_all(seen), event)

    async def _is_of(self, tenant: str, event: Heard) -> bool:
        """Whether the task belongs to this tenant. Only its request says so, and may be read after the event."""
        row = self.service.get(event.task_id)
        if row is None or row.tenant is None:
            try:
                token = Token.parse(event.origin, self.service.names)
            except ValueError:
                return False
            if not await self.service.fresh(token, TENANT_S):
                return False
            row = self.service.get(event.task_id)
        return row is not None and row.tenant == tenant

    # --- Both ---------------------------------------------------------------------------------------------------------

    def _positions(self) -> Positions:
        """The view's positions in the status topic. Raises Problem while it is not ready."""
        if not self.service.ready:
            raise unavailable("not-ready", "The view is not ready", "Streams begin when it has caught up.")
        return self.service.status_positions()

    def _behind(self, seen: Mapping[int, int]) -> int:
        """The number of offsets that the view has read after `seen`."""
        return sum(max(0, at - seen.get(partition, 0)) for partition, at in self._positions().items())

    async def _reach(self, begin: Mapping[int, int]) -> None:
        """Wait until the view has read up to these offsets. Raises Problem when the topic does not go that far."""
        positions = self._positions()
        ahead = {partition: at for partition, at in begin.items() if at > positions.get(partition, 0)}
        if not ahead:
            return
        ends = await self._pasts.ends({partition: positions.get(partition, 0) for partition in ahead})
        for partition, at in ahead.items():
            if at > ends[partition]:
                raise _bad_id(f"partition {partition} ends before offset {at - 1}; the id may be of another topic")
            if not await self.service.has_read(partition, at, BEHIND_S):
                raise unavailable(
                    "not-fresh", "The view is not fresh enough yet", "Another replica issued this id. Try again."
                )


class _Given:
    """What the stream of one task has given so far: the partition, and the offset of the last event.

    Past and present may both deliver an event, and the partition changes when an earlier history of the task is read
    (core/fold.py, rule 4: the lower one stands).
    """

    __slots__ = ("offset", "origin", "partition")

    def __init__(self, row: Row, begin: int | None) -> None:
        self.partition = row.partition
        self.origin = row.origin if row.version else ""
        self.offset = -1 if begin is None else begin - 1

    def takes(self, event: Heard) -> bool:
        """True when the event is new; records it as given."""
        if event.partition == self.partition:
            if event.offset <= self.offset:
                return False
        elif self.origin and event.partition > self.partition:
            return False
        self.partition, self.offset, self.origin = event.partition, event.offset, event.origin
        return True


def _id_of(row: Row, positions: Mapping[int, int]) -> str:
    """The id for a row. For a request without events: the last offset that was read, where it has none yet."""
    return f"{row.partition}:{(row.version or positions.get(row.partition, 0)) - 1}"


def _id_of_all(seen: Mapping[int, int]) -> str:
    return ",".join(f"{partition}:{at - 1}" for partition, at in sorted(seen.items()))


def _advance(seen: Positions, positions: Mapping[int, int]) -> None:
    for partition, at in positions.items():
        if at > seen.get(partition, 0):
            seen[partition] = at


def _bad_id(why: str) -> Problem:
    return Problem(400, "last-event-id", "This Last-Event-ID cannot be resumed", f"Last-Event-ID: {why}.")
