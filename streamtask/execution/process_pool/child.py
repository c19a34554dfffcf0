"""The child: loads the app once, then runs one execution after the other, until its worker closes the pipe or kills it.

    python -m streamtask.execution.process_pool.child MODULE:app FD ALIVE_FD CONTROL_FD|many

Plain functions run in the main thread, `async def` on the loop of the child's own executor (which also holds the app's
lifespan, opened at the first use of `ctx.state`). The pipe has its own descriptor: stdout and stderr belong to the handler.
SIGTERM means "stop" only while the worker's STOP for this execution is in the control channel: when all processes of a service
get a SIGTERM, the worker acts on it. It raises CancelledError in the handler, so that its `finally` blocks run; then the child
ends.

Short executions wait here, in the queue and in the pipe, so that the child need not wait for its worker between two of them.
SIGURG asks to return all that have not begun, because the first takes longer than expected, or because a more urgent one
waits. "many": the child of a group of suspects, which it runs at the same time (quarantine_child.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import faulthandler
import gc
import json
import logging
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, NoReturn

import msgspec
import structlog

from streamtask.app import App, load_app
from streamtask.domain.model import Ending, ErrorCode, HandlerKind, Outcome
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.errors import StreamtaskError
from streamtask.execution import outcomes
from streamtask.execution.executor import Executor
from streamtask.execution.live_context import LiveContext
from streamtask.execution.parent_watch import die_with_parent
from streamtask.execution.process_pool import pipe
from streamtask.execution.process_pool.child_handle import MANY, RECALL
from streamtask.execution.process_pool.quarantine_child import Many
from streamtask.handlers.registry import Context
from streamtask.observability import tracing

EXIT_CONFIG = 2
FLUSH_S = 0.5  # for spans, before an exit during an execution: less than the shortest useful grace
MB = 1024 * 1024
PATIENCE_S = 86_400.0  # nothing is abandoned in here: the worker kills instead
OOM_SCORE = "500"  # if memory runs out, the kernel takes a child rather than its worker


class ChildContext(LiveContext):
    """What a handler in a child sees of its execution."""

    __slots__ = ("_child",)

    def __init__(self, start: Start, child: Child) -> None:
        self._child = child
        super().__init__(start, started_s=time.monotonic(), reporter=child.report, bands=child.bands)

    @property
    def state(self) -> Any:
        """The value that the app's lifespan yielded in this child, opened at its first use."""
        return self._child.state()

    @state.setter
    def state(self, _none: Any) -> None:
        pass


