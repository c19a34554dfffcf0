"""What follows a failure or a death: another attempt after a wait, the end, isolation, or quarantine. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from streamtask.core.ledger import SUSPECT_LOST
from streamtask.domain.model import Ending, Outcome, Retry, TaskPolicy


@dataclass(frozen=True, slots=True)
class Again:
    """Run again after this wait."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class GiveUpNow:
    """No attempt is left: FAILED."""


GIVE_UP = GiveUpNow()


def decide(retry: Retry, outcome: Outcome, failed: int, rand: float) -> Again | GiveUpNow:
    """Decide what follows an attempt that failed (an error or a timeout).

    failed  failed attempts, including this one; retry.attempts bounds it
    rand    0 <= rand < 1. Full jitter: the wait is drawn evenly from 0 to the bound, which doubles with each failure.
            A wait that the handler asked for (outcome.after_ms) is used as it is
    """
    assert failed >= 1, f"{failed} failed attempts"
    assert 0.0 <= rand < 1.0, f"rand {rand}"
    if not outcome.retryable or failed >= retry.attempts:
        return GIVE_UP
    if outcome.after_ms is not None:
        return Again(max(0, outcome.after_ms))
    doublings = min(failed - 1, 62)  # a shift without a bound would make numbers without a bound
    return Again(int(rand * (min(retry.backoff_ms << doublings, retry.backoff_max_ms) + 1)))


def after_death(retry: Retry, lost: int, rand: float) -> Again:
    """The wait after a death of its own: as long as after the same number of failures. lost: includes this death."""
    again = decide(replace(retry, attempts=lost + 1), Outcome(Ending.LOST), lost, rand)
    assert isinstance(again, Again), f"{lost} deaths leave no attempt of {lost + 1}"
    return again


def death(policy: TaskPolicy, lost: int) -> Literal["run", "suspect", "quarantine"]:
    """How a request continues after a process has died `lost` times under it: as before, in quarantine, or not at all."""
    if policy.lost_max and lost >= policy.lost_max:
        return "quarantine"
    return "suspect" if lost >= SUSPECT_LOST else "run"
