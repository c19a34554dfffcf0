"""A claim: one open request that this worker owns, with what is committed about it and what is still owed.

Committed facts (created, attempt, failed, lost, marked) change only in `batch.settle`. Owed things (start, progress, wait,
final) are set by the engine at any time and cleared when the transaction that carries them has settled, so an aborted
transaction needs no undo: what is owed is still owed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from streamtask.core.suspects import ALONE, stage_of
from streamtask.domain.identity import TRACE_HEADERS
from streamtask.domain.model import HandlerKind, RequestRecord, TaskPolicy, TaskStatus

if TYPE_CHECKING:
    from streamtask.core.shard import Shard


SECONDS_MAX = 1e9  # of a time limit: 31 years; longer ones are none


class Phase(IntEnum):
    """Where a claim is on its way, as the engine drives it."""

    QUEUED = 0  #: in the schedule
    WAITING = 1  #: not_before, unknown type, backoff: holds no slot
    PICKED = 2  #: holds a slot; its RUNNING is owed
    RUNNING = 3  #: its handler was started
    ENDING = 4  #: its final event is owed


class Wait(IntEnum):
    """Why a claim is WAITING (and the kinds of deadlines)."""

    NOT_BEFORE = 0
    UNKNOWN_TYPE = 1
    RETRY = 2


@dataclass(slots=True)
class Final:
    """The last event of a task, before it has a time."""

    status: TaskStatus
    code: str = ""
    error: str | None = None
    result: bytes | None = None
    exception: str | None = None
    traceback: str | None = None
    dead: bool = False  #: also a dead letter (every FAILED)


@dataclass(slots=True)
class Owed:
    """A RUNNING event without a new attempt: progress, or the wait for a retry (`failed` given: the mark is cleared).

    lost: its deaths, when the child that it ran in died; None: as many as before
    trial: how narrow its next trial is, when others ran in there; None: as before
    """

    fraction: float | None = None
    message: str | None = None
    failed: int | None = None
    lost: int | None = None
    trial: int | None = None


class Claim:
    """One open request. Also the item of the schedule (band, shard_number, priority, kind, task_type, ordering_key…)."""

    __slots__ = (
        "acquitted",
        "armed",
        "attempt",
        "band",
        "bare",
        "created",
        "event_bytes",
        "failed",
        "final",
        "fraction",
        "group",
        "headers",
        "kind",
        "label_bytes",
        "load",
        "lost",
        "offset",
        "on_trial",
        "ordering_key",
        "origin",
        "owner_shard",
        "phase",
        "policy",
        "priority",
        "progress",
        "progress_mono_ms",
        "queued_ms",
        "record",
        "shard",
        "started_ms",
        "stop",
        "suspect",
        "task_id",
        "task_type",
        "token",
        "trial",
        "wait",
        "wait_reason",
    )

    def __init__(self, owner: Shard, record: RequestRecord, origin: str, policy: TaskPolicy) -> None:
        request = record.request
        self.owner_shard = owner
        self.shard = record.partition
        self.band = record.band
        self.offset = record.offset
        self.record = record
        self.origin = origin
        self.task_id = record.task_id
        self.task_type = request.task_type if request is not None else ""
        self.ordering_key = request.ordering_key if request is not None else None
        self.priority = record.priority
        self.policy = policy
        self.kind: HandlerKind = policy.kind
        self.headers = trace_headers(record.headers) if record.headers else ()
        self.event_bytes = self.label_bytes = 0  # weighed when first needed (core/weight.py)
        # committed
        self.created = False
        self.attempt = 0
        self.failed = 0
        self.lost = 0
        self.trial = 0
        self.started_ms: int | None = None
        self.fraction: float | None = None
        # owed
        self.progress: Owed | None = None
        self.wait: Owed | None = None
        self.final: Final | None = None
        self.acquitted = False  #: its trial is over and it lives: the ledger is to say so
        # in this process
        self.phase = Phase.QUEUED
        self.wait_reason = Wait.RETRY
        self.suspect = False  #: two processes have died under it: its next start is a trial
        self.on_trial = False
        self.group = 0  #: that it runs in, when it began as a suspect; also after its trial
        self.token = 0
        self.stop: object | None = None
        self.queued_ms = 0
        self.armed = False  #: some deadline of it may be armed
        self.progress_mono_ms = 0
        self.load = 0  #: bytes that it holds beside its record (core/memory.py)
        self.bare = 0  #: 1: without result, 2: without anything long: the broker refused its records

    @property
    def timeout_ms(self) -> int | None:
        """The time limit of an attempt: the request's own wins over the type's, within the type's bound."""
        request, policy = self.record.request, self.policy
        asked = request.timeout_seconds if request is not None else None
        most = policy.timeout_max_ms
        if asked is None and most is None:
            return policy.timeout_ms
        limit = policy.timeout_ms if asked is None else max(1, int(min(asked, SECONDS_MAX) * 1000))
        return most if limit is None else limit if most is None else min(limit, most)

    @property
    def alone(self) -> bool:
        """The trial that it is to stand is one that nothing else of this worker runs beside."""
        return self.suspect and stage_of(self.trial) == ALONE

    def __repr__(self) -> str:
        return f"<Claim {self.origin} {self.phase.name} attempt {self.attempt}>"


def trace_headers(headers: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """The W3C trace headers, which pass through to every status event."""
    return tuple(h for h in headers if h[0] in TRACE_HEADERS)
