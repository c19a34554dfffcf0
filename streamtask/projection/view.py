"""The view: follows the topics in one thread, answers from the store, and knows how fresh its answers are.

    tail thread:  source.poll → Materializer.apply (one local transaction) → positions → wake those who wait
                                                                              → the live feed (feed.py)
    event loop:   get, page, changed, fresh, health; never touches Kafka

Invariants. `positions` is published only after the store holds everything below it: whoever has seen a position finds
the facts. `ready` is set once, when every partition has reached the end it had at the start. A batch has at most
SERVING_RECORDS while requests are served; how long it holds the interpreter is server.SWITCH_S's to say.
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

SERVING_RECORDS = 500  # so many are written in one transaction of the store
RESTORING_RECORDS = 50_000  # more events of a task in one batch are one row; 60 MB, as much again for what is written
# Of values: two batches are held in a restore, and what is read of them. Records of 500 bytes and less, the usual ones, reach
# their number first.
RESTORING_BYTES = 25_000_000
SERVING_BYTES = 4_000_000
POLL_S = 0.1
LOOK_S = 2.0  # between two looks at the ends of the log
EXPIRE_S = 30.0  # between two looks for forgotten tasks
EXPIRE_ROWS = 500  # per slice, between two batches
STATS_S = 1.0  # counts are kept for this long: they scan an index
ACCEPTED_MAX = 10_000
NOTES_MAX = 20
REOPEN_S = 1.0  # between two attempts to open the topics
JOIN_S = 10.0

log = logging.getLogger("streamtask.projection")

_ENDED = frozenset(status.value for status in ENDED)


def now_ms() -> int:
    """The wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Reading(Protocol):
    """Reads partitions from given offsets on; kafka.tail.Tail is one. Used by one thread at a time."""

    def poll(self, records_max: int, timeout_s: float, bytes_max: int | None = None) -> Sequence[Record]:
        """Up to records_max records (and about bytes_max of values), as soon as there are any; [] after timeout_s."""

    def positions(self) -> Mapping[Partition, int]:
        """Next offset of every partition, behind everything that poll has returned."""

    def ends(self) -> Mapping[Partition, int]:
        """The offset that every partition can be read to now (read committed)."""

    def close(self) -> None: ...


class Source(Reading, Protocol):
    """What the view reads. Used by the tail thread alone."""

    def high_watermarks(self) -> Mapping[Partition, int]:
        """The offset behind the last record of every partition, whether it can be read yet or not."""

    def stale(self) -> bool:
        """True when the topics are no longer those that were opened: close this one, open another."""


OnGap = Callable[[Partition, int, int], None]  # (place, wanted, found): the log no longer holds `wanted`
OpenPast = Callable[[Mapping[Partition, int], OnGap], Reading]


class Retention(NamedTuple):
    """How long the topics keep a task, in milliseconds; None = for ever."""

    status_ms: int | None = None
    requests_ms: int | None = None


class Token(NamedTuple):
    """A point in the log that an answer has to be as fresh as: `high-3@12345`, the place of a request record."""

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
    """What the last look at the log showed. held_since: when a partition's readable end was first seen standing below
    its last record: somebody's transaction is open."""

    lag: int = 0
    looked_at: float = 0.0
    held_since: dict[Partition, tuple[int, float]] = field(default_factory=dict)


