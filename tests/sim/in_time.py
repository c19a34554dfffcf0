"""The promise about expires_at, by the owner's wall clock: judged where a batch is made and where a start is handed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamtask.domain.model import RequestRecord, TaskStatus
from streamtask.domain.ports import Effect, Produce, Start

from .promises import PromiseBroken

if TYPE_CHECKING:
    from .process import Process


def granted(process: Process, ask: Any) -> Any:
    """A batch that has just been made grants no first attempt to a request whose expires_at has passed. Returns the ask."""
    for event in ask.plan.events if type(ask) is Produce else ():
        first = event.attempt == 1 and event.status is TaskStatus.RUNNING and event.started_ms == event.updated_ms
        if first and event.progress is None and event.message is None:
            history = process.cluster.promises.histories[event.origin, event.task_id]
            _in_time(process, history.record, "is sent RUNNING 1")
    return ask


def handed_over(process: Process, effects: list[Effect]) -> list[Effect]:
    """Nor is one handed to its handler. Returns the effects."""
    for effect in effects:
        if isinstance(effect, Start) and effect.attempt == 1:
            _in_time(process, effect.record, "starts")
    return effects


def _in_time(process: Process, record: RequestRecord, what: str) -> None:
    wall_ms = process.now().wall_ms
    if record.expires_ms is not None and record.expires_ms <= wall_ms:
        late_ms = wall_ms - record.expires_ms
        raise PromiseBroken(f"{record.band}-{record.partition}@{record.offset} {what} {late_ms} ms too late")
