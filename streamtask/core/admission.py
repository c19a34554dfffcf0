"""Decides what happens to a request record when its ledger admits it: run, wait, end at once, or only a dead letter.

The decision depends on the record, on what the ledger already knows about it, and on the clocks. There is no other state.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection
from dataclasses import dataclass

from streamtask.config import EngineConfig
from streamtask.core.retry import death
from streamtask.core.shard import Claim, LastEvent, Wait
from streamtask.domain.model import ErrorCode, TaskStatus
from streamtask.domain.ports import Now


@dataclass(frozen=True, slots=True)
class Run:
    """Put it into the schedule."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Hold it without a slot. NOT_BEFORE is due at a wall-clock time (due_ms), the other reasons after a delay (in_ms)."""

    reason: Wait
    due_ms: int = 0
    in_ms: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """End it without an execution (or without another one)."""

    final: LastEvent


Verdict = Run | WaitFor | End
_RUN = Run()


def failed(code: ErrorCode | str, error: str) -> LastEvent:
    """A FAILED event with its dead letter."""
    return LastEvent(TaskStatus.FAILED, str(code), error, dead=True)


def cancelled(code: ErrorCode, error: str | None = None) -> LastEvent:
    """A CANCELLED event, which never has a dead letter."""
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
    """Judge a claim that its ledger has just admitted (and whose counters were restored from that ledger).

    wanted               False: tasks.control has cancelled it
    waiting, waiting_max how many claims of its cell wait without a slot, and how many may
    crowded              waiting claims of all cells already use all the memory they may use
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
            return End(failed(ErrorCode.UNKNOWN_TASK_TYPE, unknown_type(claim, config.policies)))
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
    """A request that an earlier owner started and did not finish."""
    if not wanted:
        return End(cancelled(ErrorCode.CANCELLED))
    if death(claim.policy, claim.lost) == "quarantine":
        return End(failed(ErrorCode.WORKER_LOST, worker_lost(claim)))
    if claim.record.request is None:  # the earlier owner could read it: it knew a schema that is unavailable now
        return End(_unreadable(claim))
    if claim.failed and not claim.lost:
        return WaitFor(Wait.RETRY)  # the ledger does not hold the due time: the engine restarts the backoff
    return _RUN


def _unreadable(claim: Claim) -> LastEvent:
    code, text = claim.record.problem or (ErrorCode.INVALID_REQUEST, "cannot be decoded")
    return failed(code, text)


def unknown_type(claim: Claim, known: Collection[str]) -> str:
    """known: the task types of this worker"""
    near = _nearest(claim.task_type, frozenset(known))
    return f"no worker of this prefix knows task_type {claim.task_type!r}" + (
        f"; did you mean {near!r}?" if near else ""
    )


@functools.lru_cache(maxsize=1_000)  # a look takes a millisecond among 200 types, and one typo may come a million times
def _nearest(name: str, known: frozenset[str]) -> str | None:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return near[0] if near else None


def child_lost(lost: int, how: str) -> str:
    return f"its process died {lost} times while running it: quarantined. The last time: {how}"


def worker_lost(claim: Claim) -> str:
    return f"its worker died {claim.lost} times while running it: quarantined"
