"""Where the handlers of this process are, for stack dumps and warnings. A best effort: nothing depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

from streamtask.domain.model import HandlerKind
from streamtask.domain.ports import StopReason


class Stragglers(NamedTuple):
    """Handlers that run on although they were stopped, and a loop that does not answer.

    overdue          open executions that were stopped a while ago; each holds its slot
    abandoned        coroutines that were given up and still exist on the loop
    abandoned_total  all that were given up since the start
    blocked_s        how long the handlers' event loop has not answered
    blocked_at       where it is blocked
    """

    overdue: int = 0
    abandoned: int = 0
    abandoned_total: int = 0
    blocked_s: float = 0.0
    blocked_at: str = ""


class Running(NamedTuple):
    """One open execution, for stack dumps. where: the line its handler is at, "" if unknown."""

    token: int
    task_id: str
    task_type: str
    kind: HandlerKind
    attempt: int
    seconds: float
    stopped: StopReason | None
    where: str


def where(thread_id: int | None, task: asyncio.Task[None] | None, frames: Mapping[int, FrameType]) -> str:
    """`file:line in function` of a handler in a thread or on the loop; "" if unknown."""
    frame: FrameType | None = None
    if thread_id is not None:
        frame = frames.get(thread_id)
    elif task is not None:
        step: Any = task.get_coro()
        while step is not None and getattr(step, "cr_frame", None) is not None:
            frame, step = step.cr_frame, step.cr_await
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""
