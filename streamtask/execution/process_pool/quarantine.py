"""The quarantine children of one worker: one for each group of suspects, which all run in it at the same time.

This pool exists next to that of the process handlers. It starts a child when the first suspect of a group comes, and ends it
when the last one has left. Thread, pipes, guard and kills are those of pool.py; only what a child runs is different.

    stop      STOP into the pipe. The others run on; a child in which all were stopped and do not end is killed
    death     Ending.LOST for each execution that had begun, with the number of those that ran beside it: no single one is
              to blame, unless that is 0. Executions that had not begun go into the next child of their group

Always true: every submitted job yields exactly one outcome; a job is in one child or waits; everything that a child has
started is dead when its death is reported.
"""

from __future__ import annotations

import selectors
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamtask.domain.model import Ending, ErrorCode, Outcome
from streamtask.domain.ports import StopReason
from streamtask.execution import outcomes
from streamtask.execution.process_pool import pipe
from streamtask.execution.process_pool.child_handle import MANY, Place, how_ended, log_line, spawn
from streamtask.execution.process_pool.pool import Pool
from streamtask.execution.process_pool.settings import Children, Listener
from streamtask.execution.process_pool.waiting import Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LOOK_S = 0.25  # between two looks for stopped executions that run on


@dataclass(slots=True, eq=False)
class Ward(Place):
    """The child of one group.

    open: jobs that it was given and has not answered; stopping: (reason, deadline) of stopped jobs
    """

    group: int = 0
    open: dict[int, Job] = field(default_factory=dict)
    began: set[int] = field(default_factory=set)
    stopping: dict[int, tuple[StopReason, float]] = field(default_factory=dict)


