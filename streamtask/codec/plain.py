"""The three status events of nearly every task (CREATED, RUNNING, COMPLETED, with nothing special) as JSON text.

It gives the same bytes as `encode_status` in half the time (0.4 µs instead of 0.83, three times a task): only the result can
need JSON escapes, so an event is one formatted string. All other events go to `encode_status`.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from streamtask.codec.status import MESSAGES, NULL, encode_status
from streamtask.codec.wire import TIMES, time_text
from streamtask.domain.model import StatusEvent, TaskStatus

_TYPES_MAX = 1_000  # names of task types whose JSON text is kept


def plain_writer(*, locale: str, worker: str) -> Callable[[StatusEvent], bytes]:
    """encode_status for a worker's events, whose task_id is a UUID and whose origin names a band."""
    plain = (TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.COMPLETED)
    is_created, is_running, is_completed = plain  # found faster than in the enum, see core/shard.py
    created, running, completed = (_quoted(MESSAGES[locale][status.value]) for status in plain)
    author = _quoted(worker)
    types: dict[str | None, str] = {}
    known = TIMES.get  # nearly every time has been written before: 0.04 µs less than the call

    def write(event: StatusEvent) -> bytes:
        name = types.get(event.task_type)
        if (
            name is None
            or event.message is not None
            or event.labels
            or event.error is not None
            or event.error_code is not None
            or event.priority is None
        ):
            return special(event)
        status, attempt, started_ms = event.status, event.attempt, event.started_ms
        created_ms, updated_ms = event.created_ms, event.updated_ms
        created_at = known(created_ms) or time_text(created_ms)
        updated_at = known(updated_ms) or time_text(updated_ms)
        if status is is_completed:
            finished_ms = event.finished_ms
            if attempt is None or started_ms is None or finished_ms is None:
                return special(event)
            head = f'{{"task_id":"{event.task_id}","status":"completed","progress":1.0,'
            tail = (
                f'"created_at":"{created_at}","updated_at":"{updated_at}","message":{completed},"task_type":{name},'
                f'"priority":{event.priority},"attempt":{attempt},"started_at":"{known(started_ms) or time_text(started_ms)}",'
                f'"finished_at":"{known(finished_ms) or time_text(finished_ms)}","worker":{author},"origin":"{event.origin}"}}'
            )
            if event.result is None or event.result == NULL:
                return (head + tail).encode()
            return b'%b"result":%b,%b' % (head.encode(), event.result, tail.encode())
        if event.progress is not None or event.result is not None or event.finished_ms is not None:
            return special(event)
        if status is is_running and attempt is not None and started_ms is not None:
            return (
                f'{{"task_id":"{event.task_id}","status":"running","created_at":"{created_at}","updated_at":"{updated_at}",'
                f'"message":{running},"task_type":{name},"priority":{event.priority},"attempt":{attempt},'
                f'"started_at":"{known(started_ms) or time_text(started_ms)}",'
                f'"worker":{author},"origin":"{event.origin}"}}'
            ).encode()
        if status is is_created and attempt is None and started_ms is None:
            return (
                f'{{"task_id":"{event.task_id}","status":"created","created_at":"{created_at}","updated_at":"{updated_at}",'
                f'"message":{created},"task_type":{name},"priority":{event.priority},"worker":{author},"origin":"{event.origin}"}}'
            ).encode()
        return special(event)

    def special(event: StatusEvent) -> bytes:
        name = event.task_type
        if name is not None and name not in types and len(types) < _TYPES_MAX:
            try:
                types[name] = _quoted(name)
            except TypeError:
                pass  # a lone surrogate
        return encode_status(event, locale=locale, worker=worker)

    return write


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()
