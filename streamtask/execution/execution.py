"""One execution in this process: what its handler sees (Context), and what the executor keeps about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from streamtask.domain.model import Band
from streamtask.domain.ports import Start
from streamtask.execution.live_context import LiveContext
from streamtask.handlers.registry import Context, Handler
from streamtask.observability.tracing import Attempt

if TYPE_CHECKING:
    from streamtask.execution.process_pool.pool import Pool

OnEvent = Callable[[str, Mapping[str, Any]], None]


class Execution(LiveContext):
    """Belongs to the executor. The loop uses `task` and `cancel_sent`; the thread that runs it sets `thread_id`."""

    __slots__ = (
        "cancel_sent",
        "handler",
        "late",
        "pool",
        "reported_overdue",
        "span",
        "task",
        "thread_id",
        "timed",
        "woke_s",
    )

    def __init__(
        self,
        start: Start,
        handler: Handler,
        started_s: float,
        reporter: Callable[[Context, float, str | None], None],
        state: Any,
        bands: tuple[Band, ...],
    ) -> None:
        super().__init__(start, started_s=started_s, reporter=reporter, state=state, bands=bands)
        self.handler = handler
        self.late = start.shares  # it may wait for others before its handler is called
        self.timed = start.timed  # the core is to know when that is
        self.task: asyncio.Task[None] | None = None
        self.thread_id: int | None = None
        self.cancel_sent = False
        self.pool: Pool | None = None  #: the pool whose child runs it
        self.reported_overdue = False  # whether the operator knows that it runs on after its stop
        self.woke_s = 0.0
        self.span: Attempt | None = None

    def fields(self) -> dict[str, Any]:
        """Fields for the operator."""
        return {
            "task_id": self.task_id,
            "task_type": self.handler.name,
            "attempt": self.attempt,
            "reason": self._stopped.value if self._stopped else None,
            "seconds": round(time.monotonic() - self._started_s, 3),
        }
