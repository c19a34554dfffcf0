"""What happens to a request record when it comes under a ledger: run, wait, end at once, or only a dead letter.

A function of the record, of what the ledger already knows about it, and of the clocks: no state of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamtask.config import EngineConfig
from streamtask.core.retry import death
from streamtask.core.shard import Claim, LastEvent, Wait
from streamtask.domain.model import ErrorCode, TaskStatus
from streamtask.domain.ports import Now


@dataclass(frozen=True, slots=True)
class Run:
    """Into the schedule."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Held without a slot. NOT_BEFORE counts on the wall clock (due_ms), the others from now (in_ms)."""

    reason: Wait
    due_ms: int = 0
    in_ms: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """Ends without (another) execution."""

    final: LastEvent


Verdict = Run | WaitFor | End
_RUN = Run()


def failed(code: ErrorCode | str, error: str) -> LastEvent:
    """A FAILED with its dead letter."""
    return LastEvent(TaskStatus.FAILED, str(code), error, dead=True)


def cancelled(code: ErrorCode, error: str | None = None) -> LastEvent:
    """A CANCELLED; never a dead letter."""
    return LastEvent(TaskStatus.CANCELLED, str(code), error)


def verdict(
    claim: Claim,
    config: EngineConfig,
    now: Now,
    *,
    wanted: bool,
    waiting: int,
    waiting_max: int,
    crowded: bool = False,
) -> Verdict:
    """Judge a claim that has just come under its ledger (its counters are restored from it).

    wanted               False: tasks.control has cancelled it
    waiting, waiting_max claims of its cell that wait without a slot, and how many may
    crowded              such claims of all cells take what memory they may
    """
    record, request = claim.record, claim.record.request
    if claim.attempt:
        return _restarted(claim, wanted)
    if not wanted:
        return End(cancelled(ErrorCode.CANCELLED))
    if request is None:
        return End(_unreadable(claim))
    if record.expires_ms is not None and record.expires_ms <= now.wall_ms:
        return End(cancelled(ErrorCode.EXPIRED, "expired before its start"))
    if claim.task_type not in config.policies:
        if waiting >= waiting_max or crowded:
            return End(failed(ErrorCode.UNKNOWN_TASK_TYPE, unknown_type(claim)))
        return WaitFor(Wait.UNKNOWN_TYPE, in_ms=config.unknown_type_grace_ms)
    due = record.not_before_ms
    if due is not None and due > now.wall_ms:
        if due - now.wall_ms > config.not_before_max_ms:
            text = f"not_before is more than {config.not_before_max_ms // 1000} s ahead, which is not supported"
            return End(failed(ErrorCode.INVALID_PARAMETERS, text))
        if waiting >= waiting_max:
            text = f"not_before: {waiting} tasks of this partition are already waiting, which is the limit"
            return End(failed(ErrorCode.INVALID_PARAMETERS, text))
        if crowded:
            text = "not_before: waiting tasks already use all the memory that is reserved for them"
            return End(failed(ErrorCode.INVALID_PARAMETERS, text))
        return WaitFor(Wait.NOT_BEFORE, due_ms=due)
    return _RUN


def _restarted(claim: Claim, wanted: bool) -> Verdict:
    """A request that was started before, by an owner that is gone."""
    if not wanted:
        return End(cancelled(ErrorCode.CANCELLED))
    if death(claim.policy, claim.lost) == "quarantine":
        return End(failed(ErrorCode.WORKER_LOST, worker_lost(claim)))
    if claim.record.request is None:  # that owner could read it: it knew a schema that nobody tells us now
        return End(_unreadable(claim))
    if claim.failed and not claim.lost:
        return WaitFor(Wait.RETRY)  # its due time is not in the ledger: the engine counts the backoff anew
    return _RUN


def _unreadable(claim: Claim) -> LastEvent:
    code, text = claim.record.problem or (ErrorCode.INVALID_REQUEST, "cannot be decoded")
    return failed(code, text)


def unknown_type(claim: Claim) -> str:
    return f"no worker of this prefix knows task_type {claim.task_type!r}"


def child_lost(lost: int, how: str) -> str:
    return f"its process died {lost} times while running it: quarantined. The last time: {how}"


def worker_lost(claim: Claim) -> str:
    return f"its worker died {claim.lost} times while running it: quarantined"