class Child:
    """One child at work. Everything belongs to the main thread except `report` and `send`."""

    def __init__(self, app: App, channel: socket.socket, control: socket.socket) -> None:
        self._app = app
        self.bands = app.settings.topics.bands
        self._channel = channel
        self._control = control
        self._frames = pipe.Frames(pipe.TO_CHILD, math.inf)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sending = 0  # frames that the main thread is writing: a signal must not interrupt one
        self._stop_owed = False  # a stop that arrived meanwhile
        # Bytes are on their way from the pipe to the queue: a signal must not take those after them.
        self._receiving = False
        self._queue: deque[tuple[int, bytes]] = deque()  # received and not begun
        self._back_owed = False  # return all that has not begun, as soon as nothing is being written or received
        self._context: LiveContext | None = None  # of the execution in progress, while it may be stopped
        self._token = 0
        self._stop_seen = False
        self._executor: Executor | None = None
        self._asleep: Executor | None = None  # the executor that the main thread waits on
        self._data_bytes = _data_bytes()
        for end in (channel, control):  # a forked copy must not write for this child, nor take its stops
            os.register_at_fork(after_in_child=end.close)

    def run(self) -> None:
        """Run until the worker closes the pipe, or an execution was stopped."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(RECALL, self._on_recall)
        self.send(pipe.frame(pipe.HELLO))
        more = select.poll()
        more.register(self._channel, select.POLLIN)
        open_ = True
        while open_:
            more.poll()  # not recv: a recall that comes while the child waits here reads the pipe itself
            open_ = self._receive()
            while self._queue:
                try:
                    job = self._queue.popleft()
                except IndexError:  # a recall came between the two lines
                    break
                self._work(*job)
        if self._executor is not None:
            self._executor.stop(1.0)

    def _work(self, token: int, payload: bytes) -> None:
        start, memory_mb, trace = pipe.read_job(payload)
        traced = tracing.attach(trace) if trace else None
        began_s = time.perf_counter()
        outcome = self._run(token, start, memory_mb)
        if os.getpid() != self._pid:
            os._exit(0)  # the handler forked, and this copy has returned from it too
        outcome.ran_ms = (time.perf_counter() - began_s) * 1_000
        if traced is not None:
            tracing.detach(traced)
        said = pipe.said(token, outcome)
        if self._stop_seen:
            self.send(pipe.frame(pipe.LEAVING) + said)
            _leave()
        if memory_mb is not None and _data_bytes() > self._data_bytes + memory_mb * MB:
            said = pipe.frame(pipe.LEAVING) + said  # so much was left behind that the child should be replaced
        self.send(said)

    # --- The pipe -----------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """May be called from any thread. Blocks while the worker is busy."""
        main = threading.current_thread() is threading.main_thread()
        self._sending += main
        try:
            with self._lock:
                self._channel.sendall(frame)
        except OSError:
            if os.getpid() == self._pid:
                os._exit(pipe.EXIT_DEAF)
        finally:
            self._sending -= main
        if main and self._back_owed:
            self._give_back()
        if main and self._stop_owed and not self._sending:
            self._stop_owed = False
            raise asyncio.CancelledError("told to stop")

    def report(self, context: Context, fraction: float, message: str | None) -> None:
        """ctx.progress of a plain function, from any thread. It uses the context's own token: a thread that a handler left
        behind may report when the next execution has begun.
        """
        self.send(pipe.progress(context.token, fraction, message))

    def _receive(self) -> bool:
        """Move what is in the pipe to the queue, without waiting for more. False: the worker has closed the pipe."""
        open_ = True
        self._receiving = True
        try:
            data = self._channel.recv(pipe.RECEIVE_BYTES, socket.MSG_DONTWAIT)
            self._queue.extend((token, payload) for _kind, token, payload in self._frames.feed(data))
            open_ = bool(data)
        except BlockingIOError:  # a recall has just read it
            pass
        except OSError:
            if os.getpid() == self._pid:
                os._exit(pipe.EXIT_DEAF)  # a handler has closed a descriptor that is not its own
            open_ = False
        finally:
            self._receiving = False
        if self._back_owed:
            self._give_back()
        return open_

    def _on_recall(self, _number: int, _frame: Any) -> None:
        self._back_owed = True
        self._give_back()

    def _give_back(self) -> None:
        """Return what has not begun, what is still in the pipe included, unless the main thread is inside one of its own
        transfers: it calls this again at the end of that.
        """
        if self._sending or self._receiving:
            return
        self._back_owed = False
        self._receive()
        back = b""
        # Last one first: the worker puts each before those that wait. One by one: another recall may interrupt.
        while self._queue:
            try:
                back += pipe.frame(pipe.BACK, self._queue.pop()[0])
            except IndexError:
                break
        if back:
            self.send(back)

    # --- Stop ---------------------------------------------------------------------------------------------------------

    def _is_stopped(self) -> bool:
        """True when the worker's STOP for this execution has come (or the control channel has ended). Others may come with it,
        for earlier executions that had ended before; there are none for later ones, because the worker stops only the first
        that has not been answered.
        """
        try:
            data = self._control.recv(pipe.STOPS_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return os.getpid() == self._pid
        return not data or self._token in pipe.stops_in(data)

    def _on_term(self, _number: int, _frame: Any) -> None:
        context = self._context
        if context is None or self._stop_seen or not self._is_stopped():
            return
        self._stop_seen = True
        context.stop(StopReason.CANCEL)
        if self._asleep is not None:
            self._asleep.wake()
        elif self._sending:
            self._stop_owed = True
        else:
            raise asyncio.CancelledError("told to stop")

    # --- One execution ------------------------------------------------------------------------------------------------

    def _run(self, token: int, start: Start, memory_mb: int | None) -> Outcome:
        request = start.record.request
        handler = None if request is None else self._app.registry.get(request.task_type)
        if handler is None or request is None:
            return outcomes.refused(ErrorCode.UNKNOWN_TASK_TYPE, "this child's app has no handler for it")
        context = ChildContext(start, self)
        self._token, self._stop_owed = token, False
        try:
            try:
                self._context = context  # from here on a SIGTERM may raise
                if self._is_stopped():  # it came earlier, when the signal did not concern this execution
                    self._stop_seen = True
                    return outcomes.stopped(StopReason.CANCEL)
                if memory_mb is not None:  # beyond what earlier executions have left here
                    self._limit(_data_bytes() + memory_mb * MB)
                if handler.is_async:
                    self._open_executor()  # the handler is not charged for the time that the lifespan takes
                if start.timed:
                    self.send(pipe.frame(pipe.BEGUN, token))
                outcome = self._await(start) if handler.is_async else outcomes.of_call(handler, context)
            finally:
                self._context = None
                context.end()
        except BaseException as error:  # noqa: BLE001 the stop itself, raised between two lines
            outcome = outcomes.raised(error, handler.retry)
        if memory_mb is not None:
            self._limit(resource.RLIM_INFINITY)
        if self._stop_seen and outcome.ending is not Ending.RETURNED:
            outcome.ending = Ending.STOPPED
        return pipe.fitting(outcome)

    def _await(self, start: Start) -> Outcome:
        """Run an `async def` on the executor's loop."""
        executor = self._open_executor()
        executor.submit([msgspec.structs.replace(start, kind=HandlerKind.ASYNC)])
        self._asleep, stopped = executor, False
        try:
            while True:
                done, progress = executor.drain()
                for _token, fraction, message in progress:
                    self.send(pipe.progress(self._token, fraction, message))
                if done:
                    return done[0][1]
                if self._stop_seen and not stopped:
                    stopped = True
                    executor.stop_executions([Stop(start.token, StopReason.CANCEL)])
                executor.wait(3_600.0)
        finally:
            self._asleep = None

    def state(self) -> Any:
        """The value that the app's lifespan yielded."""
        return self._open_executor().state

    def _open_executor(self) -> Executor:
        if self._executor is None:
            handlers = {
                name: dataclasses.replace(handler, kind=HandlerKind.ASYNC if handler.is_async else HandlerKind.THREAD)
                for name, handler in self._app.registry.items()
            }
            executor = Executor(
                handlers, threads=1, lifespan=self._app.lifespan, bands=self.bands, patience_s=PATIENCE_S
            )
            executor.start()
            self._executor = executor
        return self._executor

    @staticmethod
    def _limit(data_bytes: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            data_bytes = hard if data_bytes == resource.RLIM_INFINITY else min(data_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, hard))


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it: the app and its imports."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:  # no /proc: then about what an interpreter takes
        return 64 * 1024 * 1024


