"""What one record of tasks.status says about a request record, for a shard that recovers its positions from that topic.

A client with write access to the topic can write any bytes, and every worker that recovers the shard reads all of it. So
a record counts only if a worker of streamtask could have written it: its key is its task_id, its origin is in the record's
own partition, its attempt fits a ledger, its time is a time. Anything else is a DecodeError, which the caller counts and
skips. Records that workers wrote always pass, so no task that has ended runs again because of this.
"""

from __future__ import annotations

from datetime import datetime

from streamtask.codec.reader import Reader
from streamtask.codec.status import peek_status
from streamtask.core.offset_map import ATTEMPT_MAX
from streamtask.domain.identity import Origin, canonical
from streamtask.domain.model import ENDED, TaskStatus, to_ms
from streamtask.domain.ports import Recalled
from streamtask.errors import ClusterError, DecodeError, SchemaPending

# A later time does not advance the shard's clock, which never goes back: one event of the year 9999 would give its time to
# all later ones. An hour is how far ahead a broker lets a timestamp be (message.timestamp.after.max.ms).
CLOCK_AHEAD_MAX_MS = 3_600_000


def read_recalled(partition: int, key: bytes | None, value: bytes, reader: Reader, now_ms: int) -> Recalled:
    """The fact in a record of this partition of the status topic.

    now_ms  wall clock of the reader

    Raises DecodeError when no worker wrote it; SchemaPending or SchemaUnavailable from the reader's source of schemas.
    """
    try:
        return _read(partition, key, value, reader, now_ms)
    except (DecodeError, SchemaPending, ClusterError):
        raise
    except Exception as error:  # noqa: BLE001 an unforeseen record must not end every worker of its shard
        raise DecodeError(f"cannot be read: {type(error).__name__}: {error}"[:500]) from None


def _read(partition: int, key: bytes | None, value: bytes, reader: Reader, now_ms: int) -> Recalled:
    event = peek_status(value, reader)
    task_id = event["task_id"]
    if key is not None and canonical(key.decode("latin-1")) != task_id:
        raise DecodeError("the key is not the task_id")
    named = event.get("origin")
    origin = Origin.parse(named) if isinstance(named, str) else None
    if origin is None:
        raise DecodeError("the origin is not a request record")
    if origin.partition != partition:
        raise DecodeError(f"the origin lies in partition {origin.partition}")
    attempt = event.get("attempt")
    if attempt is None:
        attempt = 0  # CREATED, or a task that ended before its first start
    elif type(attempt) is not int or not 0 <= attempt <= ATTEMPT_MAX:
        raise DecodeError(f"attempt must be a whole number from 0 to {ATTEMPT_MAX}")
    updated_ms = _time(event.get("updated_at"))
    return Recalled(
        str(origin),
        task_id,
        TaskStatus(event["status"]) in ENDED,
        attempt,
        updated_ms if updated_ms <= now_ms + CLOCK_AHEAD_MAX_MS else 0,
    )


def _time(held: object) -> int:
    """Milliseconds since the epoch; 0 when no time is given. Raises DecodeError."""
    if held is None:
        return 0
    try:
        when = datetime.fromisoformat(held) if isinstance(held, str) else None
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise DecodeError("updated_at must be a time with a UTC offset")
    return max(0, to_ms(when))
