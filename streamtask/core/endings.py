"""What happens when an execution has really ended: a terminal event, a retry, a death, or nothing because it was given up.
The engine has already freed its slot and checked which claim it belongs to.

A death (Ending.LOST: the process that ran the task died, while this worker lives) is charged here if the task ran alone in
that process, in the transaction that clears its mark. If the worker dies before that transaction, the mark stays, and the
next claim charges the death: once, either way.
"""

from __future__ import annotations

from streamtask.core import admission, suspects, timers, transitions
from streamtask.core.ledger import SUSPECT_LOST
from streamtask.core.retry import Again, after_death, death, decide
from streamtask.core.shard import Claim, LastEvent, Owed, Phase, Wait
from streamtask.core.state import State
from streamtask.domain.model import Ending, ErrorCode, HandlerKind, Outcome, TaskStatus
from streamtask.domain.ports import Now, StopReason

_CANCEL, _TIMEOUT = StopReason.CANCEL, StopReason.TIMEOUT  # what every end asks for: see core/shard.py
_RETURNED, _COMPLETED = Ending.RETURNED, TaskStatus.COMPLETED
WAIT_TEXT_MAX = 1_000  # characters of the message that says why the task runs again


def judge(state: State, claim: Claim, outcome: Outcome, now: Now) -> None:
    """The claim was RUNNING; from now on it owes its end or its wait. An end that was asked for (a stop) takes precedence."""
    if claim.stop is _CANCEL:
        transitions.end(state, claim, admission.cancelled(ErrorCode.CANCELLED))
    elif claim.stop is _TIMEOUT:
        text = f"attempt {claim.attempt} ran longer than {(claim.timeout_ms or 0) / 1000:g} s"
        if not outcome.retryable:  # given up, while its code runs on
            text = f"{text}; {outcome.error}"
        _failed(state, claim, ErrorCode.TIMEOUT, text, outcome, now)
    elif outcome.ending is _RETURNED:
        transitions.end(state, claim, LastEvent(_COMPLETED, result=outcome.result))
    elif outcome.ending is Ending.STOPPED and claim.stop is StopReason.NOT_BEGUN:
        # It waited behind tasks that took longer than their type ever did, or for a child: that is no fault of this one.
        child = claim.kind is HandlerKind.PROCESS or claim.group
        _again(state, claim, "no child process started it" if child else "others ran longer than expected", now)
    elif outcome.ending is Ending.STOPPED or claim.stop is StopReason.REVOKE:
        # Revoked: given up here; it starts again at the next owner. It owes nothing: the clean commit clears its mark.
        claim.phase = Phase.WAITING
        state.urgent.pop(claim, None)
    elif outcome.ending is Ending.LOST:
        _died(state, claim, outcome, now)
    elif outcome.ending is Ending.INVALID:
        transitions.end(state, claim, admission.failed(ErrorCode.INVALID_PARAMETERS, outcome.error))
    else:
        _failed(state, claim, outcome.code or ErrorCode.HANDLER_ERROR, outcome.error, outcome, now)


def _again(state: State, claim: Claim, why: str, now: Now) -> None:
    text = f"attempt {claim.attempt} was not begun in time: {why}; again at once"
    retry(state, claim, Owed(message=text, failed=claim.failed), Again(0), now)


def _failed(state: State, claim: Claim, code: str, error: str, outcome: Outcome, now: Now) -> None:
    failed = claim.failed + 1
    again = decide(claim.policy.retry, outcome, failed, state.rng.random())
    if isinstance(again, Again):
        text = f"attempt {claim.attempt} failed: {error}; again in {again.wait_ms / 1000:g} s"
        retry(state, claim, Owed(message=text[:WAIT_TEXT_MAX], failed=failed), again, now)
    else:
        final = LastEvent(TaskStatus.FAILED, str(code), error, None, outcome.exception, outcome.traceback, dead=True)
        transitions.end(state, claim, final)


def _died(state: State, claim: Claim, outcome: Outcome, now: Now) -> None:
    """The child process that it ran in died. This is no failure: `Retry.attempts` bounds errors, `lost_max` bounds deaths."""
    if outcome.beside:
        _parted(state, claim, outcome, now)
        return
    # In quarantine even an acquitted task is still a suspect: it died, and nothing else can have caused that.
    lost = (max(claim.lost, SUSPECT_LOST) if claim.group else claim.lost) + 1
    state.deaths += 1
    if death(claim.policy, lost) == "quarantine":
        transitions.end(
            state, claim, admission.failed(ErrorCode.WORKER_LOST, admission.child_lost(lost, outcome.error))
        )
        return
    again = after_death(claim.policy.retry, lost, state.rng.random())
    text = f"attempt {claim.attempt} was lost: {outcome.error}; again in {again.wait_ms / 1000:g} s"
    retry(state, claim, Owed(message=text[:WAIT_TEXT_MAX], failed=claim.failed, lost=lost), again, now)


def _parted(state: State, claim: Claim, outcome: Outcome, now: Now) -> None:
    """One of the tasks that shared its child killed it. None is charged; half as many will run together on the next trial."""
    trial = suspects.parted(claim.trial, outcome.beside + 1)
    text = f"attempt {claim.attempt} was broken off: {outcome.error}, as did that of {outcome.beside} others; again at once"
    owed = Owed(message=text[:WAIT_TEXT_MAX], failed=claim.failed, lost=max(claim.lost, SUSPECT_LOST), trial=trial)
    retry(state, claim, owed, Again(0), now)


def suspect(claim: Claim, lost: int, trial: int | None = None) -> None:
    """Decide whether a claim with this many deaths starts in quarantine next, and how narrow its trial is.

    Where there are no child processes, the worker itself is the child: at most one group is on trial in it.
    """
    claim.suspect = lost >= SUSPECT_LOST
    if trial is not None:
        claim.trial = trial
    if not claim.policy.lost_max:
        claim.trial = suspects.never_convicted(claim.trial)


def retry(state: State, claim: Claim, owed: Owed, again: Again, now: Now) -> None:
    """Its attempt is over and another one will follow: from now on it owes that event, and its wait has begun."""
    claim.wait = owed
    suspect(claim, claim.lost if owed.lost is None else owed.lost, owed.trial)
    state.memory.replaced(claim, None, owed)
    transitions.touch(state, claim)
    transitions.wait(state, claim, Wait.RETRY)
    timers.retry(state, claim, again.wait_ms, now)
