"""The event loop of the handlers, in its own thread: the app's lifespan, and one task for each `async def` that runs.

A coroutine that runs on for `patience_s` after its cancel has swallowed it. It is abandoned: its attempt is over, its slot is
free, its result is dropped; it is cancelled again and again as long as it lives. The time counts from when the loop delivered
the cancel, and only while the loop answers: a coroutine that waits because another one blocks the loop is not at fault.

At most `limit` coroutines run at a time. The others wait, those of the first band before the rest, and begin as running ones
end (core/slot_sharing.py says why more are started than may run).

Always true: the loop outlives every handler; the lifespan opens before the first call and closes after the last; an execution
that was begun is finished once, by its own task or when that ends; at most ABANDONED_MAX are abandoned at a time, and further
ones keep their slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

from streamtask.domain.model import Outcome
from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.execution import outcomes
from streamtask.execution.execution import Execution
from streamtask.execution.stack_location import where
from streamtask.handlers.arguments import ParametersInvalid
from streamtask.handlers.registry import Lifespan

LIFESPAN_CLOSE_S_MIN = 1.0  # minimum for closing the lifespan, even if the handlers used up the time
ABANDONED_MAX = 100  # each may hold memory and connections for ever
LATE_S = 1.0  # when a timer is this late, the loop was blocked, and no coroutine had time to end


class LoopListener(Protocol):
    """Receives what happens on the loop, on the loop's thread."""

    def execution_ended(self, execution: Execution, outcome: Outcome) -> None:
        """The outcome of an execution; called once for each one that was begun."""

    def execution_begins(self, execution: Execution) -> None:
        """The handler of one that is `late` is called now."""

    def lifespan_broke(self, error: BaseException) -> None:
        """From now on no handler should be started."""

    def happened(self, name: str, fields: Mapping[str, Any], /) -> None:
        """A fact for the operator."""


