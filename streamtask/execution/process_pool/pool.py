"""The children of one worker: starts them, gives them executions, stops, kills and replaces them.

One thread owns the children and their pipes; other threads put calls for it into a queue. Each child has its own session, so
that a signal also reaches the processes that it has started.

    stop      STOP over `control`, SIGTERM to the group, after `grace_s` SIGKILL; the execution has ended when the child has
    death     of a child that was not stopped: Ending.LOST, only for its execution
    own       an execution that may kill its worker runs in a child that is started for it alone
    short     a child is handed several at once, and more while it works on them (waiting.py). It is asked to return those that
              it has not begun (SIGURG) when the first takes RECALL_S, one of them is stopped, or one of the lead band waits
    recycle   a child ends after `max_tasks` executions of a type with that option, after a MemoryError, after every stop

Always true: every submitted job yields exactly one outcome; a job is in one child or in none; of the jobs that a child has, it
has begun only the first, because it answers each before it begins the next; a job that is not short is in a child alone;
everything that a child has started is dead when its death is reported; a child that cannot start does not stop the pool until
START_TRIES starts in a row have failed, and then everything that waits gets that error.
"""

from __future__ import annotations

import math
import os
import secrets
import selectors
import signal
import sys
import threading
import time
from collections.abc import Sequence

from streamtask.domain.model import Ending, ErrorCode, Outcome
from streamtask.domain.ports import StopReason
from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.execution import outcomes
from streamtask.execution.process_pool import pipe, reaper
from streamtask.execution.process_pool.child_handle import CLOSED, Place, how_ended, launch, log_line, stopped
from streamtask.execution.process_pool.posted_calls import PostedCalls
from streamtask.execution.process_pool.reaper_client import Keeper
from streamtask.execution.process_pool.settings import Children, Listener
from streamtask.execution.process_pool.waiting import AHEAD_MS, Job, Waiting

DEAF_S = 0.25  # the end of a pipe is the first sign of a death; a child that still lives after this has closed it
START_TRIES = 5
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0  # between starts of a child that dies before it is ready
OVERTAKE_S = 0.02  # between two recalls for the lead band: each costs a child a moment without work
RECALL_S, RECALL_AGAIN_S = 0.05, 1.0  # a short one takes less; if it takes more, the others are better off elsewhere