class Quarantine(Pool):
    """See the module docstring. Everything except `submit`, `stop_job`, `start` and `stop` belongs to the pool's thread."""

    def __init__(self, children: Children, listener: Listener) -> None:
        super().__init__(children, listener)
        self._suspects: dict[int, Job] = {}  # each waits for the child of its group

    def submit(self, jobs: Sequence[Job]) -> None:
        """Run each of these jobs in the child of its group. From one thread only."""
        for job in jobs:
            assert job.group, f"{job.task_type!r} is in no group"
        if not self._thread.ident:
            self._thread.start()
        self._calls.post(lambda: self._submit(jobs))

    # --- The pool's thread --------------------------------------------------------------------------------------------

    def _wards(self) -> Iterable[Ward]:
        return [child for child in self._children.values() if isinstance(child, Ward)]

    def _ward_of(self, group: int) -> Ward | None:
        return next((ward for ward in self._wards() if ward.group == group and not ward.leaving), None)

    def _patience_s(self) -> float | None:
        most = super()._patience_s()
        if any(ward.stopping for ward in self._wards()):
            return LOOK_S if most is None else min(most, LOOK_S)
        return most

    def _by_the_clock(self, now_s: float) -> None:
        super()._by_the_clock(now_s)
        for ward in self._wards():
            if ward.stopping and not ward.doomed and ward.stopping.keys() == ward.open.keys():
                if all(due_s <= now_s for _, due_s in ward.stopping.values()):
                    ward.leaving = True
                    self._kill(ward)

    def _submit(self, jobs: Sequence[Job]) -> None:
        if self.failure is not None or self._closing:
            for job in jobs:
                self._listener.child_ended(job.token, outcomes.stopped(StopReason.REVOKE))
        else:
            self._suspects |= {job.token: job for job in jobs}
            self._fill()

    def _queued(self) -> list[int]:
        return list(self._suspects)

    def _assign(self) -> None:
        """Nothing to do: _fill assigns, because no job waits for a free child."""

    def _fill(self) -> None:
        for job in list(self._suspects.values()):
            ward = self._ward_of(job.group)
            if ward is None:
                if self._closing or self.failure is not None or self._start_at_s is not None:
                    continue
                ward = self._open_ward(job)
                if ward is None:
                    continue
            del self._suspects[job.token]
            ward.open[job.token] = job
            self._by_token[job.token] = ward
            ward.out += pipe.frame(pipe.JOB, job.token, job.payload)
            self._write(ward)

    def _open_ward(self, job: Job) -> Ward | None:
        self._numbers += 1
        number, mark = self._numbers, f"{self._mark}.{self._numbers}."
        try:
            process, channel = spawn(self._settings.app, mark, self._alive_in, self._settings.environment, MANY)
        except OSError as error:  # no memory or no process table entry at the moment
            self._not_started(f"{error}")
            return None
        ward = Ward(number, process, channel, mark, group=job.group)
        self._children[number] = ward
        self._guard.watch(process.pid)
        self._selector.register(channel, selectors.EVENT_READ, ward)
        threading.Thread(target=self._await_end, args=(ward,), name=f"streamtask-ward-{number}", daemon=True).start()
        return ward

    def _stop_job(self, token: int, reason: StopReason) -> None:
        if self._suspects.pop(token, None) is not None:
            self._listener.child_ended(token, outcomes.not_begun(reason))
            return
        ward = self._by_token.get(token)
        if not isinstance(ward, Ward) or token in ward.stopping:
            return
        ward.stopping[token] = (reason, min(time.monotonic() + self._settings.grace_s, self._deadline_s))
        ward.out += pipe.frame(pipe.STOP, token, reason.value.encode())
        self._write(ward)

    def _close(self, deadline_s: float) -> None:
        self._closing, self._deadline_s = True, deadline_s
        for token in (*self._suspects, *self._by_token):
            self._stop_job(token, StopReason.REVOKE)
        for ward in self._wards():
            if not ward.open:
                self._retire(ward)
            ward.kill_at_s = min(deadline_s, ward.kill_at_s or deadline_s)

    def _heard(self, child: Place, kind: int, token: int, payload: bytes) -> None:
        assert isinstance(child, Ward), f"{child.number} is no quarantine child"
        if kind == pipe.HELLO:
            if child.ready:
                raise pipe.Garbage("it sent hello twice")
            child.ready = True
        elif kind == pipe.LEAVING:
            child.leaving = True
        elif kind == pipe.LOG:
            log_line(payload)
        elif kind == pipe.PROGRESS:
            fraction, message = pipe.read_progress(payload)
            if token in child.open:  # otherwise from a thread that a handler left behind
                self._listener.child_reported(token, fraction, message)
        elif token not in child.open:
            raise pipe.Garbage("it reported an execution that it does not run")
        elif kind == pipe.BEGUN:
            self._failed_starts = 0
            child.began.add(token)
            self._listener.child_begun(token)
        else:
            self._answered(child, token, pipe.heard(kind, payload))

    def _answered(self, ward: Ward, token: int, outcome: Outcome) -> None:
        stop = ward.stopping.get(token)
        if outcome.ending is Ending.STOPPED and stop is None:
            raise pipe.Garbage("it was stopped from outside")
        if outcome.ending is Ending.LOST:
            raise pipe.Garbage("it reported its own death")
        outcome.ran_ms = None  # it shares no slot
        self._gone(ward, token, outcome)
        if not ward.open and not ward.leaving:
            self._retire(ward)

    def _gone(self, ward: Ward, token: int, outcome: Outcome) -> None:
        del ward.open[token], self._by_token[token]
        ward.began.discard(token)
        ward.stopping.pop(token, None)
        self._listener.child_ended(token, outcome)

    def _died(self, child: Place) -> None:
        assert isinstance(child, Ward), f"{child.number} is no quarantine child"
        while self._read(child):  # what it reported before it died
            pass
        self._forget_pipe(child)
        del self._children[child.number]
        self._guard.forget(child.process.pid)
        how = child.broken or how_ended(child.process.returncode)
        ran = [token for token in child.open if token in child.began and token not in child.stopping]
        if ran:
            fields = {"pid": child.process.pid, "how": how, "task_type": child.open[ran[0]].task_type}
            self._on_event("child_died", {**fields, "executions": len(ran)})
        began, waiting = set(child.began), {}
        for token, job in list(child.open.items()):
            if token in child.stopping:
                reason = child.stopping[token][0]
                self._gone(child, token, outcomes.stopped(reason) if token in began else outcomes.not_begun(reason))
            elif token in began:
                error = f"its process died: {how}"
                code = ErrorCode.WORKER_LOST.value
                self._gone(child, token, Outcome(Ending.LOST, code=code, error=error, beside=len(ran) - 1))
            else:
                waiting[token] = job
                del self._by_token[token]
        self._suspects = {**waiting, **self._suspects}  # they came before these
        if waiting and not ran and not child.leaving:  # it has begun nothing, so this is no death of theirs
            self._not_started(how)
        if self._closing:
            for token in list(self._suspects):
                self._stop_job(token, StopReason.REVOKE)
        self._fill()
