"""One child as its pool sees it: what it is given to do, and how its end is described."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import structlog

from streamtask.domain.model import Ending, Outcome
from streamtask.domain.ports import StopReason
from streamtask.execution import outcomes
from streamtask.execution.process_pool import pipe, reaper
from streamtask.execution.process_pool.waiting import AHEAD_BYTES, JOBS_MAX, Job

CLOSED = "it closed its pipe"
MANY = "many"  # command-line argument of a quarantine child
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "exception": 40, "critical": 50}
RECALL = signal.SIGURG  # ignored unless the child handles it


@dataclass(slots=True, eq=False)
class Place:
    """One child as its pool sees it. Everything belongs to the pool's thread, except `signal` and `reaped`.

    The child has been handed `jobs`, which it runs and answers in order: only the first one may have begun. The others wait in
    its memory or in its pipe.
    """

    number: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    mark: str
    control: socket.socket | None = None  # for stops; a quarantine child gets them over its channel
    own: bool = False  # for one execution only
    ready: bool = False
    jobs: deque[Job] = field(default_factory=deque)
    slow_at_s: float = 0.0  # when the first has taken so long that no other should wait behind it
    recall_at_s: float = 0.0  # when to ask for the return of the others
    asked: bool = False  # it was asked for them, and has not returned them all
    begun: bool = False  # it has reported that it begins the first
    reason: StopReason | None = None  # why the first was stopped
    stops: dict[int, StopReason] = field(default_factory=dict)  # stops of the others, sent when they become first
    going: bool = False  # it has received the stop, and is about to end
    told: Outcome | None = None  # its report about the stopped execution
    doomed: bool = False  # it was killed
    broken: str = ""  # why it was killed, if not for a stop
    leaving: bool = False  # it gets no further job
    worn: bool = False  # replace it after its present jobs
    kill_at_s: float | None = None
    writing: bool = False  # the pipe is full
    reaped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # prevents a signal to a pid that was reused
    ran: Counter[str] = field(default_factory=Counter)
    frames: pipe.Frames = field(default_factory=pipe.Frames)
    out: bytearray = field(default_factory=bytearray)

    @property
    def job(self) -> Job | None:
        """The execution that it is working on."""
        return self.jobs[0] if self.jobs else None

    def hand_over(self, jobs: Sequence[Job]) -> None:
        """Append these jobs to what is written next."""
        self.jobs.extend(jobs)
        self.out += b"".join([pipe.frame(pipe.JOB, job.token, job.payload) for job in jobs])

    def begins(self, slow_at_s: float) -> None:
        """Another job is the first one now."""
        self.begun = self.asked = False
        self.slow_at_s = self.recall_at_s = slow_at_s

    def ahead(self) -> tuple[float, int]:
        """What waits behind the first job: (milliseconds that this is expected to take, bytes)."""
        ms, size = 0.0, 0
        for job in islice(self.jobs, 1, None):
            ms += job.expected_ms
            size += len(job.payload)
        return ms, size

    def takes(self, job: Job, ahead_ms: float, now_s: float) -> bool:
        """Whether this job may wait behind those that the child has: soon it will have answered them all."""
        jobs = self.jobs
        if not (job.shares and jobs and jobs[-1].shares and self.ready) or len(jobs) > JOBS_MAX // 2:
            return False
        if self.out or self.worn or self.leaving or self.asked or now_s >= self.slow_at_s:
            return False
        ms, size = self.ahead()
        return ms < ahead_ms / 2 and size + len(job.payload) <= AHEAD_BYTES

    def recall(self, again_at_s: float) -> None:
        """Ask it to return the jobs that it has not begun (it cannot react inside a call of C)."""
        self.recall_at_s, self.asked = again_at_s, True
        with self.lock:
            if not self.reaped:
                try:
                    os.kill(self.process.pid, RECALL)
                except ProcessLookupError:
                    pass

    def stop_first(self) -> None:
        """Ask it to stop the first job, and its processes to end."""
        if self.control is not None and self.job is not None:
            with contextlib.suppress(OSError):  # it has ended, or it has not read the last 1,000 stops
                self.control.send(pipe.frame(pipe.STOP, self.job.token))
        self.signal(signal.SIGTERM)

    def close(self) -> None:
        """Let it know that it gets nothing more."""
        self.channel.close()
        if self.control is not None:
            self.control.close()

    def signal(self, number: int) -> None:
        """Send a signal to the child and to the processes that it has started."""
        with self.lock:
            if not self.reaped:
                try:
                    os.killpg(self.process.pid, number)
                except (ProcessLookupError, PermissionError):
                    pass

    def alive(self) -> bool:
        """Whether its process runs. One that has died may not be reaped yet, because what it started is killed first."""
        with self.lock:
            if self.reaped or sys.platform != "linux":
                return not self.reaped
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None


def launch(app: str, number: int, mark: str, alive_fd: int, environment: Mapping[str, str]) -> Place:
    """Start a child of the pool. Raises OSError."""
    control, theirs = socket.socketpair()
    control.setblocking(False)
    with theirs:
        try:
            process, channel = spawn(app, mark, alive_fd, environment, str(theirs.fileno()), theirs.fileno())
        except OSError:
            control.close()
            raise
    return Place(number, process, channel, mark, control)


def spawn(
    app: str, mark: str, alive_fd: int, environment: Mapping[str, str], kind: str, *fds: int
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a child; kind: the last argument of child.main; fds: what it inherits besides its channel. Raises OSError."""
    ours, theirs = socket.socketpair()
    argv = [
        sys.executable,
        "-m",
        "streamtask.execution.process_pool.child",
        app,
        str(theirs.fileno()),
        str(alive_fd),
        kind,
    ]
    try:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **environment, reaper.MARK: mark},
            pass_fds=(theirs.fileno(), alive_fd, *fds),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return process, ours


def log_line(payload: bytes) -> None:
    """Write a line of a handler's log. Raises Garbage."""
    level, event, fields = pipe.read_log(payload)
    fields.pop("event", None)
    structlog.get_logger("streamtask.task").log(_LEVELS.get(level, 20), event, **fields)


def stopped(child: Place, job: Job, reason: StopReason) -> Outcome:
    """The outcome of its first job, which was stopped, with what the handler raised on the way, if that says more."""
    told = child.told
    if told is not None and told.ending is Ending.RETURNED:
        return told  # it had ended before it received the stop
    if job.timed and not child.begun:
        return outcomes.not_begun(reason)
    outcome = outcomes.stopped(reason)
    if told is not None and told.exception is not None and not told.exception.endswith("CancelledError"):
        outcome.error, outcome.exception, outcome.traceback = told.error, told.exception, told.traceback
    return outcome


def how_ended(code: int) -> str:
    """Describe how a process ended."""
    if code == pipe.EXIT_DEAF:
        return CLOSED
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (not enough memory?)" if code == -signal.SIGKILL else "")
