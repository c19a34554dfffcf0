"""What a stream missed: read again from the status topic, from where the stream stopped up to the view's position.

Bounded: PAST_OFFSETS_MAX offsets in all, CHUNK_RECORDS at a time, PASTS_MAX readers at once (each a small consumer of
its own), PAST_S seconds from first to last. The reader is closed before its stream goes live.

What the feed left out is left out here too: an event of a second history of a task does not stand beside the first
(core/fold.py), and the store knows to which history events belong. Nothing is given that the view has not folded yet: a
client that has seen an event here finds it by GET.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from streamtask.errors import DecodeError, Unreachable
from streamtask.projection.feed import Heard
from streamtask.projection.materialize import Record, heard, read_status
from streamtask.projection.store import Partition
from streamtask.projection.view import Reading, ViewService
from streamtask.projection.watch import TooManyWaiters
from streamtask.query_service.problems import unavailable

PAST_OFFSETS_MAX = 200_000
PAST_S = 60.0
PASTS_MAX = 3  # they share an executor of at least five threads with `GET /tasks`
WAITING_MAX = 200
CHUNK_RECORDS = 200  # a longer chunk would hold the GIL (view.SERVING_RECORDS)
CHUNK_BYTES = 4_000_000
POLL_S = 0.1

T = TypeVar("T")
Pick = Callable[[Record], bool]
Positions = dict[int, int]  # partition of the status topic → next offset


class Gap(NamedTuple):
    """Events that the topic no longer holds: offsets `wanted` up to but without `found`, of one partition."""

    partition: int
    wanted: int
    found: int


class Past:
    """One reading of the past. `read` may be called again to get what arrived since."""

    def __init__(self, service: ViewService, source: Reading, begin: Mapping[int, int], gaps: list[Gap]) -> None:
        self._service = service
        self._source = source
        self._done = dict(begin)
        self._gaps = gaps
        self._deadline = time.monotonic() + PAST_S

    async def read(self, goal: Mapping[int, int], pick: Pick) -> AsyncIterator[list[Heard | Gap]]:
        """The picked events below `goal` (and some later ones), a list at a time, and the gaps that were found.

        Raises Unreachable when it takes too long: the client resumes from what it has got.
        """
        while any(at < goal.get(partition, 0) for partition, at in self._done.items()):
            if time.monotonic() > self._deadline:
                raise Unreachable(f"The past was not read within {PAST_S:g} s.")
            records, positions = await _in_a_thread(self._poll)
            picked = [record for record in records if pick(record)]
            out: list[Heard | Gap] = [*self._gaps]
            self._gaps.clear()
            if picked:
                for partition, after in {record.partition: record.offset + 1 for record in picked}.items():
                    if not await self._service.has_read(partition, after, self._deadline - time.monotonic()):
                        raise Unreachable("The view makes no progress.")
                out += await _in_a_thread(partial(self._standing, picked))
            self._done |= positions
            if out:
                yield out

    def _poll(self) -> tuple[Sequence[Record], Positions]:
        records = self._source.poll(CHUNK_RECORDS, POLL_S, CHUNK_BYTES)
        return records, {partition: at for (_, partition), at in self._source.positions().items()}

    def _standing(self, records: Sequence[Record]) -> list[Heard | Gap]:
        events: list[Heard] = []
        for record in records:
            try:
                events.append(heard(record, *read_status(record, self._service.reader)))
            except DecodeError:
                continue  # not an event: the view has counted it
        known = self._service.known({event.task_id for event in events})
        out: list[Heard | Gap] = []
        for event in events:
            row = known.get(event.task_id)
            if row is None or not row.version or row.origin == event.origin:
                out.append(event)
        return out


class Pasts:
    """Opens the past for streams that resume, a few at a time."""

    def __init__(self, service: ViewService) -> None:
        self._service = service
        self._turn = asyncio.Semaphore(PASTS_MAX)
        self._waiting = 0

    @asynccontextmanager
    async def opened(self, begin: Mapping[int, int]) -> AsyncIterator[Past]:
        """The past from these offsets on. Raises Problem, TooManyWaiters, Unreachable, ClusterError."""
        gaps: list[Gap] = []
        async with self._source(begin, gaps) as source:
            yield Past(self._service, source, begin, gaps)

    async def ends(self, begin: Mapping[int, int]) -> Positions:
        """The current ends of these partitions, read committed. Raises the same errors as `opened`."""
        async with self._source(begin, []) as source:
            return {partition: end for (_, partition), end in (await _in_a_thread(source.ends)).items()}

    @asynccontextmanager
    async def _source(self, begin: Mapping[int, int], gaps: list[Gap]) -> AsyncIterator[Reading]:
        opener = self._service.open_past
        if opener is None:
            raise unavailable(
                "past-unreadable", "This service cannot read the past", "Open the stream without Last-Event-ID."
            )
        if self._waiting >= WAITING_MAX:
            raise TooManyWaiters(f"{self._waiting} streams are already waiting to resume. Try again later.")
        opened: list[Reading] = []  # holds the reader, even if this is cancelled while it is being opened
        places = {(self._service.names.status, partition): at for partition, at in begin.items()}

        def on_gap(place: Partition, wanted: int, found: int) -> None:
            gaps.append(Gap(place[1], wanted, found))

        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            await _in_a_thread(lambda: opened.append(opener(places, on_gap)))
            yield opened[0]
        finally:
            try:
                for source in opened:
                    await _in_a_thread(source.close)
            finally:  # a stream that is cancelled while it closes must release the semaphore
                self._turn.release()


async def _in_a_thread(call: Callable[[], T]) -> T:
    """Like to_thread, but when it is cancelled it waits for the end of the call, so that no call still uses a source
    afterwards (every call is bounded)."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        raise
