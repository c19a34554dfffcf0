"""A worker without a broker: the real engine and the real executor over a log in memory, on a clock that can skip.

    client     → append, cancel     encoded records, as a broker would receive them
    own thread → turn.turn          the turns of core/; its requests for I/O are answered from memory and never fail
    executor   → handlers           lifespan, context, validation, threads and event loop are a worker's own
    commit     → watches            status events, encoded and decoded as on Kafka

It uses the engine because retries, limits, expiry, cancellation, priorities, ordering keys and duplicates are decided in
core/. A simpler loop would be a second implementation of them, which could be wrong in a test.

Time is real time plus the time skipped. It skips to the next time at which something is due (a backoff, `not_before`,
`expires_at`, the deadline of a wait) when no handler runs, nothing is left to do, and at least one caller waits for a
task. While no call waits it does not skip, so a test can act between two events, such as cancelling a task that waits
for its retry.

Always true: one thread owns engine and executor; `_lock` guards everything that clients touch; time does not skip on
behalf of a caller that has not yet seen the latest event of its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from streamtask.app import App
from streamtask.codec import RequestDecoder, decode_status
from streamtask.codec.formats import Encoder
from streamtask.config import EngineConfig, Settings
from streamtask.core import turn
from streamtask.core.engine import Engine
from streamtask.domain.model import HandlerKind, RequestRecord, TaskResponse, now_ms
from streamtask.domain.ports import (
    Answer,
    Ask,
    AwaitExecutions,
    CommitPlain,
    CommitPlan,
    Committed,
    Effect,
    EndTransaction,
    Executions,
    Facts,
    Fetch,
    Flush,
    HandOver,
    ListOffsets,
    LocalAsk,
    Note,
    Now,
    Pause,
    Produce,
    ReadControl,
    ReadSettled,
    Recalled,
    RecallStatus,
    Resume,
    Seat,
    SendOffsets,
    Settled,
    Start,
    Stop,
    TakeExecutions,
    TakeFacts,
    TakeRecords,
)
from streamtask.errors import StreamtaskError
from streamtask.execution.executor import Executor
from streamtask.handlers.registry import Handler
from streamtask.kafka.admin_session import MESSAGE_MAX_BYTES
from streamtask.projection.materialize import created_row
from streamtask.worker.result_size import EventSize, take_reports

OWNER = "in-memory"
SHARD = 0  # the only partition: the offsets of each band are 0, 1, 2, …
RECORDS_MAX = 500  # of one turn
REST_S = 60.0  # when nothing is due: a client, the end of a handler or `stop` wakes the thread earlier
CLOSE_S = 2.0  # grace period at the end for handlers that still run
JOIN_S = 10.0

Headers = list[tuple[str, bytes]] | None
Published = tuple[int, TaskResponse]  # offset of the event, and the event


class Sent(NamedTuple):
    """A request as the log holds it."""

    band: int
    offset: int
    timestamp_ms: int
    key: bytes
    value: bytes
    headers: Headers


class Watch(Protocol):
    """Notified of every commit, on the worker's thread."""

    def published(self, events: Sequence[Published]) -> None: ...

    def ended(self, error: StreamtaskError) -> None:
        """No more events will come."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A caller that waits for the next event of a task.

    seen         offset of the last event of the task that the caller knows
    deadline_ms  on the monotonic clock, skipped time included; None: no deadline
    limit        the asyncio timeout that the caller waits under, on its loop
    """

    task_id: str
    seen: int
    deadline_ms: int | None
    loop: asyncio.AbstractEventLoop
    limit: asyncio.Timeout
    left: bool = False

    def expire(self) -> None:
        """Called from any thread."""
        call_soon(self.loop, self._time_out)

    def _time_out(self) -> None:
        if not self.left:
            self.limit.reschedule(self.loop.time())