class Coroutines(HasLifecycle):
    """See the module docstring.

    lifespan    opened on the loop
    listener    notified of the fate of executions and of the lifespan
    patience_s  a coroutine that runs on for this long after its cancel is abandoned
    limit       how many run at a time

    `begin` and `cancel` belong to one thread, which is not the loop's.
    """

    def __init__(
        self,
        *,
        lifespan: Lifespan | None,
        listener: LoopListener,
        patience_s: float,
        limit: int = sys.maxsize,
    ) -> None:
        self._lifespan = lifespan
        self._limit = limit
        self._finish = listener.execution_ended
        self._begins = listener.execution_begins
        self._on_failure = listener.lifespan_broke
        self._on_event = listener.happened
        self._patience_s = patience_s
        self.state: Any = None  #: the value that the lifespan yielded
        self._tasks: dict[asyncio.Task[None], Execution] = {}  # strong references: the loop holds only weak ones
        # By token: of the first band, and of the others. A dict takes ever longer to find its first after many were removed.
        self._waiting: tuple[OrderedDict[int, Execution], ...] = (OrderedDict(), OrderedDict())
        self._abandoned: set[asyncio.Task[None]] = set()
        self.abandoned_total = 0
        self._asked_s: float | None = None  # since when the loop owes an answer
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._run_loop, name="streamtask-loop", daemon=True)
        self._opened = threading.Event()
        self._served: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._life = Lifecycle("The event loop of the handlers")

    def start(self) -> None:
        """Raises RuntimeError if it was started or stopped before."""
        self._life.start(self._thread.start)

    def await_opened(self, timeout_s: float) -> bool:
        """True once the lifespan has opened or failed to open."""
        return self._opened.wait(timeout_s)

    def begin(self, batch: Sequence[Execution]) -> None:
        """Begin these executions with one wake-up of the loop."""
        self._loop.call_soon_threadsafe(self._begin, batch)

    def cancel(self, batch: Sequence[Execution]) -> None:
        """Cancel these executions, which were begun here."""
        # An earlier batch has begun by then: call_soon_threadsafe keeps the order.
        self._loop.call_soon_threadsafe(self._cancel, batch)

    @property
    def abandoned(self) -> int:
        """How many abandoned coroutines still exist."""
        return len(self._abandoned)

    def blocked_s(self, now_s: float) -> float:
        """How long the loop has not answered; sends it a question if it has."""
        asked_s = self._asked_s
        if asked_s is not None:
            return now_s - asked_s
        if self._tasks:
            self._asked_s = now_s
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # closed, with tasks left that ignored their cancel: it will never answer
                self._asked_s = None
        return 0.0

    def at_work(self) -> tuple[str, Execution | None]:
        """Where the loop is now, and the execution of that handler. A best effort."""
        frames = sys._current_frames()
        task = asyncio.current_task(self._loop)
        return where(self._thread.ident, None, frames), None if task is None else self._tasks.get(task)

    def stop(self, timeout_s: float = 0.0) -> bool:
        """Leave the lifespan and end the loop. False: it hangs, and is left to the end of the process."""
        self._life.stop(lambda: self._end(max(LIFESPAN_CLOSE_S_MIN, timeout_s)), timeout_s + 2 * LIFESPAN_CLOSE_S_MIN)
        return not self._thread.is_alive()

    def _end(self, timeout_s: float) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(timeout_s)
        if self._thread.is_alive() and self._served is not None:  # the lifespan hangs
            self._loop.call_soon_threadsafe(self._served.cancel)
            self._thread.join(LIFESPAN_CLOSE_S_MIN)
        if not self._thread.is_alive():
            self._loop.close()

    # --- The loop's own thread ----------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(self._loop_problem)
        self._served = asyncio.Task(self._serve(), loop=self._loop, name="streamtask-lifespan")
        while not self._served.done():
            try:
                self._loop.run_until_complete(self._served)
            except BaseException as error:  # noqa: BLE001 SystemExit in a handler's own task leaves the loop; run it again
                self._on_event("loop_interrupted", {"error": f"{type(error).__name__}: {error}"})

    async def _serve(self) -> None:
        """This one task enters and leaves the lifespan: cancel scopes and task groups inside it require that."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                if self._lifespan is not None:
                    self.state = await stack.enter_async_context(self._lifespan())
                self._opened.set()
                await self._closing.wait()
        except BaseException as error:  # noqa: BLE001 the lifespan is the user's code; its errors are reported, never lost
            closing = self._closing.is_set()
            if self._opened.is_set():
                self._on_event(
                    "lifespan_close_failed" if closing else "lifespan_broke",
                    {"error": f"{type(error).__name__}: {error}"},
                )
            if not closing:
                self._on_failure(error)
            self._opened.set()
            if not closing:
                await self._closing.wait()
        await self._leave_nothing()
        await self._loop.shutdown_asyncgens()

    async def _leave_nothing(self) -> None:
        """Cancel what handlers left behind on the loop; tasks that swallow it are left to the end of the process."""
        for waiting in self._waiting:
            while waiting:
                self._finish_unbegun(waiting.popitem(last=False)[1])
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=LIFESPAN_CLOSE_S_MIN / 2)

    def _begin(self, batch: Sequence[Execution]) -> None:
        first, others = self._waiting
        if len(batch) <= self._places() and not first and not others:
            self._launch(batch)
            return
        for execution in batch:
            (others if execution.record.band else first)[execution.token] = execution
        self._launch_next()

    def _places(self) -> int:
        return self._limit - len(self._tasks) + len(self._abandoned)

    def _launch_next(self) -> None:
        """Begin those that wait for which there is a place."""
        places = self._places()
        batch: list[Execution] = []
        for waiting in self._waiting:
            while waiting and len(batch) < places:
                batch.append(waiting.popitem(last=False)[1])
        self._launch(batch)

    def _launch(self, batch: Iterable[Execution]) -> None:
        loop, tasks, ended = self._loop, self._tasks, self._task_ended
        for execution in batch:
            # asyncio.Task itself, not loop.create_task: it is kept in self._tasks, and this saves 0.4 µs.
            name = f"{execution.handler.name} {execution.record.task_id}"
            context = None if execution.span is None else execution.span.context
            task = asyncio.Task(self._run(execution), loop=loop, name=name, context=context)
            tasks[task] = execution
            execution.task = task
            task.add_done_callback(ended)

    async def _run(self, execution: Execution) -> None:
        handler = execution.handler
        if execution.stop_reason is not None:
            self._finish(execution, outcomes.not_begun(execution.stop_reason))
            return
        if execution.late:
            self._begins(execution)
        began_s = time.perf_counter()
        try:
            if execution.record.text is not None:
                execution.reopen()
        except BaseException as error:  # noqa: BLE001 no memory for it: the attempt has failed, and may succeed later
            self._finish(execution, outcomes.broken_off(handler, execution, error))
            return
        try:
            args, kwargs = handler.arguments(execution.request.parameters, ours=execution.record.text is not None)
        except ParametersInvalid as error:
            self._finish(execution, outcomes.invalid(error))
            return
        except BaseException as error:  # noqa: BLE001 validators are the user's code
            self._finish(execution, outcomes.unreadable(error))
            return
        try:
            if handler.takes_context:
                value = await handler.function(execution, *args, **kwargs)
            else:
                value = await handler.function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 SystemExit in a task would end the loop
            outcome = outcomes.broken_off(handler, execution, error)
        else:
            outcome = outcomes.returned(value)
            if execution.cancel_sent:
                self._on_event("handler_swallowed_cancel", execution.fields())
        outcome.ran_ms = (time.perf_counter() - began_s) * 1_000
        self._finish(execution, outcome)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        execution = self._tasks.pop(task)
        if not execution.ended:  # cancelled before its first step: _run never ran
            self._finish_unbegun(execution)
        execution.task = None
        if task in self._abandoned:
            self._abandoned.discard(task)
            self._on_event("abandoned_handler_ended", execution.fields())
        first, others = self._waiting
        if first or others:
            self._launch_next()

    def _finish_unbegun(self, execution: Execution) -> None:
        if execution.stop_reason is not None:
            outcome = outcomes.not_begun(execution.stop_reason)
        else:
            outcome = outcomes.broken_off(execution.handler, execution, asyncio.CancelledError("not begun"))
        self._finish(execution, outcome)

    def _cancel(self, batch: Sequence[Execution]) -> None:
        for execution in batch:
            task = execution.task
            if task is None:
                if any(waiting.pop(execution.token, None) is not None for waiting in self._waiting):
                    self._finish_unbegun(execution)
            elif not task.done():
                execution.cancel_sent = True
                task.cancel()
        self._look_again(batch)

    def _look_again(self, batch: Sequence[Execution]) -> None:
        due_s = self._loop.time() + self._patience_s
        # Not in the timer itself: it may run before the step of a coroutine whose cancel has just been delivered.
        self._loop.call_later(self._patience_s, self._loop.call_soon, self._still_there, batch, due_s)

    def _still_there(self, batch: Sequence[Execution], due_s: float) -> None:
        alive = [execution for execution in batch if execution.task is not None]
        if alive and self._loop.time() - due_s < LATE_S:
            frames = sys._current_frames()
            for execution in alive:
                if not execution.ended:
                    self._give_up(execution, frames)
                if execution.task is not None:
                    execution.task.cancel()
        if alive:
            self._look_again(alive)

    def _give_up(self, execution: Execution, frames: Mapping[int, FrameType]) -> None:
        assert execution.task is not None
        assert execution.stop_reason is not None
        fields = {**execution.fields(), "where": where(None, execution.task, frames)}
        if len(self._abandoned) >= ABANDONED_MAX:
            if not execution.reported_overdue:
                execution.reported_overdue = True
                self._on_event("handler_ignores_stop", fields)
            return
        self._abandoned.add(execution.task)
        self.abandoned_total += 1
        self._finish(execution, outcomes.abandoned(execution.stop_reason, self._patience_s))
        self._on_event("handler_abandoned", fields)
        self._launch_next()

    def _answer(self) -> None:
        self._asked_s = None

    def _loop_problem(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = f"{context.get('message')}: {type(error).__name__}: {error}" if error else str(context.get("message"))
        self._on_event("loop_problem", {"error": text})


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows, or omitted on purpose
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
