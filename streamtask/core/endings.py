"""What follows when an execution has really ended: its end, a retry, a death of its own, or nothing, because it was given
up here. The engine has freed its slot before and has looked whose it is.

A death (Ending.LOST: the process that ran it died, and this worker lives) is charged here in the transaction that clears
its mark. A worker that dies before that transaction leaves the mark, and the next claim charges it: once, either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamtask.core import admission
from streamtask.core.claim import Claim, Final, Owed, Phase
from streamtask.core.ledger import SUSPECT_LOST
from streamtask.core.retry import Again, after_death, death, decide
from streamtask.model import Ending, ErrorCode, HandlerKind, Outcome, TaskStatus
from streamtask.ports import Now, StopReason

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
        _again(engine, claim, "no child got to it", now)
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
    """A death of this task alone. It counts no failure: `Retry.attempts` bounds errors, `lost_max` bounds deaths."""
    lost = claim.lost + 1
    engine.deaths += 1
    fate = death(claim.policy, lost)
    if fate == "quarantine":
        engine.end(claim, admission.failed(ErrorCode.WORKER_LOST, admission.child_lost(lost, outcome.error)))
        return
    isolate(engine, claim, lost, suspect=fate == "suspect")
    again = after_death(claim.policy.retry, lost, engine.rng.random())
    text = f"attempt {claim.attempt} was lost: {outcome.error}; again in {again.wait_ms / 1000:g} s"
    engine.retry(claim, Owed(message=text[:WAIT_TEXT_MAX], failed=claim.failed, lost=lost), again, now)


def isolate(engine: Engine, claim: Claim, lost: int, *, suspect: bool) -> None:
    """How one that has died so often starts next: as before; in a child of its own, in a slot of that kind; on trial.

    In a child, a death is its own, and the worker lives. Only where a worker has died though its suspects were isolated
    (the ledger counts such deaths as trials to come), or where there are no children, they start one at a time.
    """
    children = lost >= SUSPECT_LOST and engine.config.slots.get(HandlerKind.PROCESS, 0) > 0
    if children:
        claim.kind = HandlerKind.PROCESS
    claim.suspect = suspect and (claim.trial > 0 or not children)
    if claim.suspect and not claim.trial:
        claim.trial = 1