class MemoryWorker:
    """See the module docstring. `running` starts and ends it; clients call everything else, from any thread."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings, self._names = app, settings, settings.topics
        bands = self._names.bands
        handlers = {name: _in_this_process(handler) for name, handler in app.registry.items()}
        self._executor = Executor(
            handlers,
            threads=settings.threads,
            coroutines=settings.concurrency,
            lifespan=app.lifespan,
            bands=bands,
        )
        config = EngineConfig(
            bands=bands,
            policies={name: handler.policy() for name, handler in handlers.items()},
            slots={HandlerKind.ASYNC: settings.concurrency, HandlerKind.THREAD: settings.threads},
            worker=f"{app.name}@memory",
            unknown_type_grace_ms=int(settings.unknown_type_grace_s * 1_000),
        )
        self._engine = Engine(config, OWNER, random.Random(0))  # a fixed seed: the same backoffs in every run
        self._decode = RequestDecoder(self._names, OWNER, compact=True).decode
        self._write = Encoder().status_writer(
            self._names.status,
            locale=settings.locale,
            worker=config.worker,
            tracebacks=settings.tracebacks == "events",
        )
        self._size = EventSize(lambda _within: MESSAGE_MAX_BYTES)
        self._size.look(0)
        self._plan: CommitPlan | None = None
        self._paused: set[int] = set()  # the paused bands
        self._controlled: list[int] = []
        self._recalled: list[tuple[int, int, Sequence[Recalled], bool]] = []
        self._stopping = False
        self._lock = threading.Lock()
        self._skipped_ms = 0
        self._log: list[Sent] = []
        self._ends = [0] * len(bands)
        self._unread: tuple[deque[Sent], ...] = tuple(deque() for _ in bands)
        self._cancelled: list[str] = []
        self._events_end = 0
        self._events: dict[str, list[Published]] = {}
        self._watches: list[Watch] = []
        self._waiters: list[_Waiter] = []
        self._failure: StreamtaskError | None = None
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The worker runs during the block. Raises LifespanError, and at the end the error that stopped the worker."""
        self._executor.start()
        thread = threading.Thread(target=self._run, name=f"streamtask-memory-{self._app.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping = True
            self._executor.wake()
            thread.join(CLOSE_S + JOIN_S)
        if self._error is not None:
            raise self._error
        assert not thread.is_alive(), f"the in-memory worker of {self._app.name!r} does not end"

    # --- For clients --------------------------------------------------------------------------------------------------

    def now(self) -> Now:
        """The wall clock and the monotonic clock, skipped time included."""
        return Now(now_ms() + self._skipped_ms, time.monotonic_ns() // 1_000_000 + self._skipped_ms)

    def append(self, requests: Sequence[tuple[int, bytes, bytes, Headers]]) -> list[int]:
        """Append (band, key, value, headers) of each request to the log, all before the worker sees the first one; returns
        their offsets. Raises StreamtaskError when the worker has ended."""
        with self._lock:
            self._refuse_if_ended()
            timestamp_ms = self.now().wall_ms
            offsets = []
            for band, key, value, headers in requests:
                sent = Sent(band, self._ends[band], timestamp_ms, key, value, headers)
                self._ends[band] += 1
                self._log.append(sent)
                self._unread[band].append(sent)
                offsets.append(sent.offset)
        self._executor.wake()
        return offsets

    def cancel(self, task_id: str) -> None:
        """Request the cancellation of a task. Raises StreamtaskError when the worker has ended."""
        with self._lock:
            self._refuse_if_ended()
            self._cancelled.append(task_id)
        self._executor.wake()

    def find_request(self, task_id: str) -> TaskResponse | None:
        """The task as CREATED, if a request with this id is in the log."""
        with self._lock:
            log = list(self._log)
        decode = RequestDecoder(self._names, OWNER).decode
        for sent in log:
            record = decode(sent.band, SHARD, *sent[1:])
            if record.task_id == task_id:
                return decode_status(created_row(record, self._names, self._settings.locale).body)
        return None

    @property
    def events_end(self) -> int:
        """The offset of the next status event."""
        return self._events_end

    def events(self, task_id: str) -> list[Published]:
        """The status events of a task so far, oldest first."""
        with self._lock:
            return list(self._events.get(task_id, ()))

    def subscribe(self, watch: Watch) -> None:
        """Notify this watch of every commit from now on. Raises StreamtaskError when the worker has ended."""
        with self._lock:
            self._refuse_if_ended()
            self._watches.append(watch)

    def unsubscribe(self, watch: Watch) -> None:
        with self._lock:
            self._watches = [one for one in self._watches if one is not watch]

    @contextlib.asynccontextmanager
    async def waiting(self, task_id: str, seen: int, deadline_s: float | None) -> AsyncIterator[None]:
        """A block in which a caller waits for an event of a task after offset `seen`; time may skip meanwhile.

        deadline_s  on the monotonic clock of `now`

        Raises TimeoutError at the deadline, StreamtaskError when the worker has ended.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            deadline_ms = None if deadline_s is None else round(deadline_s * 1_000)
            waiter = _Waiter(task_id, seen, deadline_ms, loop, limit)
            with self._lock:
                self._refuse_if_ended()
                self._waiters.append(waiter)
            self._executor.wake()
            try:
                yield
            finally:
                waiter.left = True
                with self._lock:
                    self._waiters = [one for one in self._waiters if one is not waiter]

    def _refuse_if_ended(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- The worker's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        text = "its block has ended"
        try:
            turn.drive(turn.assigned(self._engine, (SHARD,), self.now), self._answer)
            while not self._stopping:
                busy = turn.drive(turn.turn(self._engine, self.now), self._answer)
                if self._executor.failure is not None:
                    raise self._executor.failure
                if not busy:
                    self._rest()
        except BaseException as error:  # noqa: BLE001 the thread's last frame: raised again where the block ends
            self._error = error
            text = f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._failure = StreamtaskError(f"The in-memory worker of {self._app.name!r} has ended: {text}.")
                watches, self._watches = self._watches, []
            for watch in watches:
                watch.ended(self._failure)
            self._executor.stop(CLOSE_S)

    def _answer(self, ask: Ask | LocalAsk) -> Answer:
        match ask:
            case Fetch():
                return self._unread_now()
            case TakeRecords(bands):
                return self._take(bands)
            case TakeExecutions():
                return self._executions()
            case TakeFacts():
                return self._facts()
            case HandOver(effects):
                self._hand_over(effects)
            case AwaitExecutions(wait_ms):
                self._executor.wait(wait_ms / 1_000)
            case _:
                return self._perform(ask)
        return None

    def _unread_now(self) -> bool:
        return any(unread for band, unread in enumerate(self._unread) if band not in self._paused)

    def _take(self, bands: int | None) -> list[RequestRecord]:
        sent: list[Sent] = []
        with self._lock:
            for band, unread in enumerate(self._unread[:bands]):
                while unread and band not in self._paused and len(sent) < RECORDS_MAX:
                    sent.append(unread.popleft())
        return [self._decode(one.band, SHARD, *one[1:]) for one in sent]

    def _facts(self) -> Facts:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, []
        controlled, self._controlled = self._controlled, []
        recalled, self._recalled = self._recalled, []
        return Facts(cancelled, controlled, recalled, executions=self._executions())

    def _executions(self) -> Executions:
        return take_reports(self._executor, self._engine, self._size)

    def _perform(self, ask: Ask) -> Answer:
        match ask:
            case ListOffsets():
                return {(band, SHARD): Committed() for band in range(len(self._ends))}
            case ReadSettled():
                return {(band, SHARD): Settled(None, None, 0, 0) for band in range(len(self._ends))}
            case Produce(plan):
                self._plan = plan
            case EndTransaction():
                assert self._plan is not None, "nothing was produced"
                self._publish(self._plan)
            case CommitPlain() | Seat() | Flush() | SendOffsets():
                pass  # no other worker takes this shard over, so its offsets are never read
            case _:
                raise AssertionError(f"{ask} follows a fault, and memory has none")
        return None

    def _publish(self, plan: CommitPlan) -> None:
        """Publish the plan's events. Its dead letters are dropped: no client reads them."""
        tasks = [decode_status(self._write(event)) for event in plan.events]
        with self._lock:
            found = list(enumerate(tasks, self._events_end))
            self._events_end += len(found)
            for offset, task in found:
                self._events.setdefault(task.task_id, []).append((offset, task))
            watches = list(self._watches)
        for watch in watches:
            watch.published(found)

    def _hand_over(self, effects: list[Effect]) -> None:
        starts: list[Start] = []
        stops: list[Stop] = []
        for effect in effects:
            match effect:
                case Start():
                    starts.append(effect)
                case Stop():
                    stops.append(effect)
                case Pause(cells):
                    self._paused.update(band for band, _ in cells)
                case Resume(cells):
                    self._paused.difference_update(band for band, _ in cells)
                case ReadControl(shards):
                    self._controlled += shards
                case RecallStatus(shard, epoch):
                    self._recalled.append((shard, epoch, (), True))
                case Note():
                    pass  # for the operators of a real worker
                case _:
                    raise AssertionError(f"{effect} follows a fault, and memory has none")
        if starts:
            self._executor.submit(starts)
        if stops:
            self._executor.stop_executions(stops)

    # --- Time ---------------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Wait until something arrives or is due: skip to that time where it is allowed, otherwise sleep."""
        due_ms = self._engine.next_due_ms(self.now())
        with self._lock:
            if self._cancelled or self._controlled or self._recalled or self._unread_now():
                return
            mono_ms = self.now().mono_ms
            self._expire(mono_ms)
            waits = [] if due_ms is None else [due_ms]
            waits += [one.deadline_ms - mono_ms for one in self._waiters if one.deadline_ms is not None]
            if waits and not self._engine.running and any(map(self._up_to_date, self._waiters)):
                self._skipped_ms += max(0, min(waits))
                return
        self._executor.wait(max(1, min(waits)) / 1_000 if waits else REST_S)

    def _expire(self, mono_ms: int) -> None:
        """Ends the waits whose deadline has passed. The caller holds the lock."""
        over = [one for one in self._waiters if one.deadline_ms is not None and one.deadline_ms <= mono_ms]
        if over:
            self._waiters = [one for one in self._waiters if one not in over]
            for one in over:
                one.expire()

    def _up_to_date(self, waiter: _Waiter) -> bool:
        """Whether it has seen all events of its task; if not, it is about to go on, and may do anything. Under the lock."""
        events = self._events.get(waiter.task_id)
        return not events or events[-1][0] <= waiter.seen


def _in_this_process(handler: Handler) -> Handler:
    """A process handler as an async or thread handler; any other handler unchanged."""
    if handler.kind is not HandlerKind.PROCESS:
        return handler
    kind = HandlerKind.ASYNC if handler.is_async else HandlerKind.THREAD
    return replace(handler, kind=kind, memory_mb=None, max_tasks=None)


def call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Called from any thread. A closed loop has no callers left."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
