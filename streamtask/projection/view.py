"""The view: follows the topics in one thread, answers from the store, and knows how fresh its answers are.

    tail thread:  source.poll → Materializer.apply (one local transaction) → positions → wake those who wait
                                                                              → the live feed (feed.py)
    event loop:   get, page, changed, fresh, health; never touches Kafka

Invariants. `positions` is published only after the store holds everything below it: a reader of a position finds its facts.
`ready` is set once, when every partition has reached the end that it had at the start. While requests are served, a batch
has at most SERVING_RECORDS; server.SWITCH_S limits how long it holds the GIL.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

from streamtask.codec.reader import PLAIN, Reader
from streamtask.config import TopicNames
from streamtask.domain.identity import Origin
from streamtask.domain.model import ENDED
from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.errors import ClusterError, Unreachable
from streamtask.projection.feed import Feed, Heard
from streamtask.projection.materialize import Materializer, Record
from streamtask.projection.store import Cursor, Filter, Known, Page, Partition, Row, Store
from streamtask.projection.watch import Watchers

SERVING_RECORDS = 500  # written in one transaction of the store
RESTORING_RECORDS = 50_000  # a batch's events of one task become one row; 60 MB, and as much again for writing
# Of values. A restore holds two batches, and what was read from them. Records of 500 bytes and less, the usual ones, reach
# RESTORING_RECORDS first.
RESTORING_BYTES = 25_000_000
SERVING_BYTES = 4_000_000
POLL_S = 0.1
LOOK_S = 2.0  # interval of reading the ends of the log
EXPIRE_S = 30.0  # interval of looking for expired tasks
EXPIRE_ROWS = 500  # per slice; slices run between two batches
STATS_S = 1.0  # counts are cached for this long, because they scan an index
ACCEPTED_MAX = 10_000
NOTES_MAX = 20
REOPEN_S = 1.0  # interval of attempts to open the topics
JOIN_S = 10.0

log = logging.getLogger("streamtask.projection")

_ENDED = frozenset(status.value for status in ENDED)


def now_ms() -> int:
    """The wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Reading(Protocol):
    """Reads partitions from given offsets on; implemented by kafka.tail.Tail. Used by one thread at a time."""

    def poll(self, records_max: int, timeout_s: float, bytes_max: int | None = None) -> Sequence[Record]:
        """Up to records_max records (with about bytes_max of values) once there are any; [] after timeout_s."""

    def positions(self) -> Mapping[Partition, int]:
        """Next offset of every partition, after everything that poll has returned."""

    def ends(self) -> Mapping[Partition, int]:
        """The offset up to which every partition can be read now (read committed)."""

    def close(self) -> None: ...


class Source(Reading, Protocol):
    """The source of the view. Used by the tail thread alone."""

    def high_watermarks(self) -> Mapping[Partition, int]:
        """The offset after the last record of every partition, whether or not that can be read yet."""

    def stale(self) -> bool:
        """True when the topics changed since they were opened: close this source, open another."""


OnGap = Callable[[Partition, int, int], None]  # (partition, wanted, found): the log no longer holds the offset `wanted`
OpenPast = Callable[[Mapping[Partition, int], OnGap], Reading]


class Retention(NamedTuple):
    """How long the topics keep a task, in milliseconds; None: for ever."""

    status_ms: int | None = None
    requests_ms: int | None = None


class Token(NamedTuple):
    """A point in the log that an answer must include: `high-3@12345`, the position of a request record."""

    topic: str
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str, names: TopicNames) -> Token:
        """Raises ValueError."""
        place = Origin.parse(text.strip())
        band = None if place is None else names.band_named(place.band)
        if place is None or band is None:
            raise ValueError("a token is <band>-<partition>@<offset>, e.g. high-3@12345")
        return cls(names.requests[band], place.partition, place.offset)


@dataclass(slots=True)
class _Ends:
    """The ends of the log when last read. held_since: since when a partition's readable end has been below its last record,
    which means that a transaction is open."""

    lag: int = 0
    looked_at: float = 0.0
    held_since: dict[Partition, tuple[int, float]] = field(default_factory=dict)


