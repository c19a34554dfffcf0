"""The executor: whatever a handler does, there is one outcome, and the loop and its threads go on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from streamtask.domain import model
from streamtask.domain.model import Ending, ErrorCode, HandlerKind, Outcome
from streamtask.domain.ports import Stop, StopReason
from streamtask.errors import GiveUp, LifespanError, RetryLater
from streamtask.execution import event_loop
from streamtask.handlers.options import Retry
from streamtask.handlers.registry import Context
from tests.unit.executor_bench import DEADLINE_S, TASK_ID, Bench, Make
from tests.unit.executor_bench import bench as bench  # the fixture


class Params(BaseModel):
    path: str
    n: int = 1


async def twice(ctx: Context, params: Params) -> dict[str, Any]:
    return {"path": params.path, "n": params.n * 2}


def twice_in_thread(ctx: Context, path: str, n: int = 1) -> dict[str, Any]:
    return {"path": path, "n": n * 2, "thread": threading.current_thread().name.startswith("streamtask-thread")}


async def nothing() -> None: ...


def nothing_in_thread() -> None: ...


# --- Returning --------------------------------------------------------------------------------------------------------


def test_a_coroutine_and_a_plain_function_return_their_results_as_json(bench: Make) -> None:
    b = bench(twice, twice_in_thread)
    assert b.run("twice", {"path": "x", "n": 2}) == Outcome(Ending.RETURNED, result=b'{"path":"x","n":4}')
    assert b.run("twice_in_thread", {"path": "x"}).result == b'{"path":"x","n":2,"thread":true}'
    assert len(b.executor) == 0


def test_a_handler_that_returns_nothing_has_no_result(bench: Make) -> None:
    b = bench(nothing, nothing_in_thread)
    assert b.run("nothing") == b.run("nothing_in_thread") == Outcome(Ending.RETURNED)


def test_thousands_of_both_kinds_in_batches_yield_one_outcome_each(bench: Make) -> None:
    async def suspends() -> int:
        await asyncio.sleep(0)
        return 1

    b = bench(nothing, suspends, nothing_in_thread)
    tokens = []
    for _ in range(30):
        batch = [b.make(name) for name in ("nothing", "suspends", "nothing_in_thread") for _ in range(40)]
        b.executor.submit(batch)
        tokens += [start.token for start in batch]
    for token in tokens:
        assert b.outcome(token).ending is Ending.RETURNED
    assert len(b.executor) == 0


def test_results_that_are_no_json_fail_as_not_serializable_and_are_not_tried_again(bench: Make) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise SystemExit(3)

        __repr__ = __str__

    def circle() -> Any:
        out: list[Any] = []
        out.append(out)
        return out

    async def lock() -> Any:
        return asyncio.Lock()

    async def nan() -> float:
        return float("nan")

    def coroutine() -> Any:
        return nothing()

    def hostile() -> Any:
        return {"x": Hostile(), Hostile(): 1}

    b = bench(circle, lock, nan, coroutine, hostile)
    for name in b.registry:
        outcome = b.run(name)
        assert (outcome.ending, outcome.code) == (Ending.RAISED, ErrorCode.NOT_SERIALIZABLE), name
        assert not outcome.retryable
        assert outcome.error


# --- Parameters -------------------------------------------------------------------------------------------------------


def test_wrong_parameters_end_as_invalid_without_a_call(bench: Make) -> None:
    called = []

    async def typed(n: int) -> None:
        called.append(n)

    def typed_in_thread(n: int) -> None:
        called.append(n)

    b = bench(typed, typed_in_thread)
    for name in ("typed", "typed_in_thread"):
        outcome = b.run(name, {"n": "many", "m": 1})
        assert (outcome.ending, outcome.code) == (Ending.INVALID, "invalid_parameters")
        assert "m: unknown parameter; did you mean 'n'?" in outcome.error or "m: unknown" in outcome.error
        assert "n: " in b.run(name, {"n": "many"}).error
        assert not outcome.retryable
    assert called == []


class Broken(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def breaks(cls, value: int) -> int:
        raise SystemExit(value) if value else KeyError("k")


def test_a_validator_that_breaks_is_an_invalid_outcome_and_the_loop_goes_on(bench: Make) -> None:
    async def validated(params: Broken) -> None: ...
    def validated_in_thread(params: Broken) -> None: ...

    b = bench(validated, validated_in_thread, nothing)
    for name in ("validated", "validated_in_thread"):
        for n, kind in ((0, "KeyError"), (1, "SystemExit")):
            outcome = b.run(name, {"n": n})
            assert (outcome.ending, outcome.exception, outcome.retryable) == (Ending.INVALID, kind, False)
    assert b.run("nothing").ending is Ending.RETURNED


def test_a_type_without_handler_and_an_unreadable_request_are_outcomes(bench: Make) -> None:
    b = bench(nothing)
    assert b.run("unheard").code == "unknown_task_type"
    start = b.make("nothing")
    start.record.request = None
    b.executor.submit([start])
    assert b.outcome(start.token).code == "invalid_request"


# --- Raising ----------------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


RAISED: list[tuple[Callable[[], BaseException], str]] = [
    (lambda: ValueError("wrong"), "ValueError"),
    (lambda: asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
    (lambda: KeyboardInterrupt(), "KeyboardInterrupt"),
    (lambda: SystemExit(1), "SystemExit"),
    (lambda: BaseException("bare"), "BaseException"),
    (lambda: GeneratorExit(), "GeneratorExit"),
    (lambda: BaseExceptionGroup("g", [KeyboardInterrupt()]), "BaseExceptionGroup"),
    (lambda: MemoryError(), "MemoryError"),
    (lambda: Unspeakable(), f"{__name__}.Unspeakable"),
]


@pytest.mark.parametrize(("make", "name"), RAISED, ids=[name for _, name in RAISED])
def test_whatever_a_handler_raises_is_an_outcome_and_the_next_task_runs(
    bench: Make, make: Callable[[], BaseException], name: str
) -> None:
    async def raises() -> None:
        raise make()

    async def raises_later() -> None:
        await asyncio.sleep(0)
        raise make()

    def raises_in_thread() -> None:
        raise make()

    b = bench(raises, raises_later, raises_in_thread, nothing, nothing_in_thread, threads=1)
    for task_type in ("raises", "raises_later", "raises_in_thread"):
        outcome = b.run(task_type)
        assert (outcome.ending, outcome.code) == (Ending.RAISED, "handler_error")
        assert outcome.exception == name
        assert outcome.error
        assert outcome.retryable
        if name != f"{__name__}.Unspeakable":
            assert outcome.traceback is not None
            assert f"in {task_type}" in outcome.traceback
            assert "streamtask/execution/executor.py" not in outcome.traceback
    assert b.run("nothing").ending is b.run("nothing_in_thread").ending is Ending.RETURNED


def test_stop_iteration_is_an_outcome_as_well(bench: Make) -> None:
    async def raises() -> None:
        next(iter(()))

    def raises_in_thread() -> None:
        next(iter(()))

    b = bench(raises, raises_in_thread)
    assert b.run("raises").exception == "RuntimeError"  # Python's own rule for coroutines
    assert b.run("raises_in_thread").exception == "StopIteration"


def test_retry_later_and_give_up_steer_the_retries(bench: Make) -> None:
    async def later() -> None:
        raise RetryLater("busy", after=1.5)

    def hopeless() -> None:
        raise GiveUp("never")

    async def grouped() -> None:
        async def child() -> None:
            raise GiveUp("inside")

        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    b = bench(later, hopeless, grouped, retry=Retry(attempts=3))
    assert (b.run("later").after_ms, b.outcomes[1].retryable, b.outcomes[1].error) == (1_500, True, "busy")
    outcome = b.run("hopeless")
    assert (outcome.retryable, outcome.error, outcome.exception) == (False, "never", "streamtask.GiveUp")
    assert not b.run("grouped").retryable


def test_retry_on_and_give_up_on_decide(bench: Make) -> None:
    async def raises(name: str) -> None:
        raise {"key": KeyError, "value": ValueError, "unicode": UnicodeError}[name]("x")

    b = bench(raises, retry=Retry(retry_on=(ValueError,), give_up_on=(UnicodeError,)))
    assert [b.run("raises", {"name": name}).retryable for name in ("key", "value", "unicode")] == [False, True, False]


def test_texts_and_tracebacks_are_bounded_and_can_be_said_in_utf_8(bench: Make) -> None:
    def huge() -> None:
        raise ValueError("é\udce9" * 1_000_000)

    def deep(n: int) -> None:
        deep(n + 1) if n % 2 else deep(n + 3)

    def recursive() -> None:
        deep(0)

    b = bench(huge, recursive)
    for name in ("huge", "recursive"):
        outcome = b.run(name)
        assert len(outcome.error) <= model.ERROR_TEXT_MAX
        assert len(outcome.traceback or "") <= model.TRACEBACK_TEXT_MAX
        (outcome.error + (outcome.traceback or "")).encode()
    assert b.outcomes[2].exception == "RecursionError"


def test_a_child_task_that_raises_system_exit_does_not_end_the_loop(bench: Make) -> None:
    async def leaves() -> None:
        async def child() -> None:
            raise SystemExit(7)

        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    async def forgets() -> None:
        async def child() -> None:
            raise KeyboardInterrupt

        kept.append(asyncio.ensure_future(child()))

    async def stops_the_loop() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    kept: list[Any] = []
    b = bench(leaves, forgets, stops_the_loop, nothing)
    assert b.run("leaves").ending is Ending.RAISED
    assert b.run("forgets").ending is Ending.RETURNED
    assert b.run("stops_the_loop").ending is Ending.RETURNED
    for _ in range(3):
        assert b.run("nothing").ending is Ending.RETURNED
    assert "loop_interrupted" in {name for name, _ in b.events}
    kept[0].exception()


# --- Stopping ---------------------------------------------------------------------------------------------------------


def test_a_stopped_coroutine_is_cancelled(bench: Make) -> None:
    began = threading.Event()

    async def long() -> None:
        began.set()
        await asyncio.sleep(3_600)

    b = bench(long)
    token = b.start("long")
    assert began.wait(DEADLINE_S)
    b.executor.stop_executions([Stop(token, StopReason.TIMEOUT)])
    outcome = b.outcome(token)
    assert (outcome.ending, outcome.code, outcome.error) == (Ending.STOPPED, "timeout", "told to stop: timeout")


def test_a_coroutine_stopped_before_its_first_step_never_runs(bench: Make) -> None:
    ran = []

    async def marks() -> None:
        ran.append(1)

    gate = threading.Event()

    async def blocks() -> None:
        gate.wait(DEADLINE_S)  # the loop itself, on purpose

    b = bench(marks, blocks)
    blocker, token = b.start("blocks"), b.start("marks")
    b.executor.stop_executions([Stop(token, StopReason.CANCEL), Stop(999, StopReason.CANCEL)])
    gate.set()
    assert b.outcome(token).ending is Ending.STOPPED
    assert b.outcome(blocker).ending is Ending.RETURNED
    assert ran == []


def test_a_thread_is_told_and_one_that_was_not_begun_never_runs(bench: Make) -> None:
    began = threading.Event()
    ran = []

    def loops(ctx: Context) -> None:
        began.set()
        while True:
            ctx.check_cancelled()

    def marks() -> None:
        ran.append(1)

    b = bench(loops, marks, threads=1)
    token, waiting = b.start("loops"), b.start("marks")
    assert began.wait(DEADLINE_S)
    b.executor.stop_executions([Stop(waiting, StopReason.REVOKE)])
    b.executor.stop_executions([Stop(token, StopReason.CANCEL)])
    assert b.outcome(token) == Outcome(Ending.STOPPED, code="cancelled", error="told to stop: cancel")
    assert b.outcome(waiting).ending is Ending.STOPPED
    assert ran == []


def test_a_plain_function_that_waits_for_a_thread_is_stopped_without_one(bench: Make) -> None:
    begun, leave, called = threading.Event(), threading.Event(), []

    def holds() -> None:
        begun.set()
        leave.wait(DEADLINE_S)

    def waits() -> None:
        called.append(1)

    b = bench(holds, waits, threads=1)
    first, second = b.start("holds"), b.start("waits")
    assert begun.wait(DEADLINE_S)
    b.executor.stop_executions([Stop(second, StopReason.TIMEOUT)])
    outcome = b.outcome(second)
    assert (outcome.ending, outcome.begun) == (Ending.STOPPED, False)
    leave.set()
    ended = b.outcome(first)
    assert (ended.ending, ended.begun) == (Ending.RETURNED, True)
    assert b.run("waits").begun
    assert called == [1]


def test_how_long_a_handler_took_is_told(bench: Make) -> None:
    async def sleeps() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.02)

    def naps() -> None:
        threading.Event().wait(0.02)

    b = bench(sleeps, naps)
    assert 20 <= (b.run("sleeps").ran_ms or 0) < 10_000
    assert 20 <= (b.run("naps").ran_ms or 0) < 10_000


def test_an_error_while_stopping_is_told_but_it_is_a_stop(bench: Make) -> None:
    async def turns() -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    b = bench(turns)
    token = b.start("turns")
    b.until(lambda: "sleep" in b.executor.running()[0].where)
    b.executor.stop_executions([Stop(token, StopReason.CANCEL)])
    outcome = b.outcome(token)
    assert (outcome.ending, outcome.exception, outcome.error) == (Ending.STOPPED, "ConnectionError", "closed")


def test_a_coroutine_that_swallows_its_cancel_is_abandoned_counted_told_and_cancelled_again(bench: Make) -> None:
    began, swallowed, leave = threading.Event(), [], threading.Event()

    async def stubborn(ctx: Context) -> str:
        began.set()
        while not leave.is_set():
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                swallowed.append(ctx)
        ctx.progress(1.0, "too late")
        return "done anyway"

    b = bench(stubborn, nothing, patience_s=0.05)
    token = b.start("stubborn")
    assert began.wait(DEADLINE_S)
    b.executor.stop_executions([Stop(token, StopReason.TIMEOUT)])
    outcome = b.outcome(token)
    assert (outcome.ending, outcome.code, outcome.retryable, outcome.begun) == (Ending.STOPPED, "timeout", False, True)
    assert outcome.error == "it went on for 0.05 s after it was cancelled, and was abandoned"
    assert (len(b.executor), b.executor.running()) == (0, []), "its slot is free"
    told = b.told("handler_abandoned")
    assert (told["task_id"], told["reason"]) == (TASK_ID, "timeout")
    assert "sleep" in told["where"]
    assert b.executor.stragglers()[:3] == (0, 1, 1)
    assert b.run("nothing").ending is Ending.RETURNED, "the loop goes on"
    seen = len(swallowed)
    b.until(lambda: len(swallowed) > seen + 1)
    leave.set()
    b.told("abandoned_handler_ended")
    assert b.executor.stragglers()[:3] == (0, 0, 1)
    assert b.progress == [], "nobody listens to it any more"


def test_more_coroutines_than_may_be_abandoned_keep_their_slots_and_are_told(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "ABANDONED_MAX", 1)
    leave = threading.Event()

    async def stubborn() -> str:
        while not leave.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3_600)
        return "done anyway"

    b = bench(stubborn, patience_s=0.05)
    tokens = [b.start("stubborn") for _ in range(2)]
    b.until(lambda: all("sleep" in one.where for one in b.executor.running()))
    b.executor.stop_executions([Stop(token, StopReason.CANCEL) for token in tokens])
    assert not b.outcome(tokens[0]).retryable
    b.told("handler_ignores_stop")
    assert [one.token for one in b.executor.running()] == [tokens[1]]
    leave.set()
    assert b.outcome(tokens[1]) == Outcome(Ending.RETURNED, result=b'"done anyway"')


def test_a_thread_that_does_not_hear_is_overdue_told_once_and_keeps_its_slot_until_it_ends(bench: Make) -> None:
    began, leave = threading.Event(), threading.Event()

    def deaf() -> str:
        began.set()
        leave.wait(DEADLINE_S)
        return "done anyway"

    b = bench(deaf, nothing_in_thread, threads=2, patience_s=0.05)
    token = b.start("deaf")
    assert began.wait(DEADLINE_S)
    b.executor.stop_executions([Stop(token, StopReason.TIMEOUT)])
    told = b.told("handler_ignores_stop")
    assert (told["task_id"], told["reason"]) == (TASK_ID, "timeout")
    assert "wait" in told["where"]
    assert b.executor.stragglers()[:3] == (1, 0, 0)
    [running] = b.executor.running()
    assert (running.token, running.stopped) == (token, StopReason.TIMEOUT)
    b.executor.stop_executions([Stop(token, StopReason.REVOKE)])
    assert b.run("nothing_in_thread").ending is Ending.RETURNED
    leave.set()
    assert b.outcome(token) == Outcome(Ending.RETURNED, result=b'"done anyway"')
    assert b.executor.stragglers()[:3] == (0, 0, 0)
    assert [name for name, _ in b.events] == ["handler_ignores_stop"]


def test_a_coroutine_that_blocks_the_loop_is_told_and_costs_its_neighbours_nothing(bench: Make) -> None:
    began, leave = threading.Event(), threading.Event()

    async def blocks() -> str:
        began.set()
        leave.wait(DEADLINE_S)  # the loop itself, on purpose
        return "blocked"

    async def neighbour() -> None:
        await asyncio.sleep(3_600)

    b = bench(blocks, neighbour, nothing, patience_s=0.05)
    beside = b.start("neighbour")
    b.until(lambda: all("sleep" in one.where for one in b.executor.running()))
    b.start("blocks")
    assert began.wait(DEADLINE_S)
    behind = b.start("nothing")
    b.executor.stop_executions([Stop(beside, StopReason.TIMEOUT), Stop(behind, StopReason.TIMEOUT)])
    told = b.told("loop_blocked")
    assert told["task_type"] == "blocks"
    assert "wait" in told["where"]
    stragglers = b.executor.stragglers()
    assert stragglers.blocked_s >= 0.05
    assert stragglers.blocked_at == told["where"]
    leave.set()
    assert not b.outcome(behind).begun, "its time ran out behind another one: that is no failure of its own"
    assert (b.outcome(beside).ending, b.outcome(beside).retryable) == (Ending.STOPPED, True), "it had no time to end"
    b.told("loop_answers_again")
    assert b.executor.stragglers() == (0, 0, 0, 0.0, "")


def test_a_handler_that_cancels_every_task_ends_them_but_loses_none(bench: Make) -> None:
    async def hostile() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name() != "streamtask-lifespan":
                task.cancel()

    b = bench(hostile, nothing)
    batch = [b.make(name) for name in ("hostile", "nothing", "nothing")]
    b.executor.submit(batch)
    endings = [b.outcome(start.token) for start in batch]
    assert [one.ending for one in endings] == [Ending.RETURNED, Ending.RAISED, Ending.RAISED]


# --- What a handler sees ----------------------------------------------------------------------------------------------


def test_the_context_tells_request_place_attempt_and_limits(bench: Make) -> None:
    async def tells(ctx: Context, x: int) -> Any:
        assert ctx.deadline is not None
        left = ctx.deadline - time.monotonic()
        return [
            ctx.task_id,
            ctx.request.parameters,
            ctx.headers["h"].decode(),
            ctx.origin,
            ctx.attempt,
            0 < left <= 10,
            ctx.cancelled,
            ctx.priority,
        ]

    b = bench(tells)
    result = b.run("tells", {"x": 1}, attempt=4).result
    assert result == b'["' + TASK_ID.encode() + b'",{"x":1},"1","normal-3@7",4,true,false,5]'


def test_the_latest_progress_wins_and_comes_from_any_thread(bench: Make) -> None:
    reported, go = threading.Event(), threading.Event()

    def reports(ctx: Context) -> None:
        def inside() -> None:
            for n in range(1_001):
                ctx.progress(n / 1_000, f"{n}")

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        reported.set()
        go.wait(DEADLINE_S)

    b = bench(reports)
    token = b.start("reports")
    assert b.executor.wait(DEADLINE_S), "progress did not wake the owner"
    assert reported.wait(DEADLINE_S)
    b.drain()
    assert b.progress[-1] == (token, 1.0, "1000")
    b.drain()
    assert len(b.progress) == 1
    go.set()
    b.outcome(token)


def test_a_context_that_has_ended_says_nothing_more(bench: Make) -> None:
    kept: list[Context] = []

    async def leaks(ctx: Context) -> None:
        ctx.progress(0.9)
        kept.append(ctx)

    b = bench(leaks)
    b.run("leaks")
    kept[0].progress(0.95)
    b.drain()
    assert b.progress == []


def test_what_a_handler_binds_in_a_context_variable_does_not_reach_the_next_one(bench: Make) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def binds() -> int:
        before = variable.get()
        variable.set(before + 1)
        return before

    async def binds_async() -> int:
        return binds()

    b = bench(binds, binds_async, threads=1)
    assert [b.run(name).result for name in ("binds", "binds", "binds_async", "binds_async")] == [b"0"] * 4


def test_timeouts_and_task_groups_work_inside_a_handler(bench: Make) -> None:
    async def uses() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(3_600)
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "grouped"))
        return task.result()

    assert bench(uses).run("uses").result == b'"grouped"'


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_wait_ends_by_wake_by_an_outcome_or_by_time(bench: Make) -> None:
    b = bench(nothing)
    assert not b.executor.wait(0.0)
    assert not b.executor.wait(0.001)
    b.executor.wake()
    b.executor.wake()
    assert b.executor.wait(DEADLINE_S)
    assert not b.executor.wait(0.0)
    token = b.start("nothing")
    assert b.executor.wait(DEADLINE_S)
    assert b.executor.wait(DEADLINE_S), "an outcome that was not drained yet"
    assert b.outcome(token)


def test_wake_reaches_an_owner_that_sleeps(bench: Make) -> None:
    b = bench(nothing)
    slept: list[bool] = []
    owner = threading.Thread(target=lambda: slept.append(b.executor.wait(DEADLINE_S)))
    owner.start()
    b.executor.wake()
    owner.join(DEADLINE_S)
    assert slept == [True]


def test_no_wake_is_lost_between_many_threads_and_a_draining_owner(bench: Make) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        b = bench(nothing_in_thread, threads=8)
        for _ in range(300):
            batch = [b.make("nothing_in_thread") for _ in range(8)]
            b.executor.submit(batch)
            open_ = {start.token for start in batch}
            while open_:
                assert b.executor.wait(DEADLINE_S), "the last outcome woke nobody"
                done, _ = b.executor.drain()
                open_ -= {token for token, _ in done}
    finally:
        sys.setswitchinterval(before)


def test_running_tells_where_each_execution_is(bench: Make) -> None:
    go = threading.Event()
    began = threading.Event()

    async def sleeps_async() -> None:
        await asyncio.sleep(3_600)

    def sleeps_in_thread() -> None:
        began.set()
        go.wait(DEADLINE_S)

    b = bench(sleeps_async, sleeps_in_thread)
    b.start("sleeps_async", attempt=2)
    b.start("sleeps_in_thread")
    assert began.wait(DEADLINE_S)
    inside = {"sleeps_async": "sleep", "sleeps_in_thread": "wait"}  # before that, the place is where they are called
    b.until(lambda: all(inside[one.task_type] in one.where for one in b.executor.running()))
    places = {one.task_type: one for one in b.executor.running()}
    assert "sleep" in places["sleeps_async"].where
    assert (places["sleeps_async"].attempt, places["sleeps_async"].kind) == (2, HandlerKind.ASYNC)
    assert "wait" in places["sleeps_in_thread"].where
    assert places["sleeps_in_thread"].kind is HandlerKind.THREAD
    go.set()


# --- Lifespan and close -----------------------------------------------------------------------------------------------


def test_the_lifespan_opens_before_the_first_task_and_closes_after_the_last(bench: Make) -> None:
    order: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, int]]:
        order.append("open")
        async with asyncio.TaskGroup() as group:  # needs to be left by the task that entered it
            keeper = group.create_task(asyncio.sleep(3_600))
            yield {"pool": 1}
            keeper.cancel()
        order.append("close")

    async def long(ctx: Context) -> None:
        order.append(f"task {ctx.state}")
        try:
            await asyncio.sleep(3_600)
        finally:
            order.append("task ended")

    b = bench(long, lifespan=lifespan)
    token = b.start("long")
    b.until(lambda: len(order) == 2)
    assert b.executor.stop(DEADLINE_S)
    assert b.outcome(token).ending is Ending.STOPPED
    assert order == ["open", "task {'pool': 1}", "task ended", "close"]
    assert b.events == []
    assert b.executor.stop(0.0), "a second close is nothing"


@pytest.mark.parametrize("error", [ConnectionRefusedError("no database"), SystemExit(1), KeyboardInterrupt()])
def test_a_lifespan_that_fails_to_open_is_a_clean_error(error: BaseException) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise error
        yield

    b = Bench(nothing, lifespan=lifespan)
    with pytest.raises(LifespanError, match=type(error).__name__) as caught:
        b.executor.start(DEADLINE_S)
    assert caught.value.__cause__ is error
    assert not any(thread.name == "streamtask-loop" for thread in threading.enumerate())


def test_a_lifespan_that_hangs_is_a_clean_error() -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await asyncio.sleep(3_600)
        yield

    b = Bench(nothing, lifespan=lifespan)
    with pytest.raises(LifespanError, match="did not open within"):
        b.executor.start(0.05)
    assert not any(thread.name == "streamtask-loop" for thread in threading.enumerate())


def test_a_lifespan_that_breaks_later_is_told_and_wakes_the_owner(bench: Make) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async def breaks() -> None:
            await go.wait()
            raise ConnectionError("lost")

        loops.append(asyncio.get_running_loop())

        async with asyncio.TaskGroup() as group:
            group.create_task(breaks())
            yield

    go = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    b = bench(nothing, lifespan=lifespan)
    loops[0].call_soon_threadsafe(go.set)
    assert b.executor.wait(DEADLINE_S)
    assert isinstance(b.executor.failure, ExceptionGroup)
    assert b.events[0][0] == "lifespan_broke"
    assert b.run("nothing").ending is Ending.RETURNED


def test_a_lifespan_that_fails_to_close_is_told(bench: Make) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        raise ConnectionError("closing")

    b = bench(nothing, lifespan=lifespan)
    assert b.executor.stop(DEADLINE_S)
    assert b.events == [("lifespan_close_failed", {"error": "ConnectionError: closing"})]


def test_close_leaves_within_its_time_what_will_not_end(bench: Make) -> None:
    go, began = threading.Event(), threading.Event()

    def stuck() -> None:
        began.set()
        go.wait(DEADLINE_S)

    async def orphan() -> None:
        kept.append(asyncio.ensure_future(asyncio.sleep(3_600)))

    kept: list[Any] = []
    b = bench(stuck, orphan)
    b.run("orphan")
    token = b.start("stuck")
    assert began.wait(DEADLINE_S)
    at = time.monotonic()
    assert not b.executor.stop(0.05)
    assert time.monotonic() - at < DEADLINE_S / 2
    assert kept[0].cancelled()
    go.set()
    assert b.outcome(token).ending is Ending.RETURNED, "its late outcome still comes"
