"""Admits records to their ledgers and turns them into claims, as far as the ledgers have room.

Further records wait in the backlog of their cell. Pausing the cell bounds that backlog, with hysteresis, because a pause
throws prefetched records away. A second record with a task_id that is still open in its shard is not run.
"""

from __future__ import annotations

from streamtask.core import admission, endings, timers, transitions
from streamtask.core.batch import Refusal
from streamtask.core.shard import OPEN, PICKED, Claim, Shard
from streamtask.core.state import State
from streamtask.domain.identity import origin_text
from streamtask.domain.model import DeadLetter, ErrorCode, RequestRecord, TaskPolicy
from streamtask.domain.ports import Note, Now, Pause, Resume

_UNKNOWN = TaskPolicy()


def admit(state: State, now: Now) -> None:
    """Admit as many records of every cell with a backlog as its ledger has room for."""
    resumed = []
    for cell in sorted(state.backlogged):  # high comes first, so its records are scheduled first
        band, number = cell
        shard = state.shards.get(number)
        if shard is None:
            state.backlogged.discard(cell)
            continue
        if shard.standing is not OPEN or (state.aside and state.aside.has_shard(number)):
            continue
        _admit_cell(state, shard, band, now)
        backlog = shard.backlogs[band]
        if not backlog.records:
            state.backlogged.discard(cell)
        if backlog.paused and _may_resume(state, shard, band):
            resumed.append(cell)
    if state.memory.heavy:
        for cell in sorted(state.memory.heavy):
            if cell not in resumed and _may_resume(state, state.shards[cell[1]], cell[0]):
                resumed.append(cell)
    if resumed:
        state.effects.append(Resume(tuple(resumed)))


def pick(state: State, now: Now) -> None:
    """Pick as many claims as there are free slots, and memory for what they hold while they run."""
    schedule, memory, active = state.schedule, state.memory, state.memory.active
    fresh, urgent = state.fresh, state.urgent
    while True:
        if active.total >= active.safe or schedule.closed:
            # One may always run, even while ends that cannot be written (core/set_aside.py) fill the memory.
            schedule.closed = memory.closed() if schedule.busy else ()
        claim = schedule.pick(now.mono_ms)
        if claim is None:
            return
        claim.phase = PICKED
        claim.group = schedule.group_of(claim) if claim.suspect else 0
        if claim.record.opened or memory.expected:
            memory.picked(claim)
        fresh.pop(claim, None)  # transitions.touch, inlined because it runs for every task
        urgent[claim] = None


def fetched(state: State, shard: Shard, record: RequestRecord) -> None:
    """Append the record to the backlog of its cell, and pause the cell when it, or its band, holds enough."""
    band, config, memory = record.band, state.config, state.memory
    backlog = shard.backlogs[band]
    backlog.records.append(record)
    backlog.bytes += len(record.value)
    heavy = memory.fetched(shard, record)
    if backlog.paused:
        return
    if heavy or len(backlog.records) >= config.backlog_max or backlog.bytes >= config.backlog_bytes_max:
        backlog.paused = True
        state.effects.append(Pause(((band, shard.number),)))
        if heavy:
            memory.heavy.add((band, shard.number))
            memory.pauses += 1


def _may_resume(state: State, shard: Shard, band: int) -> bool:
    """Whether a paused cell resumes: its backlog is small, and its band has room again, or the cell holds nothing."""
    backlog, memory = shard.backlogs[band], state.memory
    if len(backlog.records) > state.config.backlog_low or backlog.bytes > state.config.backlog_bytes_max // 2:
        return False
    if not memory.may_have(shard, band):
        memory.heavy.add((band, shard.number))  # its backlog may soon be empty, and then nothing else would check it
        return False
    backlog.paused = False
    memory.heavy.discard((band, shard.number))
    return True


