"""More executions than may run at once: they wait in the executor, in turn, until others end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from streamtask.domain.model import Ending
from streamtask.domain.ports import Stop, StopReason
from streamtask.handlers.registry import Context
from tests.unit.executor_bench import DEADLINE_S, Make
from tests.unit.executor_bench import bench as bench  # the fixture


class Gates:
    """Handlers of both kinds that note their number, and return when their gate is open."""

    def __init__(self) -> None:
        self.called: list[int] = []
        self.running = self.most = 0
        self.gate = threading.Event()

    async def coroutine(self, n: int) -> None:
        self._enter(n)
        await asyncio.to_thread(self.gate.wait, DEADLINE_S)
        self.running -= 1

    def thread(self, n: int) -> None:
        self._enter(n)
        self.gate.wait(DEADLINE_S)
        self.running -= 1

    def _enter(self, n: int) -> None:
        self.called.append(n)
        self.running += 1
        self.most = max(self.most, self.running)

    def handlers(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        async def coroutine(n: int) -> None:
            await self.coroutine(n)

        def thread(n: int) -> None:
            self.thread(n)

        return coroutine, thread


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_those_that_wait_begin_as_others_end_and_those_of_the_first_band_before_the_rest(
    kind: str, bench: Make
) -> None:
    gates = Gates()
    b = bench(*gates.handlers(), coroutines=1, threads=1)
    tokens = [b.start(kind, {"n": 0})]
    b.until(lambda: gates.called)
    tokens += [b.start(kind, {"n": n}, band=0 if n in (3, 4) else 2) for n in range(1, 6)]
    gates.gate.set()
    assert {b.outcome(token).ending for token in tokens} == {Ending.RETURNED}
    assert gates.called == [0, 3, 4, 1, 2, 5]
    assert gates.most == 1


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_one_that_is_stopped_while_it_waits_is_never_called_and_says_so(kind: str, bench: Make) -> None:
    gates = Gates()
    b = bench(*gates.handlers(), coroutines=1, threads=1)
    first = b.start(kind, {"n": 0})
    b.until(lambda: gates.called)
    waits, last = b.start(kind, {"n": 1}), b.start(kind, {"n": 2})
    b.executor.stop_executions([Stop(waits, StopReason.CANCEL)])
    outcome = b.outcome(waits)
    assert (outcome.ending, outcome.begun) == (Ending.STOPPED, False)
    gates.gate.set()
    assert b.outcome(first).begun
    assert b.outcome(last).begun
    assert gates.called == [0, 2]


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_one_that_shares_a_slot_says_when_it_begins_and_its_time_counts_from_then(kind: str, bench: Make) -> None:
    gates, deadlines = Gates(), list[float]()

    async def coroutine(ctx: Context, n: int) -> None:
        deadlines.append(ctx.deadline or 0.0)
        await gates.coroutine(n)

    def thread(ctx: Context, n: int) -> None:
        deadlines.append(ctx.deadline or 0.0)
        gates.thread(n)

    b = bench(coroutine, thread, coroutines=1, threads=1)
    first = b.start(kind, {"n": 0})
    b.until(lambda: gates.called)
    waits = b.start(kind, {"n": 1}, shares=True)
    assert b.executor.begun() == [], "the first one shares no slot, and the second has not begun"
    opened_s = time.monotonic()
    gates.gate.set()
    b.outcome(first)
    b.outcome(waits)
    assert b.executor.begun() == [waits]
    assert deadlines[1] >= opened_s + 10


def test_an_abandoned_coroutine_makes_room_for_one_that_waits(bench: Make) -> None:
    leave, begun = asyncio.Event(), threading.Event()

    async def deaf() -> None:
        begun.set()
        while not leave.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await leave.wait()

    async def leaves() -> None:
        leave.set()

    async def waits() -> None: ...

    b = bench(deaf, waits, leaves, coroutines=1, patience_s=0.05)
    first, second = b.start("deaf"), b.start("waits")
    assert begun.wait(DEADLINE_S)
    b.executor.stop_executions([Stop(first, StopReason.CANCEL)])
    assert b.outcome(second).ending is Ending.RETURNED
    assert b.run("leaves").ending is Ending.RETURNED
    b.told("abandoned_handler_ended")
