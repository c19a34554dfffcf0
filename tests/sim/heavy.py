"""Scenarios of requests that weigh more than the memory of their worker, and the rules that they need, taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from streamtask.core.memory import Memory, Share
from streamtask.domain.model import HandlerKind, TaskStatus

from .handlers import config as default_config
from .history import History
from .stage import Stage

LOW, HIGH = 2, 0


def _stage(**limits: Any) -> Stage:
    slots = {HandlerKind.ASYNC: 16, HandlerKind.THREAD: 2, HandlerKind.PROCESS: 0}
    stage = Stage(shards=2, config=default_config(slots=slots, backlog_max=1_000, backlog_low=900, **limits))
    stage.start(0)
    return stage


def _heavy(stage: Stage, *script: str, size: int = 20_000, opens: bool = True, **fields: Any) -> History:
    return stage.submit(*script, value=bytes(size), opens=opens, **fields)


def flood_of_heavy_requests() -> None:
    """More than the memory holds, of tasks that take their time: the rest stays in the log, and comes in as they end."""
    stage = _stage(waiting_bytes_max=200_000)
    tasks = [_heavy(stage, "long", band=LOW) for _ in range(60)]
    stage.play()
    for task in tasks:
        stage.expect(task, TaskStatus.COMPLETED, attempt=1)


def requests_heavier_than_the_memory() -> None:
    """One of them runs for long and takes more than all; another cell goes on all the same, one request after the other."""
    stage = _stage(waiting_bytes_max=50_000)
    long = _heavy(stage, "hang", size=90_000, task_type="once", timeout_seconds=60.0, band=LOW, shard=0)
    stage.until_running(long)
    for _ in range(3):
        task = _heavy(stage, "ok", band=LOW, shard=1)
        began = stage.cluster.timeline.now
        stage.until_ended(task, "a cell that holds nothing has its next request")
        assert stage.cluster.timeline.now - began < 20_000, "it has waited for the other one"
    stage.play()


def high_requests_behind_a_flood_of_low_ones() -> None:
    """Low ones fill all the memory that low may have, for long. High has a cell that holds one already, and gets on."""
    stage = _stage(waiting_bytes_max=300_000)
    for number in range(14):
        _heavy(stage, "hang", task_type="once", timeout_seconds=30.0, band=LOW, shard=number % 2)
    held = stage.submit("hang", task_type="once", timeout_seconds=30.0, band=HIGH)
    stage.until_running(held)
    for _ in range(3):
        task = _heavy(stage, "ok", size=2_000, band=HIGH)
        began = stage.cluster.timeline.now
        stage.until_ended(task, "high has a part of its own")
        assert stage.cluster.timeline.now - began < 10_000, "it has waited for low ones"
    stage.play()


def parameters_that_fill_the_memory() -> None:
    """Sixteen slots, and memory for the parameters of a few: the others wait for their end, and not in vain."""
    stage = _stage(active_bytes_max=100_000)
    tasks = [_heavy(stage, "long", band=LOW, shard=number % 2) for number in range(24)]
    stage.play()
    for task in tasks:
        stage.expect(task, TaskStatus.COMPLETED, attempt=1)


# --- The rules, taken out ---------------------------------------------------------------------------------------------


@contextmanager
def _paused_by_weight() -> Iterator[None]:
    """Only the number of a cell's records pauses it."""
    with patch.object(Share, "full", lambda self, band: False):
        yield


@contextmanager
def _one_of_each_cell() -> Iterator[None]:
    """A cell that is paused for its weight waits for room, also when it holds nothing."""
    roomy = Memory.may_have

    def may_have(self: Memory, shard: Any, band: int) -> bool:
        return roomy(self, shard, band) and self.waiting.roomy(band)

    with patch.object(Memory, "may_have", may_have):
        yield


@contextmanager
def _own_part() -> Iterator[None]:
    """First come, first served: no band has a part of its own."""
    made = Share.__init__

    def make(self: Share, limit: int, bands: int) -> None:
        made(self, limit, bands)
        self.own, self._common, self.safe = [0] * bands, limit, 0

    with patch.object(Share, "__init__", make):
        yield


@contextmanager
def _started_by_weight() -> Iterator[None]:
    """Only slots bound what is started."""
    with patch.object(Memory, "closed", lambda self: ()):
        yield


# rule, how it is taken out, scenarios, what breaks: see mutations.py
HEAVY: dict[str, tuple[str, Callable[[], Any], tuple[str, ...], str]] = {
    "paused_by_weight": (
        "a cell is paused for what its band holds",
        _paused_by_weight,
        ("flood_of_heavy_requests",),
        "a backlog of heavy requests is held by the worker: it dies for lack of memory, and so does the next one",
    ),
    "one_of_each_cell": (
        "a cell that holds nothing may have one request",
        _one_of_each_cell,
        ("requests_heavier_than_the_memory",),
        "a request that takes all the memory stops every cell that is paused, for as long as it runs",
    ),
    "own_part": (
        "every band has a part of the memory of its own",
        _own_part,
        ("high_requests_behind_a_flood_of_low_ones",),
        "high requests wait until low ones have ended",
    ),
    "started_by_weight": (
        "a task is started when its parameters have room",
        _started_by_weight,
        ("parameters_that_fill_the_memory",),
        "as many parameters are decoded as there are slots, whatever they take",
    ),
}