def _admit_cell(state: State, shard: Shard, band: int, now: Now) -> None:
    backlog, ledger = shard.backlogs[band], shard.ledgers[band]
    records = backlog.records
    room = ledger.room()
    if shard.deferred and not shard.unsettled_cells:
        _open_deferred(state, shard, now)
    while records and room > 0:
        record = records[0]
        if shard.unsettled_cells and record.offset >= shard.known_to[band]:
            if shard.known_to[band]:
                _cell_is_back(state, shard, band, now)  # the rest of what was known is no longer in the log
            if shard.unsettled_cells:
                break
        records.popleft()
        room -= 1
        backlog.bytes -= len(record.value)
        if ledger.receive(record.offset, record.task_id):
            if shard.unsettled_cells and not ledger.is_created(record.offset) and record.offset not in ledger.entries:
                shard.deferred.append(record)
            else:
                if shard.unsettled_cells:
                    shard.resumed[band, record.task_id] = record.offset
                _open(state, shard, record, now)
        else:  # the task has ended: only its offset had to be known
            state.memory.released(shard, record)
        if shard.known_to[band] and ledger.received >= shard.known_to[band]:
            _cell_is_back(state, shard, band, now)
    if ledger.vanished:
        fields = {"band": band, "shard": shard.number, "from": ledger.vanished[0], "to": ledger.vanished[-1] + 1}
        fields["open"] = len(ledger.vanished)
        state.effects.append(Note("records_lost", {**fields, "why": "open requests are no longer in the log"}))
        ledger.vanished.clear()


def _cell_is_back(state: State, shard: Shard, band: int, now: Now) -> None:
    shard.cell_is_back(band)
    if not shard.unsettled_cells:
        _open_deferred(state, shard, now)


def _open_deferred(state: State, shard: Shard, now: Now) -> None:
    deferred, shard.deferred = shard.deferred, []
    resumed, shard.resumed = shard.resumed, {}
    for record in sorted(deferred, key=lambda record: (record.band, record.offset)):
        if record.task_id and resumed.get((record.band, record.task_id), -1) > record.offset:
            shard.ledgers[record.band].over(record.offset)
            state.memory.released(shard, record)
        else:
            _open(state, shard, record, now)


def _open(state: State, shard: Shard, record: RequestRecord, now: Now) -> None:
    band = record.band
    origin = origin_text(state.config.bands[band].name, record.partition, record.offset)
    known = shard.claims.get(record.task_id) if record.task_id else None
    if not record.task_id or known is not None:
        if known is not None:
            code, text = str(ErrorCode.DUPLICATE), f"task_id is still open: {known.origin}"
        else:
            code, text = record.problem or (str(ErrorCode.INVALID_REQUEST), "no usable task_id")
        refusal = Refusal(DeadLetter(record, code, text, origin, record.task_id), shard, band, record.offset)
        state.refusals[refusal] = None
        return
    policy = state.config.policies.get(record.request.task_type, _UNKNOWN) if record.request is not None else _UNKNOWN
    claim = Claim(shard, record, origin, policy)
    ledger = shard.ledgers[band]
    entry = ledger.entries.get(record.offset)
    claim.created = ledger.is_created(record.offset)
    if entry is None and _is_plain(state, record, policy):
        shard.claims[record.task_id] = claim
        transitions.queue(state, claim, now)
        if not claim.created:
            state.fresh[claim] = None
        return
    if entry is not None:
        claim.attempt, claim.failed = entry.attempt, entry.failed
        claim.lost, claim.trial = entry.lost, entry.trial
    shard.claims[record.task_id] = claim
    _judge(state, shard, claim, now)
    if not claim.created and claim not in state.urgent:
        state.fresh[claim] = None


def _is_plain(state: State, record: RequestRecord, policy: TaskPolicy) -> bool:
    """Whether a request that was never started meets nothing that `_judge` would find: it is simply queued."""
    return (
        record.request is not None
        and record.expires_ms is None
        and record.not_before_ms is None
        and policy is not _UNKNOWN
        and policy.lost_max > 0
        and record.task_id not in state.cancels
    )


def _judge(state: State, shard: Shard, claim: Claim, now: Now) -> None:
    band, record = claim.band, claim.record
    ledger = shard.ledgers[band]
    judged = admission.verdict(
        claim,
        state.config,
        now,
        wanted=record.task_id not in state.cancels,
        waiting=shard.waiting[band],
        waiting_max=ledger.claims_max // 2,
        crowded=state.memory.crowded,
    )
    if isinstance(judged, admission.End):
        transitions.end(state, claim, judged.final)
        return
    if record.expires_ms is not None and not claim.attempt:
        timers.expiry(state, claim, record.expires_ms)
    if isinstance(judged, admission.Run):
        endings.suspect(claim, claim.lost)
        transitions.queue(state, claim, now)
        return
    endings.suspect(claim, claim.lost)
    transitions.wait(state, claim, judged.reason)
    timers.wait(state, claim, judged, now)
