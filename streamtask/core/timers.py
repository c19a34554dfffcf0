"""The timers of a claim, and what happens when they expire.

    on the wall clock       not before, expires
    on the monotonic clock  the grace of an unknown type, the backoff of a retry, the time limit of an attempt, a trial, and
                            how long a child may take to begin

The time of an attempt counts from the start of its handler. Coroutines and threads start when they are handed over, unless
their type shares slots: then they may wait for others. A child may have to be started first. Where the start is late, it is
reported (`Start.timed`). An execution that does not begin within `begin_ms` is stopped, and its task runs again: this is not a
failure.
"""

from __future__ import annotations

from streamtask.core import admission, transitions
from streamtask.core.retry import Again, decide
from streamtask.core.shard import Claim, Phase, Wait
from streamtask.core.state import State
from streamtask.core.suspects import trial_ms
from streamtask.core.transitions import BEGIN, EXPIRES, NOT_BEFORE, RETRY, TIMEOUT, TRIAL, UNKNOWN_TYPE
from streamtask.domain.model import Ending, ErrorCode, Outcome
from streamtask.domain.ports import Now, Start, Stop, StopReason

NOT_STARTED = "expired before its start"

_NOT_STARTED = (Phase.QUEUED, Phase.WAITING, Phase.PICKED)


def expiry(state: State, claim: Claim, expires_ms: int) -> None:
    """A task that has not started by then never starts."""
    claim.armed = True
    state.wall.arm(claim, expires_ms, EXPIRES)


def wait(state: State, claim: Claim, judged: admission.WaitFor, now: Now) -> None:
    """Arm the end of a wait that admission decided on."""
    claim.armed = True
    if judged.reason is Wait.NOT_BEFORE:
        state.wall.arm(claim, judged.due_ms, NOT_BEFORE)
    elif judged.reason is Wait.UNKNOWN_TYPE:
        state.schedule.hold(claim)  # later requests with its key must not pass it
        state.mono.arm(claim, now.mono_ms + judged.in_ms, UNKNOWN_TYPE)
    else:  # a retry that was waiting under an earlier owner: the ledger has no due time, so it is drawn again
        again = decide(claim.policy.retry, Outcome(Ending.RAISED), max(1, claim.failed), state.rng.random())
        state.schedule.hold(claim)
        retry(state, claim, again.wait_ms if isinstance(again, Again) else 0, now)


def retry(state: State, claim: Claim, wait_ms: int, now: Now) -> None:
    """Arm the end of a backoff."""
    claim.armed = True
    state.mono.arm(claim, now.mono_ms + wait_ms, RETRY)


def start(state: State, claim: Claim, handed: Start, now: Now) -> None:
    """The execution is handed over: arm what applies from now on."""
    if not handed.late:
        run(state, claim, handed.timeout_ms, now)
    elif handed.timed:
        claim.armed = True
        state.mono.arm(claim, now.mono_ms + state.config.begin_ms, BEGIN)


def run(state: State, claim: Claim, timeout_ms: int | None, now: Now) -> None:
    """Its handler begins: start its time limit, and the trial that it stands, if any."""
    if timeout_ms is not None:
        claim.armed = True
        state.mono.arm(claim, now.mono_ms + timeout_ms, TIMEOUT)
    if claim.on_trial:
        claim.armed = True
        length = trial_ms(state.config.trial_ms, claim.trial, state.config.trial_max_ms, timeout_ms)
        state.mono.arm(claim, now.mono_ms + length, TRIAL)


def begun(state: State, claim: Claim, now: Now) -> None:
    """It begins to run, in a child process or after it has waited for others."""
    if claim.stop is None:
        state.mono.disarm(claim, BEGIN)
        run(state, claim, claim.timeout_ms, now)


def due(state: State, now: Now) -> None:
    """Handle every deadline that is due."""
    for claim, kind in state.wall.due(now.wall_ms):
        if kind == NOT_BEFORE:
            transitions.to_queue(state, claim, now)
        else:
            _expire(state, claim)
    for claim, kind in state.mono.due(now.mono_ms):
        if kind == RETRY:
            transitions.to_queue(state, claim, now)
        elif kind == UNKNOWN_TYPE:
            if claim.phase is Phase.WAITING:
                transitions.withdraw(state, claim)
                text = admission.unknown_type(claim, state.config.policies)
                transitions.end(state, claim, admission.failed(ErrorCode.UNKNOWN_TASK_TYPE, text))
        elif claim.phase is not Phase.RUNNING:
            pass
        elif kind == TRIAL:
            claim.acquitted = True
            transitions.touch(state, claim)
        elif claim.stop is None:
            claim.stop = StopReason.TIMEOUT if kind == TIMEOUT else StopReason.NOT_BEGUN
            state.effects.append(Stop(claim.token, claim.stop))


def _expire(state: State, claim: Claim) -> None:
    """End a task that has not started by its expires_at.

    A picked task gives its slot back, unless it is unknown whether its RUNNING has landed: then it is checked again until that
    is known, and `landed` ends it if it has.
    """
    if claim.phase is Phase.PICKED and transitions.in_doubt(state, claim):
        state.wall.put_off(claim, EXPIRES)
    elif claim.phase in _NOT_STARTED and not claim.attempt:
        transitions.withdraw(state, claim)
        transitions.end(state, claim, admission.cancelled(ErrorCode.EXPIRED, NOT_STARTED))


def landed(state: State, claim: Claim, now: Now) -> None:
    """The RUNNING of an armed claim is committed: its earlier deadlines are removed, and its handler is called unless it is
    `too_late`.
    """
    transitions.disarm(state, claim)
    if claim.final is None and too_late(claim, now):
        claim.final = admission.cancelled(ErrorCode.EXPIRED, NOT_STARTED)


def too_late(claim: Claim, now: Now) -> bool:
    """True when its first attempt was granted in time but this is known only after the expiry: its handler must not begin.

    Its RUNNING may have been committed minutes ago, by a transaction whose answer was lost.
    """
    expires_ms = claim.record.expires_ms
    return expires_ms is not None and claim.attempt == 1 and expires_ms <= now.wall_ms