class ViewService(HasLifecycle):
    """One view over one prefix. `running` starts and ends it; `store` is closed by whoever made it.

    open_past  reads what a stream resumes over; None: only streams that need not be read again can be resumed
    reader     makes JSON of status events in other formats; lenient: of requests and control messages
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
        self.notes: deque[str] = deque(maxlen=NOTES_MAX)  # what the operator should know, the latest last
        self.failure: str | None = None
        self.ended = asyncio.Event()  # the tail thread is over: stopped, or failed
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
        """The latest that is known of a canonical task_id."""
        row = self._store.get(task_id)
        if row is None and self._accepted:
            held = self._accepted.get(task_id)
            return None if held is None else held[1]
        return row

    def body(self, task_id: str) -> tuple[bytes, int] | None:
        """The body and the version of what `get` finds."""
        found = self._store.body(task_id)
        if found is None and self._accepted:
            held = self._accepted.get(task_id)
            return None if held is None else (held[1].body, held[1].version)
        return found

    async def page(self, filter: Filter, cursor: Cursor | None, limit: int) -> Page:
        """As Store.list, off the event loop."""
        return await asyncio.to_thread(self._store.list, filter, cursor, limit)

    async def changed(self, task_id: str, after_version: int | None, timeout_s: float) -> Row | None:
        """The row once its version is above `after_version` (None: once it has ended), else as it is after timeout_s.

        A task that has ended is given at once. Raises TooManyWaiters.
        """

        def seen() -> bool:
            row = self.get(task_id)
            return row is not None and (
                row.status in _ENDED or (after_version is not None and row.version > after_version)
            )

        await self._wait(task_id, seen, timeout_s)
        return self.get(task_id)

    async def fresh(self, token: Token, timeout_s: float) -> bool:
        """Wait until the record at `token` is folded; False when it is not after timeout_s. Raises TooManyWaiters.

        Before the view is ready nothing is fresh: what ended long ago may not have been read yet.
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
        """Wait until this partition of the status topic is read up to `offset`; False when it is not after timeout_s."""
        place = (self.names.status, partition)
        return await self._wait(place, lambda: self._ready and self._positions.get(place, 0) >= offset, timeout_s)

    def known(self, task_ids: Collection[str]) -> dict[str, Known]:
        """What folding knows of these tasks. From any thread."""
        return self._store.known(task_ids)

    async def landed(self, token: Token, row: Row, timeout_s: float) -> bool:
        """Wait until a request that was just acknowledged is in the view. If that takes longer than timeout_s, `get`
        answers with `row` until it is: a GET after a POST is never a 404."""
        if await self.fresh(token, timeout_s if self._ready else 0.0):  # a restore takes longer than anybody waits
            return True
        if len(self._accepted) >= ACCEPTED_MAX:
            self._accepted.popitem(last=False)
        self._accepted[row.task_id] = (token, row)
        return False

    def positions(self) -> Mapping[Partition, int]:
        """Next offset of every partition: everything below is in the store. From any thread."""
        return self._positions

    async def stats(self) -> dict[str, Any]:
        """Counts by status and what was read; the counts are at most a second old."""
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
        """State, lag in records, and for how long the read-committed end has been standing below the log's end."""
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
                    # Registered first, looked then: see watch.py.
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
        """Follow the topics. Like `stop`, on the event loop. Raises RuntimeError when it was started or stopped before."""
        self._life.start(self._begin)

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Let everybody who waits go, and end the tail thread. The loop stands still while this waits for it."""
        self._life.stop(self._end, timeout_s)
        if self.started:
            self._thread.join(timeout_s)

    def _end(self) -> None:
        self._stopping.set()
        self.watchers.wake_all()
        self.feed.stop()

    def note(self, text: str) -> None:
        """Tell the operator: /health shows it, the log has it. From any thread."""
        log.warning("%s", text)
        self.notes.append(text)

    def _follow(self) -> None:
        """The tail thread. A cluster that does not answer is waited for; anything else ends the service."""
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
        """Until it is stale: then nothing is ready any more until the next one has caught up."""
        source = self._open_source()
        try:
            self._ready, self._positions, self._saved = False, {}, {}
            self._tell(self.feed.cut_all, "restarted")
            self._goal = dict(source.ends())
            with ThreadPoolExecutor(2, "view-beside") as beside:
                while not self._stopping.is_set() and not source.stale():
                    self._step(source, beside)
        finally:
            self._writing = self._looking = None  # are over: the executor has waited for them
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
            # Beside: the broker is asked twice, up to 60 ms on a busy one, for which no event would be shown.
            self._looking = beside.submit(lambda: (source.ends(), source.high_watermarks()))
        if self._ready and now >= self._expire_at:
            self._expire(now)

    def _restore(self, source: Source, beside: Executor) -> None:
        """A long batch; it is written while the next one is read (a third of the time)."""
        records = source.poll(RESTORING_RECORDS, POLL_S, RESTORING_BYTES)
        positions = dict(source.positions())
        facts = self._materializer.read(records)
        self._settle()  # what is known must be in the store
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
        """The batch that is being written is: answers may be that fresh. Raises what went wrong."""
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
        # Whoever began to listen before the positions were published must find this batch, too.
        if records and self.feed.listening:
            self._feed(self._materializer.heard_again(records) if feed is None else feed)

    def _moved(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """Those that are not saved yet: five topics have many, and a short batch moves few."""
        saved = self._saved
        return {at: offset for at, offset in positions.items() if saved.get(at) != offset}

    def _at_goal(self, positions: Mapping[Partition, int]) -> bool:
        return all(positions.get(at, 0) >= end for at, end in self._goal.items())

    def _publish(self, changed: Sequence[str], positions: Mapping[Partition, int]) -> None:
        """Let the answers be as fresh as the store is."""
        before, self._positions = self._positions, positions
        if not self._ready and self._at_goal(positions):
            self._ready = True
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
        """To those who listen; after the positions were published, never before."""
        if self.feed.may_hand(events):
            self._tell(self.feed.deliver, events, self.status_positions())
        else:
            self._tell(self.feed.cut_all, "overrun")

    def _forget_accepted(self) -> None:
        for task_id, (token, _) in list(self._accepted.items()):
            if self._positions.get((token.topic, token.partition), 0) > token.offset:
                del self._accepted[task_id]

    def _look(self, looked: Future[tuple[Mapping[Partition, int], Mapping[Partition, int]]], now: float) -> None:
        """Where the log ends now; and keep positions that moved over transaction markers alone."""
        try:
            ends, highs = looked.result()
        except Unreachable:
            return  # `looked_s_ago` grows: nobody knows how far behind the view is
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