def _leave() -> NoReturn:
    """Exit without waiting: threads and children of the handler may still run."""
    tracing.flush(FLUSH_S)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(0)


def _log_over_the_pipe(say: Callable[[bytes], None]) -> None:
    """Send ctx.log and structlog lines to the worker, which writes them like its own."""

    def send(_logger: Any, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        level, text = str(event.pop("level", method)), str(event.pop("event", ""))
        say(pipe.log(level, text, dict(event)))
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            send,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),  # the worker knows its level
        cache_logger_on_first_use=False,
    )


def main(argv: list[str]) -> int:
    """Never returns with an execution open."""
    app_path, channel_fd, alive_fd, kind = argv[0], int(argv[1]), int(argv[2]), argv[3]
    die_with_parent(alive_fd)
    channel = socket.socket(fileno=channel_fd)
    os.set_inheritable(channel_fd, False)
    faulthandler.enable()
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass  # not Linux
    try:
        app = load_app(app_path)
        app.configure(**json.loads(os.environ.pop(pipe.OVERRIDES_VARIABLE, "{}")))
    except StreamtaskError as error:  # the worker could load it: something has changed since
        sys.stderr.write(f"streamtask child: {error}\n")
        return EXIT_CONFIG
    gc.collect()
    gc.freeze()
    child: Child | Many
    if kind == MANY:
        settings = app.settings
        child = Many(
            app.registry,
            channel,
            threads=settings.threads,
            lifespan=app.lifespan,
            bands=settings.topics.bands,
        )
    else:
        control = socket.socket(fileno=int(kind))
        os.set_inheritable(int(kind), False)
        child = Child(app, channel, control)
    _log_over_the_pipe(child.send)
    child.run()
    return 0


if __name__ == "__main__":
    # The module under its own name, not this copy: that name excludes its frames from tracebacks.
    from streamtask.execution.process_pool import child

    sys.exit(child.main(sys.argv[1:]))
