"""What the broker's answer to a batch means: what was paid is no longer owed, and tasks with a committed start begin.

An aborted batch needs no undo. If one of its records was the reason, batches shrink until the offending record is alone, and
it is then written shorter.
"""

from __future__ import annotations

from streamtask.core import batch, timers, transitions
from streamtask.core.batch import ACQUIT, CREATE, FINISH, REPORT, START, WAIT, Batch, Step
from streamtask.core.shard import ENDING, PICKED, QUEUED, RUNNING, WAITING, Claim, LastEvent
from streamtask.core.state import State
from streamtask.core.suspects import acquitted
from streamtask.domain.model import TaskStatus
from streamtask.domain.ports import Note, Now, Start


def settle(state: State, landed: Batch, now: Now) -> None:
    """The batch committed (or, if it was in doubt, turned out to have landed): what was paid is no longer owed."""
    for (band, number), draft in landed.drafts.items():
        if state.shards.get(number) is landed.shards[number]:
            landed.shards[number].ledgers[band].settle(draft)
    for number, shard in landed.shards.items():
        shard.sequence = landed.sequences[number]
        shard.head_recovering = number in landed.recovering
        shard.owes_head = shard.recovered_since_head()
        shard.owes_cells = False
    for refusal in landed.refusals:
        if refusal in state.refusals:
            del state.refusals[refusal]
            state.memory.released(refusal.shard, refusal.letter.record)
    for step in landed.steps:
        if state.shards.get(step.claim.shard) is step.claim.owner_shard:
            _settle(state, step, now)
    state.settled_mono_ms = now.mono_ms
    if landed.made_mono_ms:
        state.schedule.pace.committed(now.mono_ms - landed.made_mono_ms, now.mono_ms)
    state.refused_batches = 0
    state.units_max = state.units_max * 2 if 0 < state.units_max < state.config.events_max else 0


def aborted(state: State, plan: Batch, *, record: bool) -> None:
    """The transaction was aborted; everything is still owed. `record`: one of its records is the reason.

    After two such aborts the batch is halved until the offending record is alone, which is then written shorter.
    """
    if not record:
        return
    state.refused_batches += 1
    units = len(plan.steps) + len(plan.refusals)
    if units > 1:
        if state.refused_batches >= 2:
            state.units_max = units // 2
        return
    for step in plan.steps:
        _shorten(state, step.claim)
    for refusal in plan.refusals:
        refusal.letter.reference = True


def _shorten(state: State, claim: Claim) -> None:
    claim.bare = min(claim.bare + 1, 2)
    if claim.final is not None:
        if claim.final.status is TaskStatus.COMPLETED:
            claim.final = batch.too_large(claim.final)
        elif claim.bare > 1:
            old, text = claim.final, "(left out: too large)"
            claim.final = LastEvent(old.status, old.code, text, dead=old.dead)
    state.effects.append(Note("record_refused", {"task_id": claim.task_id, "origin": claim.origin}))


def _settle(state: State, step: Step, now: Now) -> None:
    claim, pays = step.claim, step.pays
    if pays == FINISH:
        transitions.gone(state, claim)
        return
    if pays & CREATE:
        state.fresh.pop(claim, None)
        claim.created = True
    if pays & WAIT:
        assert step.wait is not None
        claim.failed = step.wait.failed or 0
        claim.lost = claim.lost if step.wait.lost is None else step.wait.lost
        if claim.wait is step.wait:
            claim.wait = None
            if claim.load and claim.phase in (WAITING, QUEUED):
                state.memory.hold(claim, 0)
        if claim.phase is not PICKED:  # otherwise it is in its next group already
            state.schedule.leave(claim)
    if pays & START:
        claim.attempt, claim.started_ms = step.attempt, step.at_ms
        _start(state, claim, now)
    if pays & ACQUIT:
        state.schedule.acquit(claim)
        if claim.phase is RUNNING:  # otherwise its child has died since: it is a suspect again
            claim.acquitted = claim.on_trial = False
            claim.lost, claim.trial = 0, acquitted(claim.trial)
    if pays & REPORT:
        assert step.report is not None
        if step.report.fraction is not None:
            claim.fraction = step.report.fraction
        if claim.progress is step.report:
            claim.progress = None
            state.memory.replaced(claim, step.report, None)
    if pays & FINISH:
        transitions.gone(state, claim)
    elif not transitions.owes(claim):
        state.urgent.pop(claim, None)


def _start(state: State, claim: Claim, now: Now) -> None:
    claim.fraction = None
    if claim.armed:
        timers.landed(state, claim, now)
    if claim.final is not None:  # expired, or cancelled while it was unknown whether its start had landed
        state.schedule.release(claim)
        claim.phase = ENDING
        state.memory.owes(claim, claim.final)
        return
    state.tokens += 1
    token = claim.token = state.tokens
    claim.phase = RUNNING
    claim.stop, claim.acquitted, claim.on_trial = None, False, claim.suspect
    claim.progress_mono_ms = now.mono_ms - state.config.progress_ms
    state.running[token] = claim
    limit, shares = claim.timeout_ms, state.schedule.may_wait(claim)
    start = Start(token, claim.record, claim.attempt, claim.kind, limit, claim.group if state.children else 0, shares)
    if limit is not None or claim.suspect:  # otherwise no deadline applies
        timers.start(state, claim, start, now)
    state.effects.append(start)