class Pool(HasLifecycle):
    """The children of one worker: see the module docstring. `listener` is notified of what becomes of submitted jobs."""

    def __init__(self, children: Children, listener: Listener) -> None:
        self._settings = children
        self._count = children.count
        self._listener = listener
        self._on_event = children.on_event
        self._life = Lifecycle("The pool of child processes")
        self._mark = secrets.token_hex(8)
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Place] = {}
        self._idle: list[Place] = []
        self._pending = Waiting()
        self._lonely: dict[int, Job] = {}  # each waits for its own child
        self._by_token: dict[int, Place] = {}
        self._overtake_at_s = 0.0  # the next recall for the lead band
        self._numbers = 0
        self._failed_starts = 0
        self._start_at_s: float | None = None
        self._closing = False
        self._deadline_s = math.inf  # for closing
        self._guard = Keeper(self._mark, lambda: self._calls.post(self._guard_died))
        self._thread = threading.Thread(target=self._run, name="streamtask-children", daemon=True)
        self.failure: Exception | None = None  #: children cannot be started: from now on nothing should be submitted

    # --- The side of other threads ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start the children, if there should be any; submitted jobs wait until one is ready.

        Raises RuntimeError if it was started or stopped before.
        """
        self._life.start(self._begin)

    def _begin(self) -> None:
        self._calls = PostedCalls()
        self._alive_in, self._alive_out = os.pipe()  # never written: it ends when this process does
        self._selector.register(self._calls.wake, selectors.EVENT_READ, None)
        if self._count:
            self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Run each of these jobs as soon as a child is free, or in its own child. From one thread only."""
        for job in jobs:
            assert job.own or self._count, f"{job.task_type!r} needs a child, and there are none"
        if not self._thread.ident:
            self._thread.start()
        self._calls.post(lambda: self._submit(jobs))

    def stop_job(self, token: int, reason: StopReason) -> None:
        """Stop this execution; one that has ended is ignored. The first reason counts."""
        self._calls.post(lambda: self._stop_job(token, reason))

    def pids(self) -> list[int]:
        """The pids of living children."""
        return [child.process.pid for child in list(self._children.values()) if not child.reaped]

    def ready(self) -> int:
        """How many children have loaded the app."""
        return sum(child.ready for child in list(self._children.values()))

    def stop(self, timeout_s: float = 0.0) -> None:
        """End every child: running executions are stopped, and killed when the time is up. Returns when all are dead."""
        deadline_s = time.monotonic() + timeout_s

        def end() -> None:
            if self._thread.ident:
                self._calls.post(lambda: self._close(deadline_s))
                self._thread.join()
            elif self.started:
                self._release()
            else:
                self._selector.close()

        self._life.stop(end, timeout_s + self._settings.grace_s)

    # --- The pool's thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 a bug here would leave its executions open for ever, unnoticed
            self.failure = error
            for child in list(self._children.values()):
                child.signal(signal.SIGKILL)
            self._listener.children_failed(error)

    def _serve(self) -> None:
        self._guard.start()
        self._fill()
        while not (self._closing and not self._children):
            for key, mask in self._selector.select(self._patience_s()):
                if key.data is None:
                    self._calls.woken()
                else:
                    if mask & selectors.EVENT_WRITE:
                        self._write(key.data)
                    if mask & selectors.EVENT_READ:
                        self._read(key.data)
            self._calls.run()
            self._by_the_clock(time.monotonic())
            self._assign()
        self._guard.end()
        self._release()

    def _release(self) -> None:
        self._selector.close()
        self._calls.close()
        os.close(self._alive_in)
        os.close(self._alive_out)

    def _patience_s(self) -> float | None:
        due = [child.kill_at_s for child in self._children.values() if child.kill_at_s is not None]
        due += [child.recall_at_s for child in self._children.values() if len(child.jobs) > 1]
        due += [self._start_at_s] if self._start_at_s is not None else []
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _by_the_clock(self, now_s: float) -> None:
        for child in list(self._children.values()):
            if child.kill_at_s is not None and child.kill_at_s <= now_s:
                self._kill(child)
            if len(child.jobs) > 1 and child.recall_at_s <= now_s:
                child.recall(time.monotonic() + RECALL_AGAIN_S)
        if self._start_at_s is not None and self._start_at_s <= now_s:
            self._start_at_s = None
            self._fill()

    def _submit(self, jobs: Sequence[Job]) -> None:
        if self.failure is not None or self._closing:
            for job in jobs:
                self._listener.child_ended(job.token, outcomes.stopped(StopReason.REVOKE))
            return
        self._pending.add([job for job in jobs if not job.own])
        self._lonely |= {job.token: job for job in jobs if job.own}
        if self._lonely:
            self._fill()

    def _queued(self) -> list[int]:
        """The tokens of the jobs that are in no child."""
        return [*self._pending, *self._lonely]

    def _assign(self) -> None:
        """Give jobs to idle children, the one that was last busy first, because its memory is warm; then to the others."""
        now_s = time.monotonic()
        while (first := self._pending.first()) is not None:
            if self._idle:
                child = self._idle.pop()
                self._hand_over(child, self._pending.take(self._count))
                continue
            ahead_ms = AHEAD_MS if first.lead else self._pending.ahead_ms
            takers = [child for child in self._children.values() if child.takes(first, ahead_ms, now_s)]
            if not takers:
                if first.lead and now_s >= self._overtake_at_s:
                    self._overtake(now_s)
                break
            child = min(takers, key=Place.ahead)
            self._pending.handed_over(in_time=True)
            self._hand_over(child, self._pending.take(self._count, *child.ahead()))

    def _overtake(self, now_s: float) -> None:
        """Ask a child to return what waits in it behind its first job, so that a job of the lead band can be the next one."""
        behind = [child for child in self._children.values() if len(child.jobs) > 1 and not child.asked]
        behind = [child for child in behind if not (child.jobs[-1].lead or child.leaving)]
        if behind:
            self._overtake_at_s = now_s + OVERTAKE_S
            max(behind, key=Place.ahead).recall(now_s + RECALL_AGAIN_S)

    def _hand_over(self, child: Place, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._by_token[job.token] = child
        if not child.jobs:
            child.begins(time.monotonic() + RECALL_S)
        child.hand_over(jobs)
        self._write(child)

    def _stop_job(self, token: int, reason: StopReason) -> None:
        if self._pending.pop(token) is not None or self._lonely.pop(token, None) is not None:
            self._listener.child_ended(token, outcomes.not_begun(reason))
            return
        child = self._by_token.get(token)
        if child is None:
            return
        if child.jobs[0].token != token:  # it comes back, or becomes the first
            child.stops.setdefault(token, reason)
            if not child.asked:
                child.recall(time.monotonic() + RECALL_AGAIN_S)
        elif child.reason is None:
            self._stop_first(child, reason)

    def _stop_first(self, child: Place, reason: StopReason) -> None:
        child.reason, child.leaving = reason, True
        child.kill_at_s = min(time.monotonic() + self._settings.grace_s, self._deadline_s)
        child.stop_first()

    def _close(self, deadline_s: float) -> None:
        self._closing, self._deadline_s = True, deadline_s
        for token in self._queued():
            self._stop_job(token, StopReason.REVOKE)
        for child in list(self._children.values()):
            for job in list(child.jobs):
                self._stop_job(job.token, StopReason.REVOKE)
            if not child.jobs:
                self._retire(child)
            child.kill_at_s = min(deadline_s, child.kill_at_s or deadline_s)

    # --- Pipes --------------------------------------------------------------------------------------------------------

    def _write(self, child: Place) -> None:
        try:
            while child.out:
                del child.out[: child.channel.send(child.out)]
        except BlockingIOError:
            pass
        except OSError:
            child.out.clear()  # its end shows as the end of the pipe, or as its death
        if bool(child.out) is not child.writing and child.channel.fileno() >= 0:
            child.writing = bool(child.out)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.writing else 0)
            self._selector.modify(child.channel, events, child)

    def _read(self, child: Place) -> bool:
        """False when there is nothing (more) to read."""
        try:
            data = child.channel.recv(pipe.RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._forget_pipe(child)
            child.kill_at_s = child.kill_at_s or time.monotonic() + DEAF_S
            return False
        try:
            for kind, token, payload in child.frames.feed(data):
                self._heard(child, kind, token, payload)
        except pipe.Garbage as error:
            self._break(child, str(error))
            return False
        return child.channel.fileno() >= 0

    def _forget_pipe(self, child: Place) -> None:
        if child in self._idle:
            self._idle.remove(child)
        if child.channel.fileno() >= 0:
            self._selector.unregister(child.channel)
            child.close()

    def _heard(self, child: Place, kind: int, token: int, payload: bytes) -> None:
        if kind == pipe.HELLO:
            if child.ready:
                raise pipe.Garbage("it sent hello twice")
            child.ready, self._failed_starts = True, 0
            if child.job is None:
                self._free(child)
            elif child.reason is None:
                self._hand_over(child, [child.jobs.popleft()])
        elif kind == pipe.BACK:
            self._came_back(child, token)
        elif kind == pipe.LEAVING:
            child.going = child.worn = True
        elif kind == pipe.PROGRESS:
            fraction, message = pipe.read_progress(payload)
            if child.job is not None and child.job.token == token:  # otherwise from a thread that a handler left behind
                self._listener.child_reported(token, fraction, message)
        elif kind == pipe.LOG:
            log_line(payload)
        elif child.job is None or child.job.token != token:
            raise pipe.Garbage("it reported an execution that it does not run")
        elif kind == pipe.BEGUN:
            child.begun = True
            self._listener.child_begun(token)
        else:
            self._ended(child, child.job, pipe.heard(kind, payload))

    def _ended(self, child: Place, job: Job, outcome: Outcome) -> None:
        """The child has reported an outcome."""
        if child.reason is not None and child.going:
            child.told = outcome  # it was stopped: the execution has ended when the child has
            self._forget_pipe(child)
            return
        if outcome.ending is Ending.STOPPED:
            self._break(child, "it was stopped from outside")
            return
        child.jobs.popleft()
        del self._by_token[job.token]
        first = self._pending.first()
        if first is not None and first.shares and job.shares and not (child.jobs or child.asked):
            self._pending.handed_over(in_time=False)
        child.ran[job.task_type] += 1
        if child.own:
            outcome.ran_ms = None  # it shared no slot
        elif outcome.ran_ms is not None:
            self._pending.ran(job.task_type, outcome.ran_ms)
        worn = job.max_tasks is not None and child.ran[job.task_type] >= job.max_tasks
        child.worn = child.worn or worn or child.own or outcome.exception == "MemoryError"
        self._next(child)
        self._listener.child_ended(job.token, outcome)

    def _came_back(self, child: Place, token: int) -> None:
        """The child has not begun this job, and will not."""
        job = next((job for job in reversed(child.jobs) if job.token == token), None)
        if job is None:
            raise pipe.Garbage("it returned an execution that it does not have")
        first = child.jobs[0] is job
        reason = child.reason if first else child.stops.pop(token, None)
        child.jobs.remove(job)
        del self._by_token[token]
        if first:
            self._next(child)
        elif len(child.jobs) == 1:
            child.asked, child.recall_at_s = False, child.slow_at_s
        if reason is not None or self._closing:
            self._listener.child_ended(token, outcomes.not_begun(reason or StopReason.REVOKE))
        else:
            self._pending.put_back(job)

    def _next(self, child: Place) -> None:
        """The first of its jobs is gone: the next one is the first now, or it has nothing to do."""
        if child.reason is not None:  # the stop came too late for the job that is gone
            child.reason = None
            if not child.doomed:
                child.leaving, child.kill_at_s = False, None
        child.begins(time.monotonic() + RECALL_S)
        if child.jobs:
            reason = child.stops.pop(child.jobs[0].token, None)
            if reason is not None:
                self._stop_first(child, reason)
        elif child.worn:
            self._retire(child)
        else:
            self._free(child)

    def _free(self, child: Place) -> None:
        if self._closing:
            self._retire(child)
        elif not child.leaving:
            self._idle.append(child)

    # --- Life and death -----------------------------------------------------------------------------------------------

    def _start_child(self, job: Job | None = None) -> None:
        """job: the one that this child is started for, alone."""
        self._numbers += 1
        number = self._numbers
        try:
            child = launch(
                self._settings.app, number, f"{self._mark}.{number}.", self._alive_in, self._settings.environment
            )
        except OSError as error:  # no memory or no process table entry at the moment
            if job is not None:
                self._lonely[job.token] = job
            self._not_started(f"{error}")
            return
        self._children[number] = child
        if job is not None:
            child.own = True
            child.jobs.append(job)
            self._by_token[job.token] = child
        self._guard.watch(child.process.pid)
        self._selector.register(child.channel, selectors.EVENT_READ, child)
        threading.Thread(target=self._await_end, args=(child,), name=f"streamtask-child-{number}", daemon=True).start()

    def _await_end(self, child: Place) -> None:
        """Runs in a thread per child. It reaps the child only after its group is dead, so its pid is not reused before."""
        if sys.platform == "linux":
            os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
        else:
            child.process.wait()
        reaper.kill_group(child.process.pid)
        reaper.kill_marked(child.mark)
        with child.lock:
            child.process.wait()
            child.reaped = True
        self._calls.post(lambda: self._died(child))

    def _retire(self, child: Place) -> None:
        """The child has nothing to do and ends by itself; it is killed if it does not."""
        child.leaving = True
        self._forget_pipe(child)
        child.kill_at_s = child.kill_at_s or min(time.monotonic() + self._settings.grace_s, self._deadline_s)
        self._fill()  # in parallel: the next execution need not wait for its end

    def _break(self, child: Place, why: str) -> None:
        child.broken = child.broken or why
        child.leaving = True
        self._kill(child)

    def _kill(self, child: Place) -> None:
        child.kill_at_s, child.doomed = None, True
        if child.channel.fileno() < 0 and not child.leaving and child.alive():
            child.broken = child.broken or CLOSED
        child.signal(signal.SIGKILL)

    def _died(self, child: Place) -> None:
        while self._read(child):  # what it reported before it died
            pass
        self._forget_pipe(child)
        del self._children[child.number]
        self._guard.forget(child.process.pid)
        jobs, how = list(child.jobs), child.broken or how_ended(child.process.returncode)
        if child.ready and not child.leaving:
            fields = {"pid": child.process.pid, "how": how, "task_type": jobs[0].task_type if jobs else None}
            self._on_event("child_died", fields)
        for job in reversed(jobs[1:]):
            self._came_back(child, job.token)
        if jobs:
            job = jobs[0]
            del self._by_token[job.token]
            if child.reason is not None:
                self._listener.child_ended(job.token, stopped(child, job, child.reason))
            elif not child.ready:
                self._lonely[job.token] = job  # it has not begun, so this is no death of its own
            else:
                error = f"its process died: {how}"
                self._listener.child_ended(
                    job.token, Outcome(Ending.LOST, code=ErrorCode.WORKER_LOST.value, error=error)
                )
        if not child.ready and not child.leaving:
            self._not_started(how)
        else:
            self._fill()

    def _fill(self) -> None:
        """Start as many children as there should be; those that are leaving do not count."""
        while not self._closing and self.failure is None and self._start_at_s is None:
            if self._lonely:
                self._start_child(self._lonely.pop(next(iter(self._lonely))))
            elif sum(not (child.leaving or child.own) for child in self._children.values()) < self._count:
                self._start_child()
            else:
                break

    def _guard_died(self) -> None:
        if not self._closing:
            self._on_event("guard_died", {})
            self._guard.start()

    def _not_started(self, how: str) -> None:
        """A child died before it was ready: retry after a while, but not for ever."""
        self._failed_starts += 1
        wait_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (self._failed_starts - 1))
        self._on_event("child_not_started", {"how": how, "times": self._failed_starts, "wait_s": wait_s})
        if self._failed_starts < START_TRIES or self._closing:
            self._start_at_s = time.monotonic() + wait_s
        elif self.failure is None:
            text = f"{START_TRIES} children in a row died before they were ready ({how}). Check their output on stderr"
            self.failure = RuntimeError(text)
            for token in self._queued():
                self._stop_job(token, StopReason.REVOKE)
            self._listener.children_failed(self.failure)
