"""One tail of the status topic per client, and the tasks that it watches.

    tail thread:  Tail.poll → records of tracked tasks only → decoded → one call_soon_threadsafe per batch
    event loop:   Track.offer → the waiters

Always true: no event is missed between sending a request and waiting for it. While no caller waits, nothing is read:
instead, the ends of the status topic are recorded before a request is sent (`mark`, at most MARK_AGE_S old), and the
first waiter starts the tail there. A scan looks for a task that is older than the start of the tail; tasks that are
asked for at the same time share one scan.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from streamtask.client.tracking import Mark, Track
from streamtask.codec import decode_status
from streamtask.codec.reader import PLAIN, Reader
from streamtask.domain.model import TaskResponse
from streamtask.errors import DecodeError, StreamtaskError

if TYPE_CHECKING:
    from streamtask.config.kafka import KafkaSettings
    from streamtask.kafka.tail import Tail, TailRecord

MARK_AGE_S = 60.0  # an older mark is replaced: a first wait reads at most this much more than it needs
POLL_S = 0.1
TAIL_RECORDS = 500  # a larger batch would hold the GIL, and with it the event loop
SCAN_RECORDS = 5_000
JOIN_S = 10.0

Found = tuple[Track, int, TaskResponse]


class StatusWatch:
    """The tail of one status topic. Used on one event loop; `close` ends its thread."""

    def __init__(self, kafka: KafkaSettings, topic: str, reader: Reader = PLAIN) -> None:
        self._reader = reader
        self._kafka = kafka
        self._topic = topic
        self._tracks: WeakValueDictionary[str, Track] = WeakValueDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = asyncio.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._mark: Mark | None = None
        self._marked_at = 0.0
        self._scanning = asyncio.Lock()
        self._next_scan: asyncio.Task[None] | None = None
        self._scans: set[asyncio.Task[None]] = set()
        self._wanted: dict[str, tuple[Track, Mark | None]] = {}

    @property
    def running(self) -> bool:
        return self._thread is not None and self._failure is None

    async def before_submit(self) -> Mark | None:
        """The current end of the status topic, or a slightly older one; None when the tail is running anyway."""
        if self.running:
            return None
        if self._mark is None or time.monotonic() - self._marked_at > MARK_AGE_S:
            async with self._starting:
                if self._mark is None or time.monotonic() - self._marked_at > MARK_AGE_S:
                    self._mark = await asyncio.to_thread(self._ends)
                    self._marked_at = time.monotonic()
        return None if self.running else self._mark

    def track(self, task_id: str) -> Track:
        """The track of a task. From now on it sees the task's events if the tail is running."""
        track = self._tracks.get(task_id)
        if track is None:
            track = self._tracks[task_id] = Track(task_id)
        return track

    async def follow(self, task_id: str, since: Mark | None) -> Track:
        """A track that has missed nothing since `since` (None: since the start of the topic).

        Raises Unreachable, or the error that ended the tail.
        """
        track = self.track(task_id)
        if not await self._ensure_tail(since):
            await self._look_back(track, since)
        track.gap = False
        return track

    def _ends(self) -> Mark:
        from streamtask.kafka.offset_queries import topic_ends

        return {partition: end for (_, partition), end in topic_ends(self._kafka, (self._topic,)).items()}

    def _open(self, start: Mark | None) -> Tail:
        from streamtask.kafka.tail import Tail

        if start is None:
            return Tail(self._kafka, (self._topic,))
        return Tail(self._kafka, {(self._topic, partition): offset for partition, offset in start.items()})

    def leave_behind(self) -> None:
        """In a forked child: this watch is a copy without its thread, so none of its tracks sees another event."""
        for track in self._alive():
            track.left_behind = True

    async def close(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._scans, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, JOIN_S)
        for track in self._alive():
            track.break_off(StreamtaskError("The client was closed while a call was waiting."))

    # --- The tail -----------------------------------------------------------------------------------------------------

    async def _ensure_tail(self, since: Mark | None) -> bool:
        """Start the tail unless it is running. True when this call started it at `since`."""
        async with self._starting:
            if self._stopping.is_set():
                raise StreamtaskError("This client is closed.")
            if self.running:
                return False
            self._failure = None
            self._loop = asyncio.get_running_loop()
            start = since if since is not None else await asyncio.to_thread(self._ends)
            self._thread = threading.Thread(target=self._run, args=(start,), name="streamtask-status-tail", daemon=True)
            self._thread.start()
            return since is not None

    def _run(self, start: Mark) -> None:
        """The tail thread."""
        try:
            tail = self._open(start)
            try:
                while not self._stopping.is_set():
                    found = self._pick(tail.poll(TAIL_RECORDS, POLL_S))
                    if found:
                        self._tell(found)
            finally:
                tail.close()
        except Exception as error:  # noqa: BLE001 - the last frame of the thread: the waiting callers must learn why
            self._failure = error
            self._tell((), error)

    def _pick(self, records: Sequence[TailRecord]) -> list[Found]:
        """Returns the decoded events of tracked tasks. Called on any thread."""
        found: list[Found] = []
        tracks = self._tracks
        for record in records:
            if record.key is None or record.value is None:
                continue
            track = tracks.get(record.key.decode("latin-1"))
            if track is None:
                continue
            try:
                event = decode_status(record.value, self._reader)
            except DecodeError:
                continue  # not an event that streamtask wrote: the view and the audit count such records
            if (
                event.task_id == track.task_id
            ):  # otherwise key and value name different tasks: not an event that streamtask wrote either
                found.append((track, record.offset, event))
        return found

    def _tell(self, found: Sequence[Found], error: Exception | None = None) -> None:
        loop = self._loop
        assert loop is not None, "the tail was not started"
        try:
            loop.call_soon_threadsafe(self._deliver, found, error)
        except RuntimeError:
            assert loop.is_closed(), "only a closed loop refuses"

    def _deliver(self, found: Sequence[Found], error: Exception | None) -> None:
        for track, offset, task in found:
            track.offer(offset, task)
        if error is not None:
            for track in self._alive():
                track.gap = True
                track.break_off(error)

    def _alive(self) -> list[Track]:
        """The tracks that are still referenced. Copies the weak references, which is one atomic step: iterating over the
        values fails when another thread drops a track meanwhile and thereby removes it."""
        return [track for reference in self._tracks.valuerefs() if (track := reference()) is not None]

    # --- The past -----------------------------------------------------------------------------------------------------

    async def _look_back(self, track: Track, since: Mark | None) -> None:
        """Offer the events of this task in the topic, from `since` (None: from its start) to its current end."""
        self._wanted[track.task_id] = (track, since)
        if self._next_scan is None:
            # Its owners are the callers that await it below, and `close`; shielded, because each of them may leave early.
            self._next_scan = asyncio.get_running_loop().create_task(self._scan_once(), name="status-scan")
            self._scans.add(self._next_scan)
            self._next_scan.add_done_callback(self._scan_done)
        await asyncio.shield(self._next_scan)

    def _scan_done(self, scan: asyncio.Task[None]) -> None:
        self._scans.discard(scan)
        if not scan.cancelled():
            scan.exception()  # mark it as retrieved: callers that still await it get it too, but there may be none

    async def _scan_once(self) -> None:
        """One scan for all callers that registered before it begins."""
        async with self._scanning:
            wanted, self._wanted = self._wanted, {}
            self._next_scan = None
            marks = [since for _, since in wanted.values() if since is not None]
            start: Mark | None = None
            if len(marks) == len(wanted):
                start = {partition: min(mark.get(partition, 0) for mark in marks) for partition in marks[0]}
            tracks = {task_id: track for task_id, (track, _) in wanted.items()}
            self._deliver(await asyncio.to_thread(self._read_past, tracks, start), None)

    def _read_past(self, tracks: Mapping[str, Track], start: Mark | None) -> list[Found]:
        found: list[Found] = []
        keys = {task_id.encode() for task_id in tracks}
        tail = self._open(start)
        try:
            goal = dict(tail.ends())
            while not self._stopping.is_set():
                records = tail.poll(SCAN_RECORDS, POLL_S)
                found.extend(self._pick([record for record in records if record.key in keys]))
                positions = tail.positions()
                if all(positions.get(at, 0) >= end for at, end in goal.items()):
                    break
        finally:
            tail.close()
        return found
