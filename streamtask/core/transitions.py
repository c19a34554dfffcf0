"""What may happen to a claim: it is queued, waits, ends, is withdrawn, is cancelled, is gone.

Each transition keeps the schedule, the memory, the deadlines and the debts consistent with the phase of the claim. Other
modules choose a transition (timers, endings, intake, settlement, ownership); this one alone defines its effect on the state.
"""

from __future__ import annotations

from streamtask.core import admission
from streamtask.core.offset_map import ATTEMPT_MAX
from streamtask.core.shard import ENDING, PICKED, QUEUED, RUNNING, WAITING, Claim, LastEvent, Wait
from streamtask.core.state import State
from streamtask.domain.model import ErrorCode
from streamtask.domain.ports import Now, Stop, StopReason

# Kinds of deadlines of a claim.
NOT_BEFORE, EXPIRES = 0, 1  # on the wall clock
UNKNOWN_TYPE, RETRY, TIMEOUT, TRIAL, BEGIN = 2, 3, 4, 5, 6  # on the monotonic clock


def touch(state: State, claim: Claim) -> None:
    """The claim owes more than its CREATED."""
    state.fresh.pop(claim, None)
    state.urgent[claim] = None


def owes(claim: Claim) -> bool:
    """Whether a batch has something to write for the claim besides its CREATED."""
    return bool(
        claim.final is not None
        or claim.wait is not None
        or (claim.acquitted and claim.phase is RUNNING)
        or claim.phase is PICKED
        or (claim.progress is not None and claim.phase is RUNNING)
    )


def in_doubt(state: State, claim: Claim) -> bool:
    """True when a batch that is in doubt or in flight pays something of this claim."""
    batches = (state.doubt, state.sent)
    return any(step.claim is claim for batch in batches if batch is not None for step in batch.steps)


def end(state: State, claim: Claim, final: LastEvent) -> None:
    """From now on the claim owes its last event. A claim that has just been judged may be in any phase except RUNNING."""
    claim.final = final
    if claim.phase is not PICKED:  # PICKED: its start is in a doubtful batch; see _start
        claim.phase = ENDING
        state.memory.owes(claim, final)
    touch(state, claim)


def queue(state: State, claim: Claim, now: Now) -> None:
    """Put the claim into the schedule, unless it has had as many attempts as a ledger can count."""
    if claim.attempt >= ATTEMPT_MAX:
        end(state, claim, admission.failed(ErrorCode.WORKER_LOST, f"{claim.attempt} attempts, and no end"))
        return
    claim.phase = QUEUED
    claim.queued_ms = now.mono_ms
    if not state.aside or not state.aside.park(claim):
        state.schedule.add(claim, now.mono_ms)


def to_queue(state: State, claim: Claim, now: Now) -> None:
    """The wait of the claim is over."""
    if claim.phase is not WAITING:
        return
    if claim.wait_reason is not Wait.RETRY:
        _unpark(state, claim)
    queue(state, claim, now)


def wait(state: State, claim: Claim, reason: Wait) -> None:
    """The claim holds no slot until its deadline (timers.py). Unless it waits for a retry, it counts as parked."""
    claim.phase = WAITING
    claim.wait_reason = reason
    if reason is not Wait.RETRY:
        claim.owner_shard.waiting[claim.band] += 1
        state.memory.parked += claim.record.weight


def _unpark(state: State, claim: Claim) -> None:
    claim.owner_shard.waiting[claim.band] -= 1
    state.memory.parked -= claim.record.weight
    claim.wait_reason = Wait.RETRY  # no longer parked, whatever phase it gets when its slot is taken back


def unpick(state: State, claim: Claim) -> None:
    """Give the slot back: the claim will not start here."""
    state.schedule.release(claim)
    if claim.load:
        state.memory.hold(claim, 0)
    claim.phase = WAITING
    state.schedule.leave(claim)
    if not owes(claim):
        state.urgent.pop(claim, None)


def withdraw(state: State, claim: Claim) -> None:
    """Take the claim out of the schedule or end its wait; a picked one gives its slot back."""
    if claim.phase is PICKED:
        unpick(state, claim)
    elif claim.phase is QUEUED:
        state.schedule.remove(claim)
    elif claim.phase is WAITING and claim.wait_reason is not Wait.RETRY:
        _unpark(state, claim)
    claim.phase = ENDING
    disarm(state, claim)


def cancel(state: State, claim: Claim) -> None:
    """Stop the task if it runs; otherwise it ends without calling its handler."""
    if claim.final is not None or claim.stop is StopReason.CANCEL:
        return
    if claim.phase is RUNNING:
        if claim.stop is None:
            state.effects.append(Stop(claim.token, StopReason.CANCEL))
        if claim.stop is not StopReason.REVOKE:  # a task stopped for its timeout might run again
            claim.stop = StopReason.CANCEL
        return
    if claim.phase is PICKED and in_doubt(state, claim):
        end(state, claim, admission.cancelled(ErrorCode.CANCELLED))
        return
    withdraw(state, claim)
    end(state, claim, admission.cancelled(ErrorCode.CANCELLED))


def gone(state: State, claim: Claim) -> None:
    """Its end has settled: remove the claim."""
    del claim.owner_shard.claims[claim.task_id]
    state.memory.gone(claim)
    state.urgent.pop(claim, None)
    state.throttled.pop(claim, None)
    state.schedule.finish(claim)
    if claim.armed:
        disarm(state, claim)


def disarm(state: State, claim: Claim) -> None:
    """Remove every deadline of this claim."""
    if not claim.armed:
        return
    if claim.record.expires_ms is not None or claim.record.not_before_ms is not None:
        state.wall.disarm(claim, NOT_BEFORE)
        state.wall.disarm(claim, EXPIRES)
    for kind in (UNKNOWN_TYPE, RETRY, TIMEOUT, TRIAL, BEGIN):
        state.mono.disarm(claim, kind)
    claim.armed = False
