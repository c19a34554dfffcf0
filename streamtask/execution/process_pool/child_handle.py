"""One child as its pool sees it: what it is given to do, and how its end is described."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from streamtask.domain.model import Ending, Outcome
from streamtask.domain.ports import StopReason
from streamtask.execution import outcomes
from streamtask.execution.process_pool import pipe, reaper

CLOSED = "it closed its pipe"
MANY = "many"  # command-line argument of a quarantine child
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "exception": 40, "critical": 50}
RECALL = signal.SIGURG  # ignored unless the child handles it


@dataclass(frozen=True, slots=True)
class Job:
    """One execution on its way into a child.

    payload    pipe.job_of(...)
    max_tasks  a child that ran this many of this type is replaced
    own        run it in a child that is started for it alone, in addition to the others
    shares     it is short: a child may be handed several of these at once
    timed      the child reports when it begins this execution
    group      of suspects: it runs in the quarantine child of that group (quarantine.py); 0: in a child of the pool
    """

    token: int
    task_type: str
    payload: bytes
    max_tasks: int | None = None
    own: bool = False
    shares: bool = False
    timed: bool = False
    group: int = 0


@dataclass(slots=True, eq=False)
class Place:
    """One child as its pool sees it. Everything belongs to the pool's thread, except `signal` and `reaped`.

    The child has been handed `jobs`, which it runs and answers in order: only the first one may have begun.
    """

    number: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    mark: str
    own: bool = False  # for one execution only
    ready: bool = False
    jobs: deque[Job] = field(default_factory=deque)
    recall_at_s: float = 0.0  # when to ask for the return of the others
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

    def hand_over(self, jobs: Sequence[Job], recall_at_s: float) -> None:
        """Append these jobs to what is written next."""
        self.jobs.extend(jobs)
        self.recall_at_s = recall_at_s
        frames = [pipe.frame(pipe.JOB, job.token, job.payload) for job in jobs]
        self.out += frames[0] if len(frames) == 1 else pipe.frame(pipe.JOBS, 0, b"".join(frames))

    def recall(self, again_at_s: float) -> None:
        """Ask it to return the jobs that it has not begun (it cannot react inside a call of C)."""
        self.recall_at_s = again_at_s
        with self.lock:
            if not self.reaped:
                try:
                    os.kill(self.process.pid, RECALL)
                except ProcessLookupError:
                    pass

    def signal(self, number: int) -> None:
        """Send a signal to the child and to the processes that it has started."""
        with self.lock:
            if not self.reaped:
                try:
                    os.killpg(self.process.pid, number)
                except (ProcessLookupError, PermissionError):
                    pass


def launch(app: str, number: int, mark: str, alive_fd: int, environment: Mapping[str, str]) -> Place:
    """Start a child of the pool. Raises OSError."""
    return Place(number, *spawn(app, mark, alive_fd, environment), mark)


def spawn(
    app: str, mark: str, alive_fd: int, environment: Mapping[str, str], *words: str
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a child; words: its kind (child.main). Raises OSError."""
    ours, theirs = socket.socketpair()
    argv = [
        sys.executable,
        "-m",
        "streamtask.execution.process_pool.child",
        app,
        str(theirs.fileno()),
        str(alive_fd),
        *words,
    ]
    try:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **environment, reaper.MARK: mark},
            pass_fds=(theirs.fileno(), alive_fd),
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