class ViewService(HasLifecycle):
    """One view of one prefix. `running` starts and ends it; the creator of `store` closes it.

    open_past  reads what a resumed stream has missed; None: only streams that have missed nothing can be resumed
    reader     converts status events in other formats to JSON; lenient: the same for requests and control messages
    """

    def __init__(
        self,
        store: Store,
        open_source: Callable[[], Source],
        names: TopicNames,
        cluster_id: str,
        *,
        locale: str = "en",
        retention: Retention = Retention(),
        open_past: OpenPast | None = None,
        reader: Reader = PLAIN,
        lenient: Reader = PLAIN,
    ) -> None:
        self.names = names
        self.reader = reader
        self.open_past = open_past
        self.locale = locale
        self.watchers = Watchers()
        self.feed = Feed()
        self.notes: deque[str] = deque(maxlen=NOTES_MAX)  # for the operator, the latest last
        self.failure: str | None = None
        self.ended = asyncio.Event()  # the tail thread has stopped or failed
        self.caught_up = asyncio.Event()  # set when `ready` first becomes true
        self._store = store
        self._open_source = open_source
        self._materializer = Materializer(store, names, cluster_id, locale=locale, reader=reader, lenient=lenient)
        self._retention = retention
        self._positions: Mapping[Partition, int] = {}
        self._goal: Mapping[Partition, int] = {}
        self._ready = False
        self._stopping = threading.Event()
        self._life = Lifecycle("The view")
        self._thread = threading.Thread(target=self._follow, name="view-tail", daemon=True)
        self._ends = _Ends()
        self._saved: Mapping[Partition, int] = {}
        self._writing: tuple[Future[None], Sequence[str], Mapping[Partition, int]] | None = None
        self._looking: Future[tuple[Mapping[Partition, int], Mapping[Partition, int]]] | None = None
        self._look_at = 0.0
        self._expire_at = 0.0
        self._accepted: OrderedDict[str, tuple[Token, Row]] = OrderedDict()
        self._counts: tuple[float, dict[str, int]] = (0.0, {})
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- Answers (event loop) -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """True once everything that was in the topics at the start is in the store."""
        return self._ready

    def get(self, task_id: str) -> Row | None:
        """The latest known status of a canonical task_id."""
        row = self._store.get(task_id)
        if row is None and self._accepted:
            held = self._accepted.get(task_id)
            return None if held is None else held[1]
        return row

    def body(self, task_id: str) -> tuple[bytes, int] | None:
        """The body and the version of the row that `get` finds."""
        found = self._store.body(task_id)
        if found is None and self._accepted:
            held = self._accepted.get(task_id)
            return None if held is None else (held[1].body, held[1].version)
        return found

    async def page(self, filter: Filter, cursor: Cursor | None, limit: int) -> Page:
        """Store.list, off the event loop."""
        return await asyncio.to_thread(self._store.list, filter, cursor, limit)

    async def changed(self, task_id: str, after_version: int | None, timeout_s: float) -> Row | None:
        """The row once its version is above `after_version` (None: once it has ended), else as it is after timeout_s.

        Returns at once for a task that has ended. Raises TooManyWaiters.
        """

        def seen() -> bool:
            row = self.get(task_id)
            return row is not None and (
                row.status in _ENDED or (after_version is not None and row.version > after_version)
            )

        await self._wait(task_id, seen, timeout_s)
        return self.get(task_id)

    async def fresh(self, token: Token, timeout_s: float) -> bool:
        """Wait until the record at `token` is folded; False if that takes longer than timeout_s. Raises TooManyWaiters.

        Before the view is ready, nothing is fresh: events of tasks that ended long ago may not have been read yet.
        """
        partition = (token.topic, token.partition)
        return await self._wait(
            partition, lambda: self._ready and self._positions.get(partition, 0) > token.offset, timeout_s
        )

    def status_positions(self) -> dict[int, int]:
        """{partition of the status topic: next offset to read}: everything below is in the store."""
        topic = self.names.status
        return {partition: offset for (name, partition), offset in self._positions.items() if name == topic}

    async def has_read(self, partition: int, offset: int, timeout_s: float) -> bool:
        """Wait until this partition of the status topic is read up to `offset`; False if that takes over timeout_s."""
        place = (self.names.status, partition)
        return await self._wait(place, lambda: self._ready and self._positions.get(place, 0) >= offset, timeout_s)

    def known(self, task_ids: Collection[str]) -> dict[str, Known]:
        """What folding needs to know of these tasks. From any thread."""
        return self._store.known(task_ids)

    async def landed(self, token: Token, row: Row, timeout_s: float) -> bool:
        """Wait until a request that was just acknowledged is in the view. If that takes longer than timeout_s, `get` answers
        with `row` until it is, so that a GET after a POST is never a 404."""
        if await self.fresh(token, timeout_s if self._ready else 0.0):  # no caller waits as long as a restore
            return True
        if len(self._accepted) >= ACCEPTED_MAX:
            self._accepted.popitem(last=False)
        self._accepted[row.task_id] = (token, row)
        return False

    def positions(self) -> Mapping[Partition, int]:
        """Next offset of every partition: everything below is in the store. From any thread."""
        return self._positions

    async def stats(self) -> dict[str, Any]:
        """Tasks by status, and what was read; the counts are at most a second old."""
        at, counts = self._counts
        if time.monotonic() - at > STATS_S:
            counts = await asyncio.to_thread(self._store.counts)
            self._counts = (time.monotonic(), counts)
        tally = self._materializer.tally
        return {
            "tasks": counts,
            "read": {
                "requests": tally.requests,
                "status_events": tally.events,
                "cancels": tally.cancels,
                "unreadable": tally.unreadable,
            },
            "waiting": self.watchers.count,
            "streams": self.feed.count,
        }

    def health(self) -> dict[str, Any]:
        """State, lag in records, and for how long the read-committed end has been below the end of the log."""
        state = "failed" if self.failure else "ready" if self._ready else "restoring"
        now = time.monotonic()
        held = [now - since for _, since in list(self._ends.held_since.values())]
        out: dict[str, Any] = {
            "state": state,
            "lag_records": self._ends.lag,
            "read_committed_age_s": round(max(held, default=0.0), 3),
            "looked_s_ago": round(now - self._ends.looked_at, 3) if self._ends.looked_at else None,
        }
        if not self._ready:
            goal, positions = self._goal, self._positions
            out["records_to_go"] = sum(max(0, end - positions.get(at, 0)) for at, end in goal.items())
        if self.failure:
            out["failure"] = self.failure
        if self.notes:
            out["notes"] = list(self.notes)
        return out

    async def _wait(self, key: Any, seen: Callable[[], bool], timeout_s: float) -> bool:
        if seen():
            return True
        if timeout_s <= 0 or self._stopping.is_set():
            return False
        with self.watchers.waiting(key) as event:
            try:
                async with asyncio.timeout(timeout_s):
                    # Register first, then look: see watch.py.
                    while not seen() and not self._stopping.is_set():
                        await event.wait()
                        event.clear()
            except TimeoutError:
                pass
        return seen()

    # --- Life ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ViewService]:
        """Follow the topics for as long as the block runs."""
        self.start()
        try:
            yield self
        finally:
            self.stop()
            await asyncio.to_thread(self._thread.join, JOIN_S)

    def start(self) -> None:
        """Follow the topics. Call it, like `stop`, on the event loop. Raises RuntimeError if it was called before."""
        self._life.start(self._begin)

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Wake all waiters and end the tail thread. Blocks the event loop while it waits for the thread."""
        self._life.stop(self._end, timeout_s)
        if self.started:
            self._thread.join(timeout_s)

    def _end(self) -> None:
        self._stopping.set()
        self.watchers.wake_all()
        self.feed.stop()

    def note(self, text: str) -> None:
        """Inform the operator: /health and the log show the text. From any thread."""
        log.warning("%s", text)
        self.notes.append(text)

    def _follow(self) -> None:
        """Runs in the tail thread. Waits for a cluster that does not answer; any other error ends the service."""
        try:
            while not self._stopping.is_set():
                try:
                    self._read_one_source()
                except ClusterError as error:
                    self.note(f"{type(error).__name__}: {error}")
                    self._stopping.wait(REOPEN_S)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.critical("The view has failed: %s", self.failure, exc_info=error)
        finally:
            self._tell(self.ended.set)

    def _read_one_source(self) -> None:
        """Read a source until it is stale; after that, the view is not ready until the next one has caught up."""
        source = self._open_source()
        try:
            self._ready, self._positions, self._saved = False, {}, {}
            self._tell(self.feed.cut_all, "restarted")
            self._goal = dict(source.ends())
            self._materializer.restoring(into_empty=not self._store.offsets())
            with ThreadPoolExecutor(2, "view-beside") as beside:
                while not self._stopping.is_set() and not source.stale():
                    self._step(source, beside)
        finally:
            self._writing = self._looking = None  # both have ended: the executor has waited for them
            source.close()

    def _step(self, source: Source, beside: Executor) -> None:
        if self._ready:
            self._serve(source)
        else:
            self._restore(source, beside)
        now = time.monotonic()
        if self._looking is not None and self._looking.done():
            self._look(self._looking, now)
            self._looking = None
        if self._looking is None and now >= self._look_at:
            self._look_at = now + LOOK_S
            # In another thread: two requests to the broker take up to 60 ms when it is busy, which would delay events.
            self._looking = beside.submit(lambda: (source.ends(), source.high_watermarks()))
        if self._ready and now >= self._expire_at:
            self._expire(now)

    def _restore(self, source: Source, beside: Executor) -> None:
        """Handle a long batch, which is written while the next one is read (saves a third of the time)."""
        records = source.poll(RESTORING_RECORDS, POLL_S, RESTORING_BYTES)
        positions = dict(source.positions())
        facts = self._materializer.read(records)
        self._settle()  # the store must hold what folding looks up
        if records:
            folded = self._materializer.fold(facts)
            write = partial(self._store.apply, folded.rows, self._moved(positions), folded.tenants)
            self._writing = beside.submit(write), folded.changed, positions
            self._saved = positions
        else:
            self._publish((), positions)
        if self._at_goal(positions):
            self._settle()

    def _settle(self) -> None:
        """Wait until the current batch is written, then publish its positions. Raises the error of the write."""
        if self._writing is not None:
            (written, changed, positions), self._writing = self._writing, None
            written.result()
            self._publish(changed, positions)

    def _serve(self, source: Source) -> None:
        records = source.poll(SERVING_RECORDS, POLL_S, SERVING_BYTES)
        positions = dict(source.positions())
        feed: list[Heard] | None = [] if self.feed.listening else None
        changed: Sequence[str] = ()
        if records:
            changed = self._materializer.apply(records, self._moved(positions), feed)
            self._saved = positions
        self._publish(changed, positions)
        # Listeners that registered before the positions were published must get this batch, too.
        if records and self.feed.listening:
            self._feed(self._materializer.heard_again(records) if feed is None else feed)

    def _moved(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """The positions that are not saved yet: five topics have many, and a short batch moves few."""
        saved = self._saved
        return {at: offset for at, offset in positions.items() if saved.get(at) != offset}

    def _at_goal(self, positions: Mapping[Partition, int]) -> bool:
        return all(positions.get(at, 0) >= end for at, end in self._goal.items())

    def _publish(self, changed: Sequence[str], positions: Mapping[Partition, int]) -> None:
        """Publish the positions that the store now contains, and wake the waiters for them."""
        before, self._positions = self._positions, positions
        if not self._ready and self._at_goal(positions):
            self._ready = True
            self._materializer.restoring(into_empty=False)
            self._tell(self.caught_up.set)
            moved = list(positions)
        else:
            moved = [at for at, offset in positions.items() if offset != before.get(at)]
        keys = self.watchers.awaited([*changed, *moved])
        if keys:
            self._tell(self.watchers.wake, keys)
        if self._accepted and moved:
            self._tell(self._forget_accepted)

    def _feed(self, events: Sequence[Heard]) -> None:
        """Hand events to the listeners, always after the positions were published."""
        if self.feed.may_hand(events):
            self._tell(self.feed.deliver, events, self.status_positions())
        else:
            self._tell(self.feed.cut_all, "overrun")

    def _forget_accepted(self) -> None:
        for task_id, (token, _) in list(self._accepted.items()):
            if self._positions.get((token.topic, token.partition), 0) > token.offset:
                del self._accepted[task_id]

    def _look(self, looked: Future[tuple[Mapping[Partition, int], Mapping[Partition, int]]], now: float) -> None:
        """Record the ends of the log, and save positions that only moved past transaction markers."""
        try:
            ends, highs = looked.result()
        except Unreachable:
            return  # `looked_s_ago` grows: how far the view is behind is unknown
        held = self._ends.held_since
        self._ends = _Ends(
            lag=sum(max(0, end - self._positions.get(at, 0)) for at, end in ends.items()),
            looked_at=now,
            held_since={
                at: held[at] if at in held and held[at][0] == end else (end, now)
                for at, end in ends.items()
                if end < highs.get(at, end)
            },
        )
        if self._ready and self._positions != self._saved:
            self._store.apply([], self._moved(self._positions))
            self._saved = self._positions

    def _expire(self, now: float) -> None:
        wall_ms = now_ms()
        status_ms, requests_ms = self._retention
        gone = self._store.expire(
            0 if status_ms is None else wall_ms - status_ms,
            unstarted_before_ms=0 if requests_ms is None else wall_ms - requests_ms,
            rows_max=EXPIRE_ROWS,
        )
        self._expire_at = now if gone == EXPIRE_ROWS else now + EXPIRE_S

    def _tell(self, what: Callable[..., Any], *arguments: Any) -> None:
        assert self._loop is not None, "running() was not entered"
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            assert self._loop.is_closed(), "only a closed loop refuses"
