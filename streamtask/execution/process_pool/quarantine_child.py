"""The child of a group of suspects: runs their coroutines and threads concurrently, as a worker does.

    python -m streamtask.execution.process_pool.child MODULE:app FD ALIVE_FD many

It has its own executor, with the app's lifespan and as many threads as the worker has. A thread reads what the worker sends;
the main thread hands it over, and reports what has begun, progressed and ended. BEGUN is in the pipe before a handler's first
instruction, so that the worker knows which executions ran in here when this process dies.

STOP ends one execution and leaves the others alone: a coroutine is cancelled, a thread is notified. SIGTERM does nothing: the
worker acts on it. The process ends when the worker closes the pipe, or kills it.
"""

from __future__ import annotations

import contextvars
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from streamtask.domain.model import Band, Outcome
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.errors import LifespanError
from streamtask.execution import outcomes
from streamtask.execution.executor import Executor
from streamtask.execution.process_pool import pipe
from streamtask.handlers.registry import Handler, Lifespan
from streamtask.observability import tracing

IDLE_S = 3_600.0


class _Borrowed(tracing.Attempt):
    """A span that lives in the worker: here it is the current span of its handler, and is not ended."""

    __slots__ = ()

    def __init__(self, carried: tracing.Headers) -> None:
        self.context = contextvars.Context()
        self.context.run(tracing.attach, carried)

    def end(self, outcome: Outcome, stopped: StopReason | None) -> None:
        pass


class _Spans(tracing.Attempts):
    """The span contexts that came with the jobs."""

    def __init__(self) -> None:
        self.carried: dict[int, tracing.Headers] = {}  # by token, until the execution begins

    def beginner(self) -> Callable[[Start], tracing.Attempt | None]:
        return self.begin

    def begin(self, start: Start) -> tracing.Attempt | None:
        carried = self.carried.pop(start.token, None)
        return _Borrowed(carried) if carried else None


class Many:
    """See the module docstring. The main thread owns everything except `_read`, and `send`, which any thread may call."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        channel: socket.socket,
        *,
        threads: int,
        lifespan: Lifespan | None,
        bands: tuple[Band, ...],
    ) -> None:
        self._handlers = handlers
        self._channel = channel
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inbox: deque[pipe.Frame | None] = deque()  # bounded by the slots of the worker; None: the pipe has ended
        self._spans = _Spans()
        self._opened = False
        self._executor = Executor(
            handlers,
            threads=threads,
            lifespan=lifespan,
            bands=bands,
            on_event=self._on_event,
            attempts=self._spans,
        )
        os.register_at_fork(after_in_child=channel.close)  # a forked copy must not write for this child

    def run(self) -> None:
        """Run until the worker closes the pipe."""
        signal.signal(signal.SIGTERM, _ignore)
        self.send(pipe.frame(pipe.HELLO))
        threading.Thread(target=self._read, name="streamtask-pipe", daemon=True).start()
        while self._take():
            done, progress = self._executor.drain()
            out = b"".join(pipe.progress(token, fraction, message) for token, fraction, message in progress)
            out += b"".join(pipe.said(token, pipe.fitting(outcome)) for token, outcome in done)
            if out:
                self.send(out)
            self._executor.wait(IDLE_S)
        if self._opened:
            self._executor.stop(1.0)

    def send(self, frames: bytes) -> None:
        """May be called from any thread. Blocks while the worker is busy."""
        try:
            with self._lock:
                self._channel.sendall(frames)
        except OSError:
            if os.getpid() == self._pid:
                os._exit(pipe.EXIT_DEAF)

    def _take(self) -> bool:
        """Handle what the worker has sent, in order. False: it has closed the pipe."""
        starts: list[Start] = []
        while self._inbox:
            frame = self._inbox.popleft()
            if frame is None:
                return False
            kind, token, payload = frame
            if kind == pipe.JOB:
                start, _, trace = pipe.read_job(payload)
                if trace:
                    self._spans.carried[token] = trace
                starts.append(start)
            elif kind == pipe.STOP:
                self._begin(starts)  # the stop may be for one of these
                starts = []
                self._executor.stop_executions([Stop(token, StopReason(payload.decode()))])
        self._begin(starts)
        return True

    def _begin(self, starts: list[Start]) -> None:
        if not starts:
            return
        if not self._opened:
            try:
                self._executor.start()
            except LifespanError as error:
                self._cannot(starts, error)
                return
            self._opened = True
        self.send(b"".join(pipe.frame(pipe.BEGUN, start.token) for start in starts))
        self._executor.submit(starts)

    def _cannot(self, starts: list[Start], error: LifespanError) -> None:
        """Fail these with the reason. The process ends, and what is still in the pipe goes to another child."""
        said = [
            pipe.said(start.token, outcomes.raised(error, self._handlers[start.record.request.task_type].retry))
            for start in starts
            if start.record.request is not None
        ]
        self.send(pipe.frame(pipe.LEAVING) + b"".join(said))
        os._exit(0)

    def _read(self) -> None:
        """Runs in its own thread: takes frames from the pipe, until that ends."""
        while (frame := pipe.received(self._channel)) is not None:
            self._inbox.append(frame)
            self._executor.wake()
        self._inbox.append(None)
        self._executor.wake()

    def _on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        self.send(pipe.log("warning", name, dict(fields)))


def _ignore(_number: int, _frame: Any) -> None:
    """Not SIG_IGN: processes that a handler starts would inherit that."""
