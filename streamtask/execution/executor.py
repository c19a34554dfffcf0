"""Runs handlers: one event loop in its own thread, and a pool of plain threads. One execution in, one Outcome out.

The owner thread hands over batches (`submit`, `stop_executions`) and takes batches back (`drain`); it sleeps in `wait`. Both
hand-overs are bounded, because an execution is in at most one of them and the engine bounds executions by slots.

Always true: every submitted execution yields exactly one Outcome, whatever its handler does, unless the process dies; the
loop outlives every handler; an execution is open (its slot is busy) until its handler has really ended, except for an
abandoned coroutine (event_loop.py); parameters are validated right before the call; the app's lifespan opens before the
first call and closes after the last.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import structlog

from streamtask.domain.model import BANDS, Band, ErrorCode, HandlerKind, Outcome
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.errors import LifespanError
from streamtask.execution import outcomes
from streamtask.execution.event_loop import Coroutines
from streamtask.execution.execution import Execution, OnEvent
from streamtask.execution.process_pool.pipe import job_of
from streamtask.execution.process_pool.pool import Pool
from streamtask.execution.process_pool.quarantine import Quarantine
from streamtask.execution.process_pool.settings import Children
from streamtask.execution.process_pool.waiting import Job
from streamtask.execution.stack_location import Running, Stragglers, where
from streamtask.handlers.registry import Context, Handler, Lifespan
from streamtask.observability.tracing import Attempts

Done = list[tuple[int, Outcome]]
Progress = list[tuple[int, float, str | None]]

_ASYNC, _PROCESS = HandlerKind.ASYNC, HandlerKind.PROCESS  # see core/shard.py
PATIENCE_S = 5.0  # an execution that runs on this long after its stop is reported; a coroutine is abandoned
LOOK_S = 0.25  # between two checks of stopped executions and of the loop
STOP_SPARE_S = 10.0  # extra time: children that are killed, a lifespan that hangs
PROGRESS_WAKE_S = 0.05  # progress of one execution wakes the owner at most this often


class Executor(HasLifecycle):
    """The handlers of one worker process.

    handlers    by task type (app.registry)
    threads     how many plain functions run at once; the others wait, those of the first band before the rest
    coroutines  the same for `async def`
    lifespan    opened on the loop; the value that it yields is ctx.state
    on_event    receives facts for the operator, from any thread; default: structlog warnings
    children    child processes for process handlers and quarantined tasks; None: there are none
    attempts    makes the spans of executions; None: no spans

    submit, stop_executions, drain and wait belong to the owner thread; any thread may call the rest.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        threads: int = 16,
        coroutines: int = sys.maxsize,
        lifespan: Lifespan | None = None,
        bands: Sequence[Band] = BANDS,
        on_event: OnEvent | None = None,
        patience_s: float = PATIENCE_S,
        children: Children | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._handlers = handlers
        self._attempts = attempts
        self.pool = None if children is None else Pool(children, self)
        self._quarantine = None if children is None else Quarantine(replace(children, count=0), self)
        self._threads_max = threads
        self._bands = tuple(bands)
        self._on_event = on_event or _warn
        self._executions: dict[int, Execution] = {}
        self._done: deque[tuple[int, Outcome]] = deque()
        self._begun: deque[int] = deque()  # bounded by the executions that are open
        self._progress: dict[int, tuple[float, str | None]] = {}
        # What waits for a thread, of the first band and of the others. Each has one True in _thread_turns, and False ends a
        # thread. All of it is bounded by what the core starts ahead (core/slot_sharing.py).
        self._thread_work: tuple[deque[Execution], deque[Execution]] = (deque(), deque())
        self._thread_turns: SimpleQueue[bool] = SimpleQueue()  # bounded by the same
        self._waiting: dict[int, Execution] = {}  # still queued there; the thread or the stop that pops one owns it
        self._threads: list[threading.Thread] = []
        self._patience_s = patience_s
        self._look_s = 0.0  # when the next look is due
        self._stopped: deque[tuple[float, Execution]] = deque()  # of threads and children: (overdue at, execution)
        self._overdue: dict[int, Execution] = {}
        self._blocked_s = 0.0
        self._blocked_at = ""
        self._bell = threading.Lock()  # held while there is no signal; waking a Lock is 5 times faster than an Event
        self._bell.acquire()
        self._rung = False
        self._coroutines = Coroutines(
            lifespan=lifespan,
            listener=self,
            patience_s=patience_s,
            limit=coroutines,
        )
        self._life = Lifecycle("The executor")
        self._loop_ends = False
        self._all_ended = threading.Event()
        self.failure: BaseException | None = None  #: the lifespan broke: from now on no handler should be started

    # --- The owner's side ---------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = 60.0) -> None:
        """Start the loop and open the lifespan. Raises LifespanError; then nothing runs any more.

        Raises RuntimeError if it was started or stopped before.
        """
        self._life.start(self._begin)
        opened = self._coroutines.await_opened(timeout_s)
        if self._life.stopping:
            raise LifespanError("The executor was stopped while its lifespan opened. No task was started.")
        if opened and self.failure is None:
            return
        failure = self.failure
        self.stop()
        if failure is None:
            raise LifespanError(f"The app's lifespan did not open within {timeout_s:g} s. No task was started.")
        name = type(failure).__name__
        raise LifespanError(f"The app's lifespan failed to open: {name}: {failure}. No task was started.") from failure

    def _begin(self) -> None:
        self._coroutines.start()
        for pool in self._pools():
            pool.start()

    def _pools(self) -> list[Pool]:
        return [pool for pool in (self.pool, self._quarantine) if pool is not None]

    def submit(self, starts: Sequence[Start]) -> None:
        """Start these executions, with one wake-up of the loop for all."""
        assert not self._loop_ends, "submit after stop"
        now = time.monotonic()
        batch: list[Execution] = []
        jobs: dict[Pool, list[Job]] = {}
        report, state, bands = self._report, self._coroutines.state, self._bands
        span_of = None if self._attempts is None else self._attempts.beginner()
        for start in starts:
            assert start.token not in self._executions, f"token {start.token} is used twice"
            request = start.record.request
            handler = None if request is None else self._handlers.get(request.task_type)
            if handler is None:
                self._refuse(start)
                continue
            execution = Execution(start, handler, now, report, state, bands)
            if span_of is not None:
                execution.span = span_of(start)
            self._executions[start.token] = execution
            kind = handler.kind
            if kind is _PROCESS or (start.group and self.pool is not None):
                pool, job = self._for_child(execution, start, handler)
                jobs.setdefault(pool, []).append(job)
            elif kind is _ASYNC:
                batch.append(execution)
            else:
                self._to_thread(execution)
        if batch:
            self._coroutines.begin(batch)
        for pool, of_pool in jobs.items():
            pool.submit(of_pool)

    def stop_executions(self, stops: Sequence[Stop]) -> None:
        """Stop these executions; those that have already ended are ignored."""
        batch: list[Execution] = []
        overdue_s = time.monotonic() + self._patience_s
        for stop in stops:
            execution = self._executions.get(stop.token)
            if execution is not None:
                execution.stop(stop.reason)
                if execution.pool is not None:
                    execution.pool.stop_job(stop.token, stop.reason)
                    self._stopped.append((overdue_s, execution))
                elif execution.handler.kind is HandlerKind.ASYNC:
                    batch.append(execution)
                elif self._waiting.pop(stop.token, None) is not None:
                    self.execution_ended(execution, outcomes.not_begun(stop.reason))
                else:
                    self._stopped.append((overdue_s, execution))
        if batch and not self._loop_ends:
            self._coroutines.cancel(batch)

    @property
    def state(self) -> Any:
        """The value that the lifespan yielded."""
        return self._coroutines.state

    @property
    def ended(self) -> bool:
        """True when `drain` has an outcome to return."""
        return bool(self._done)

    def drain(self) -> tuple[Done, Progress]:
        """Return what has ended since the last call, and the latest progress of the others (sometimes also of one that has
        just ended: ignore that).
        """
        now_s = time.monotonic()
        if now_s >= self._look_s:
            self._look(now_s)
        # Popped one by one, not swapped for an empty deque: a thread that is about to append holds the old object.
        take_done = self._done.popleft
        done = [take_done() for _ in range(len(self._done))]
        return done, self._take_progress() if self._progress else []

    def _take_progress(self) -> Progress:
        taken, take = [], self._progress.popitem
        for _ in range(len(self._progress)):
            try:
                token, (fraction, message) = take()
            except KeyError:
                break  # executions that have just ended removed theirs: there are fewer than before
            taken.append((token, fraction, message))
        return taken

    def begun(self) -> list[int]:
        """The executions that are `late` and `timed` and have begun since the last call. Call it before drain: they may have
        ended.
        """
        return [self._begun.popleft() for _ in range(len(self._begun))] if self._begun else []

    def wait(self, timeout_s: float) -> bool:
        """Sleep until something has ended or progressed, or wake() was called. False: the time is up."""
        sleep = timeout_s > 0 and not self._done
        woken = self._bell.acquire(timeout=timeout_s) if sleep else self._bell.acquire(blocking=False)
        # Cleared before the caller drains: a thread that signals from now on may have added what that drain misses.
        self._rung = False
        return woken or bool(self._done)

    def wake(self) -> None:
        """End a wait(), now or the next one. Safe in any thread and in signal handlers."""
        if not self._rung:
            self._rung = True
            try:
                self._bell.release()
            except RuntimeError:
                pass  # two threads signalled at once: it is signalled

    def __len__(self) -> int:
        """The number of open executions."""
        return len(self._executions)

    def running(self) -> list[Running]:
        """Every open execution and where it is, for stack dumps. The places are a best effort."""
        now = time.monotonic()
        frames = sys._current_frames()
        return [
            Running(
                token=one.token,
                task_id=one.task_id,
                task_type=one.handler.name,
                kind=one.handler.kind,
                attempt=one.attempt,
                seconds=now - one.started_s,
                stopped=one.stop_reason,
                where=where(one.thread_id, one.task, frames),
            )
            for one in list(self._executions.values())
        ]

    def stragglers(self) -> Stragglers:
        """Executions that should have ended but run on, as of the last look."""
        loop = self._coroutines
        return Stragglers(len(self._overdue), loop.abandoned, loop.abandoned_total, self._blocked_s, self._blocked_at)

    def _look(self, now_s: float) -> None:
        """Check stopped executions and the loop; report what is overdue, once."""
        self._look_s = now_s + LOOK_S
        while self._stopped and self._stopped[0][0] <= now_s:
            _, execution = self._stopped.popleft()
            if not execution.ended and not execution.reported_overdue:
                execution.reported_overdue = True
                self._overdue[execution.token] = execution
                if execution.ended:  # just now, by another thread that found nothing to remove
                    self._overdue.pop(execution.token, None)
                    continue
                place = where(execution.thread_id, None, sys._current_frames())
                self._on_event("handler_ignores_stop", {**execution.fields(), "where": place})
        blocked_s = self._coroutines.blocked_s(now_s)
        if blocked_s < self._patience_s or blocked_s <= 0:
            if self._blocked_at:
                self._on_event("loop_answers_again", {"seconds": round(self._blocked_s, 3)})
            self._blocked_s, self._blocked_at = 0.0, ""
            return
        self._blocked_s = blocked_s
        if not self._blocked_at:
            place, execution_ = self._coroutines.at_work()
            self._blocked_at = place or "(not known)"
            whose = {} if execution_ is None else execution_.fields()
            self._on_event("loop_blocked", {**whose, "seconds": round(blocked_s, 3), "where": self._blocked_at})

    def stop(self, timeout_s: float = 0.0) -> bool:
        """End everything: open executions are stopped and awaited, then the lifespan is closed.

        Outcomes remain available to drain. True if every handler ended in time; threads and tasks that run on are left
        behind (they die with the process).
        """
        deadline = time.monotonic() + timeout_s
        self._life.stop(lambda: self._end(deadline), timeout_s + STOP_SPARE_S)
        return not self._executions

    def _end(self, deadline: float) -> None:
        self.stop_executions([Stop(token, StopReason.REVOKE) for token in list(self._executions)])
        self._loop_ends = True
        if self._executions:
            self._all_ended.wait(max(0.0, deadline - time.monotonic()))
        for _ in self._threads:
            self._thread_turns.put(False)
        for pool in self._pools():
            pool.stop(max(0.0, deadline - time.monotonic()))
        if not self._coroutines.stop(max(0.0, deadline - time.monotonic())):
            self._on_event("lifespan_left_open", {"running": len(self._executions)})

    # --- Both sides ---------------------------------------------------------------------------------------------------

    def _refuse(self, start: Start) -> None:
        request = start.record.request
        if request is None:
            outcome = outcomes.refused(ErrorCode.INVALID_REQUEST, "the request could not be read")
        else:
            outcome = outcomes.refused(ErrorCode.UNKNOWN_TASK_TYPE, f"no handler for {request.task_type!r}")
        self._done.append((start.token, outcome))
        self.wake()

    def execution_ended(self, execution: Execution, outcome: Outcome) -> None:
        """See LoopListener; called by the thread that ran it."""
        if execution.ended:
            return
        execution.end()
        token = execution.token
        if execution.woke_s:
            self._progress.pop(token, None)
        self._overdue.pop(token, None)
        del self._executions[token]
        if execution.span is not None:
            execution.span.end(outcome, execution.stop_reason)
        if self._loop_ends and not self._executions:
            self._all_ended.set()
        self._done.append((token, outcome))
        if not self._rung:
            self.wake()

    def execution_begins(self, execution: Execution) -> None:
        """See LoopListener; called by the thread that will run it."""
        execution.begin()
        if execution.timed:
            self._begun.append(execution.token)
            self.wake()

    def lifespan_broke(self, error: BaseException) -> None:
        """See LoopListener."""
        self.failure = error
        self.wake()

    def children_failed(self, error: Exception) -> None:
        """See Listener."""
        self.failure = error
        self.wake()

    def happened(self, name: str, fields: Mapping[str, Any], /) -> None:
        """See LoopListener."""
        self._on_event(name, fields)

    def _report(self, context: Context, fraction: float, message: str | None) -> None:
        assert isinstance(context, Execution)
        self._progress[context.token] = (fraction, message)
        now = time.monotonic()
        if now - context.woke_s >= PROGRESS_WAKE_S:
            context.woke_s = now
            self.wake()

    # --- Threads ------------------------------------------------------------------------------------------------------

    def _to_thread(self, execution: Execution) -> None:
        if len(self._threads) < self._threads_max:
            thread = threading.Thread(target=self._work, name=f"streamtask-thread-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._waiting[execution.token] = execution
        self._thread_work[1 if execution.record.band else 0].append(execution)
        self._thread_turns.put(True)

    def _work(self) -> None:
        """One thread: takes work until there is none, sleeps, takes again.

        It takes one at a time: a batch would wait behind its slowest execution, and taking costs 0.1 µs while there is work.
        """
        my_turn = self._thread_turns.get
        ident = threading.get_ident()
        while my_turn():
            execution = self._next_of_threads()
            if self._waiting.pop(execution.token, None) is None:
                del execution
                continue  # stopped before its turn
            execution.thread_id = ident
            if execution.late:
                self.execution_begins(execution)
            began_s = time.perf_counter()
            # Its own context: what a handler binds there must not reach the next one (0.1 µs).
            context = contextvars.Context() if execution.span is None else execution.span.context
            outcome = context.run(outcomes.of_call, execution.handler, execution)
            outcome.ran_ms = (time.perf_counter() - began_s) * 1_000
            self.execution_ended(execution, outcome)
            del execution, outcome, context  # otherwise the last task stays in memory while this thread sleeps

    def _next_of_threads(self) -> Execution:
        """There is one, since each has its turn. It may be added to one queue while this looks into the other."""
        while True:
            for work in self._thread_work:
                try:
                    return work.popleft()
                except IndexError:
                    pass

    # --- Children -----------------------------------------------------------------------------------------------------

    def _for_child(self, execution: Execution, start: Start, handler: Handler) -> tuple[Pool, Job]:
        """Process handlers go to the pool (suspects among them alone), other suspects to the child of their group."""
        alone = handler.kind is HandlerKind.PROCESS
        pool = execution.pool = self.pool if alone else self._quarantine
        assert pool is not None, f"{handler.name!r} needs a child, and there are none"
        carried = () if execution.span is None else execution.span.carried
        # Do not share a child that may have to be replaced after this execution.
        shares = start.shares and handler.max_tasks is None and handler.memory_mb is None
        return pool, Job(
            start.token,
            handler.name,
            job_of(start, handler.memory_mb, carried),
            handler.max_tasks,
            own=alone and start.group > 0,
            shares=shares,
            timed=start.timed,
            lead=start.record.band == 0,
            group=0 if alone else start.group,
        )

    def child_ended(self, token: int, outcome: Outcome) -> None:
        """See Listener; the same for the next two."""
        execution = self._executions.get(token)
        if execution is not None:
            self.execution_ended(execution, outcome)

    def child_begun(self, token: int) -> None:
        self._begun.append(token)
        self.wake()

    def child_reported(self, token: int, fraction: float, message: str | None) -> None:
        execution = self._executions.get(token)
        if execution is not None:
            self._report(execution, fraction, message)


def _warn(name: str, fields: Mapping[str, Any]) -> None:
    structlog.get_logger("streamtask.execution.executor").warning(name, **fields)
