"""What follows when an execution has really ended: its end, a retry, a death of its own, or nothing, because it was given
up here. The engine has freed its slot before and has looked whose it is.

A death (Ending.LOST: the process that ran it died, and this worker lives) is charged here, if it ran alone in that process,
in the transaction that clears its mark. A worker that dies before that transaction leaves the mark, and the next claim
charges it: once, either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamtask.core import admission, suspects
from streamtask.core.claim import Claim, Final, Owed, Phase
from streamtask.core.ledger import SUSPECT_LOST
from streamtask.core.retry import Again, after_death, death, decide
from streamtask.domain.model import Ending, ErrorCode, Outcome, TaskStatus
from streamtask.domain.ports import Now, StopReason

if TYPE_CHECKING:
    from streamtask.core.engine import Engine

WAIT_TEXT_MAX = 1_000  # characters of the message that says why it runs again


def judge(engine: Engine, claim: Claim, outcome: Outcome, now: Now) -> None:
    """The claim was RUNNING; from now on it owes its end or its wait. An end that somebody asked for comes first."""
    if claim.stop is StopReason.CANCEL:
        engine.end(claim, admission.cancelled(ErrorCode.CANCELLED))
    elif claim.stop is StopReason.TIMEOUT and not outcome.begun:
        # Its time ran out behind others that took longer than their type ever did: that says nothing about it.
        _again(engine, claim, "others ran longer than expected", now)
    elif claim.stop is StopReason.TIMEOUT:
        text = f"attempt {claim.attempt} ran longer than {(claim.timeout_ms or 0) / 1000:g} s"
        if not outcome.retryable:  # given up, while its code goes on
            text = f"{text}; {outcome.error}"
        _failed(engine, claim, ErrorCode.TIMEOUT, text, outcome, now)
    elif outcome.ending is Ending.RETURNED:
        engine.end(claim, Final(TaskStatus.COMPLETED, result=outcome.result))
    elif outcome.ending is Ending.STOPPED and claim.stop is StopReason.NOT_BEGUN:
        _again(engine, claim, "no child process started it", now)
    elif outcome.ending is Ending.STOPPED or claim.stop is StopReason.REVOKE:
        # Revoked: given up here, to start again there. Not owed to anybody: the clean commit clears its mark.
        claim.phase = Phase.WAITING
        engine.urgent.pop(claim, None)
    elif outcome.ending is Ending.LOST:
        _died(engine, claim, outcome, now)
    elif outcome.ending is Ending.INVALID:
        engine.end(claim, admission.failed(ErrorCode.INVALID_PARAMETERS, outcome.error))
    else:
        _failed(engine, claim, outcome.code or ErrorCode.HANDLER_ERROR, outcome.error, outcome, now)


def _again(engine: Engine, claim: Claim, why: str, now: Now) -> None:
    text = f"attempt {claim.attempt} was not begun in time: {why}; again at once"
    engine.retry(claim, Owed(message=text, failed=claim.failed), Again(0), now)


def _failed(engine: Engine, claim: Claim, code: str, error: str, outcome: Outcome, now: Now) -> None:
    failed = claim.failed + 1
    again = decide(claim.policy.retry, outcome, failed, engine.rng.random())
    if isinstance(again, Again):
        text = f"attempt {claim.attempt} failed: {error}; again in {again.wait_ms / 1000:g} s"
        engine.retry(claim, Owed(message=text[:WAIT_TEXT_MAX], failed=failed), again, now)
    else:
        final = Final(TaskStatus.FAILED, str(code), error, None, outcome.exception, outcome.traceback, dead=True)
        engine.end(claim, final)


def _died(engine: Engine, claim: Claim, outcome: Outcome, now: Now) -> None:
    """The child that it ran in has died. It counts no failure: `Retry.attempts` bounds errors, `lost_max` bounds deaths."""
    if outcome.beside:
        _parted(engine, claim, outcome, now)
        return
    # In quarantine an acquitted one is a suspect still: it died, and nobody else can have done it.
    lost = (max(claim.lost, SUSPECT_LOST) if claim.group else claim.lost) + 1
    engine.deaths += 1
    if death(claim.policy, lost) == "quarantine":
        engine.end(claim, admission.failed(ErrorCode.WORKER_LOST, admission.child_lost(lost, outcome.error)))
        return
    again = after_death(claim.policy.retry, lost, engine.rng.random())
    text = f"attempt {claim.attempt} was lost: {outcome.error}; again in {again.wait_ms / 1000:g} s"
    engine.retry(claim, Owed(message=text[:WAIT_TEXT_MAX], failed=claim.failed, lost=lost), again, now)


def _parted(engine: Engine, claim: Claim, outcome: Outcome, now: Now) -> None:
    """One of those that ran in its child has killed that. Nobody is charged; who runs beside it next are half as many."""
    trial = suspects.parted(claim.trial, outcome.beside + 1)
    text = f"attempt {claim.attempt} was broken off: {outcome.error}, as did that of {outcome.beside} others; again at once"
    owed = Owed(message=text[:WAIT_TEXT_MAX], failed=claim.failed, lost=max(claim.lost, SUSPECT_LOST), trial=trial)
    engine.retry(claim, owed, Again(0), now)


def suspect(claim: Claim, lost: int, trial: int | None = None) -> None:
    """Whether one that has so many deaths starts in quarantine next, and how narrow its trial is there.

    Where there are no children, the worker itself is the child: at most one group is on trial in it.
    """
    claim.suspect = lost >= SUSPECT_LOST
    if trial is not None:
        claim.trial = trial
    if not claim.policy.lost_max:
        claim.trial = suspects.never_convicted(claim.trial)
