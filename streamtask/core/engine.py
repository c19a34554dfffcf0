"""The corridor between the rooms: facts come in, effects and the next batch go out.

One object per worker process, used by one thread. It owns every claim, the schedule, the deadlines and what is owed to the
broker. It starts nothing before its RUNNING has settled, and drops what comes from an execution whose shard has gone
(Kafka fences members, not partitions: this filter is ours). The flows that talk to the broker are in core/protocol.py; what
they do to the ownership of shards is in core/ownership.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from streamtask.config import EngineConfig
from streamtask.core import admission, batch, endings, intake, setaside, timers
from streamtask.core.batch import (
    ACQUIT,
    CREATE,
    FINISH,
    REPORT,
    START,
    WAIT,
    Batch,
    Limits,
    Owing,
    Refusal,
    Step,
)
from streamtask.core.batch_size import BatchSize
from streamtask.core.cancels import Cancels
from streamtask.core.claim import Claim, Final, Owed, Phase, Wait
from streamtask.core.deadlines import Deadlines
from streamtask.core.memory import Memory
from streamtask.core.offset_map import ATTEMPT_MAX
from streamtask.core.retry import Again
from streamtask.core.schedule import Schedule
from streamtask.core.setaside import SetAside
from streamtask.core.shard import Shard, Standing
from streamtask.core.slot_sharing import WHOLE
from streamtask.core.suspects import GROUPS_ON_TRIAL, Groups, acquitted
from streamtask.domain.model import Ending, ErrorCode, HandlerKind, Outcome, RequestRecord, TaskStatus
from streamtask.domain.ports import Cell, Effect, Note, Now, Start, Stop, StopReason


class Engine:
    """See the module. `owner` is the transactional id in use; `rng` draws the jitter of backoffs."""

    def __init__(self, config: EngineConfig, owner: str, rng: random.Random) -> None:
        self.config = config
        self.owner = owner
        self.own_ids = {owner}
        self.rng = rng
        self.shards: dict[int, Shard] = {}
        limits = {name: policy.concurrency for name, policy in config.policies.items()}
        self.children = config.slots.get(HandlerKind.PROCESS, 0) > 0  # else suspects run beside the others
        groups: Groups[Claim] = Groups(GROUPS_ON_TRIAL if self.children else 1)
        times = (config.ageing_ms, config.alone_ms)
        self.schedule: Schedule[Claim] = Schedule(config.bands, config.slots, limits, *times, groups)
        self.wall: Deadlines[Claim] = Deadlines()
        self.mono: Deadlines[Claim] = Deadlines()
        self.running: dict[int, Claim] = {}  # by token; executions of shards that have gone stay until they really end
        self.urgent: dict[Claim, None] = {}  # claims that owe more than their CREATED
        self.fresh: dict[Claim, None] = {}  # claims that owe only that, in the order of their offsets
        self.refusals: dict[Refusal, None] = {}
        self.throttled: dict[Claim, None] = {}  # progress told too soon after the last one
        self.backlogged: set[Cell] = set()
        self.aside = SetAside()
        self.size = BatchSize(config.batch_bytes_max)
        self.cancels = Cancels(config.cancels_max)
        self.memory = Memory(config.waiting_bytes_max, config.active_bytes_max, len(config.bands))
        self.effects: list[Effect] = []
        self.sent: Batch | None = None  # under way; facts may come in, nothing is built
        self.fenced = False  # the transactional id is over: recover before anything else is committed
        self.doubt: Batch | None = None  # sent under an id that is over; whether it landed is not known yet
        self.draining = False
        self.held_until_ms = 0  # monotonic; see hold
        self.late_results = 0
        self.deaths = 0  # charged here: of workers before, of children of this one
        self.epochs = 0
        self._refresh_mono_ms = 0
        self._settled_mono_ms = -(1 << 40)  # when the last batch was settled
        self._tokens = 0
        self._refused_batches = 0
        self._units_max = 0  # of the next batch, while an offending record is being looked for; 0 = no limit

    # -- facts ---------------------------------------------------------------------------------------------------------

    def fetched(self, records: Iterable[RequestRecord]) -> None:
        """Records of owned shards, in the order of their offsets within a cell; others are dropped."""
        shards = self.shards
        for record in records:
            shard = shards.get(record.partition)
            if shard is None or not shard.ledgers or shard.standing is Standing.CLOSING:
                continue
            self.backlogged.add((record.band, record.partition))
            intake.fetched(self, shard, record)

    def position_lost(self, cell: Cell, log_start: int) -> None:
        """The log no longer holds the next record of this cell: it goes on at `log_start`.

        That is below what came already where the log was cut, or its topic made anew, under its owner: other records will
        stand at the offsets that the ledger knows. The shard is then claimed again (protocol.step).
        """
        band, number = cell
        shard = self.shards.get(number)
        if shard is None or not shard.ledgers:
            return
        received = shard.ledgers[band].received
        if records := shard.backlogs[band].records:
            received = records[-1].offset + 1
        fields = {"band": band, "shard": number, "from": received, "to": log_start, "open": 0, "why": "retention"}
        if log_start < received:
            shard.torn.add(band)
            fields |= {"from": log_start, "to": received, "why": "the log was cut under its owner"}
            self.effects.append(Note("records_lost", fields))
            return
        self.effects.append(Note("records_lost", fields))
        if shard.known_to[band] and log_start >= shard.known_to[band]:
            shard.cell_is_back(band)
            self.backlogged.add(cell)  # what was deferred for it is looked at

    def cancel_read(self, task_ids: Iterable[str], now: Now) -> None:
        """Ids that tasks.control cancels, read in its order."""
        for task_id in task_ids:
            self.cancels.add(task_id)
            for shard in self.shards.values():
                claim = shard.claims.get(task_id)
                if claim is not None:
                    self._cancel(claim, now)

    def begun(self, token: int, now: Now) -> None:
        """A child begins with this execution only now (told for those that are `timed`): its time counts from here."""
        claim = self.running.get(token)
        if claim is not None and claim.owner_shard.standing is not Standing.GONE:
            timers.begun(self, claim, now)

    def ended(self, token: int, outcome: Outcome, now: Now) -> None:
        """An execution has really ended: its slot is free."""
        claim = self.running.pop(token, None)
        if claim is None:
            self.late_results += 1
            return
        self.schedule.release(claim)
        self.memory.ended(claim, outcome.result)
        if outcome.ran_ms is not None:
            self.schedule.pace.ran(claim.task_type, outcome.ran_ms)
        self.disarm(claim)
        if claim.owner_shard.standing is Standing.GONE:
            self.late_results += 1  # its shard has gone: whoever owns it now runs it again
            return
        assert claim.phase is Phase.RUNNING, f"{claim} ended without running"
        claim.acquitted = claim.on_trial = False
        claim.progress = None if outcome.ending is Ending.RETURNED else claim.progress
        endings.judge(self, claim, outcome, now)

    def progressed(self, token: int, fraction: float | None, message: str | None, now: Now) -> None:
        """The latest progress of an execution; at most one event each `progress_ms`."""
        claim = self.running.get(token)
        if claim is None or claim.owner_shard.standing is Standing.GONE:
            return
        owed = Owed(fraction, message)
        self.memory.replaced(claim, claim.progress, owed)
        claim.progress = owed
        if now.mono_ms - claim.progress_mono_ms >= self.config.progress_ms:
            claim.progress_mono_ms = now.mono_ms
            self.touch(claim)
        else:
            self.throttled[claim] = None

    def tick(self, now: Now) -> None:
        """What time alone brings about."""
        timers.due(self, now)
        if self.aside:
            setaside.tick(self, now)
        if now.mono_ms >= self._refresh_mono_ms:
            self._refresh(now)
        if self.throttled:
            for claim in list(self.throttled):
                if now.mono_ms - claim.progress_mono_ms >= self.config.progress_ms:
                    del self.throttled[claim]
                    if claim.progress is not None and claim.phase is Phase.RUNNING:
                        claim.progress_mono_ms = now.mono_ms
                        self.touch(claim)

    def _refresh(self, now: Now) -> None:
        """A task that runs for a quarter of the status retention has its last event published again."""
        every = self.config.refresh_ms
        self._refresh_mono_ms = now.mono_ms + every // 8
        for claim in self.running.values():
            gone = claim.owner_shard.standing is Standing.GONE
            if not gone and now.mono_ms - claim.progress_mono_ms >= every:
                claim.progress_mono_ms = now.mono_ms
                claim.progress = claim.progress or Owed(claim.fraction)
                self.touch(claim)

    def next_due_ms(self, now: Now) -> int | None:
        """Milliseconds until `tick` has something to do, or None."""
        waits = [
            due - at for due, at in ((self.wall.next_ms(), now.wall_ms), (self.mono.next_ms(), now.mono_ms)) if due
        ]
        if self.throttled:
            waits.append(self.config.progress_ms)
        if (left := self._alone_after_ms(now)) > 0:
            waits.append(left)
        return max(0, min(waits)) if waits else None

    def _alone_after_ms(self, now: Now) -> int:
        """For how long the CREATED of those that wait do not ask for a batch of their own. Under load the next end or start
        takes them along, a few milliseconds later, for nothing: alone they cost as much as a thousand ends."""
        if not self.fresh or not self.running:
            return 0
        return self._settled_mono_ms + self.config.created_wait_ms - now.mono_ms

    def drain(self) -> None:
        """Start nothing and admit nothing from now on; what runs may end."""
        self.draining = True

    def hold(self, wait_ms: int, now: Now) -> None:
        """Nothing is sent for so long: a broker lets what comes wait, and a transaction is never open while it waits."""
        self.held_until_ms = now.mono_ms + wait_ms

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    # -- the next batch ------------------------------------------------------------------------------------------------

    def prepare(self, now: Now) -> None:
        """Admit what has been fetched. `build` does it as well; here while a batch is under way."""
        if (self.backlogged or self.memory.heavy) and not self.draining:
            intake.admit(self, now)

    @property
    def supplied(self) -> bool:
        """So many wait already that the next batch is full whatever has just been fetched."""
        return not self.fenced and self.schedule.waiting >= self.config.events_max // 3

    def build(self, now: Now) -> Batch | None:
        """Admit, pick, and put what is owed into one transaction; None when nothing is owed."""
        assert not self.fenced, "recover first"
        assert self.sent is None, "a batch is under way"
        if not self.draining:
            self.prepare(now)
            intake.pick(self, now)
        refusals = [r for r in self.refusals if r.shard.standing is Standing.OPEN] if self.refusals else ()
        heads = [
            s for s in self.shards.values() if s.standing is Standing.OPEN and (s.owes_head or s.recovered_since_head())
        ]
        if not heads and not refusals and not self.urgent and self._alone_after_ms(now) > 0:
            return None
        urgent: Iterable[Claim] = self.urgent
        fresh: Iterable[Claim] = self.fresh
        if not all(s.standing is Standing.OPEN for s in self.shards.values()):
            urgent, fresh = self._open_ones(urgent), self._open_ones(fresh)
        owing = setaside.owing(self, heads, refusals) if self.aside else Owing(heads, refusals, urgent, fresh)
        limits = Limits(self.config.events_max, self.size.limit, self._units_max or self.config.events_max)
        made = batch.build(self.owner, owing, now.wall_ms, limits=limits)
        if made is not None:
            made.made_mono_ms = now.mono_ms
        return made

    def build_closing(self, numbers: Iterable[int], now: Now) -> Batch | None:
        """The clean hand-over of these shards: what is done, and every running mark cleared."""
        closing = [s for n in numbers if (s := self.shards.get(n)) and s.standing is Standing.CLOSING and s.ledgers]
        owing = Owing(closing, urgent=setaside.closing(self, closing), avoid=self.aside.avoid())
        limits = Limits(1 << 30, self.size.closing_limit, self._units_max or 1 << 30)
        return batch.build(self.owner, owing, now.wall_ms, limits=limits, closing=True)

    @staticmethod
    def _open_ones(claims: Iterable[Claim]) -> Iterator[Claim]:
        return (claim for claim in claims if claim.owner_shard.standing is Standing.OPEN)

    def settle(self, landed: Batch, now: Now) -> None:
        """The broker said yes (or a doubtful batch turned out to have landed): what was paid is no longer owed."""
        for (band, number), draft in landed.drafts.items():
            if self.shards.get(number) is landed.shards[number]:
                landed.shards[number].ledgers[band].settle(draft)
        for number, shard in landed.shards.items():
            shard.sequence = landed.sequences[number]
            shard.head_recovering = number in landed.recovering
            shard.owes_head = shard.recovered_since_head()
            shard.owes_cells = False
        for refusal in landed.refusals:
            if refusal in self.refusals:
                del self.refusals[refusal]
                self.memory.released(refusal.shard, refusal.letter.record)
        for step in landed.steps:
            if self.shards.get(step.claim.shard) is step.claim.owner_shard:
                self._settle(step, now)
        self._settled_mono_ms = now.mono_ms
        if landed.made_mono_ms:
            self.schedule.pace.committed(now.mono_ms - landed.made_mono_ms)
        self._refused_batches = 0
        self._units_max = self._units_max * 2 if 0 < self._units_max < self.config.events_max else 0

    def aborted(self, plan: Batch, *, record: bool) -> None:
        """The transaction was aborted; everything is still owed. `record`: one of its records is the reason.

        After two such aborts the batch is halved until the offender is alone, and then said shorter.
        """
        if not record:
            return
        self._refused_batches += 1
        units = len(plan.steps) + len(plan.refusals)
        if units > 1:
            if self._refused_batches >= 2:
                self._units_max = units // 2
            return
        for step in plan.steps:
            self._shorten(step.claim)
        for refusal in plan.refusals:
            refusal.letter.reference = True

    def _shorten(self, claim: Claim) -> None:
        claim.bare = min(claim.bare + 1, 2)
        if claim.final is not None:
            if claim.final.status is TaskStatus.COMPLETED:
                claim.final = batch.too_large(claim.final)
            elif claim.bare > 1:
                old, text = claim.final, "(left out: too large)"
                claim.final = Final(old.status, old.code, text, dead=old.dead)
        self.effects.append(Note("record_refused", {"task_id": claim.task_id, "origin": claim.origin}))

    # -- steps of a claim ----------------------------------------------------------------------------------------------

    def _settle(self, step: Step, now: Now) -> None:
        claim, pays = step.claim, step.pays
        if pays == FINISH:
            self._gone(claim)
            return
        if pays & CREATE:
            self.fresh.pop(claim, None)
            claim.created = True
        if pays & WAIT:
            assert step.wait is not None
            claim.failed = step.wait.failed or 0
            claim.lost = claim.lost if step.wait.lost is None else step.wait.lost
            if claim.wait is step.wait:
                claim.wait = None
                if claim.load and claim.phase in (Phase.WAITING, Phase.QUEUED):
                    self.memory.hold(claim, 0)
            if claim.phase is not Phase.PICKED:  # else it is in its next group already
                self.schedule.leave(claim)
        if pays & START:
            claim.attempt, claim.started_ms = step.attempt, step.at_ms
            self._start(claim, now)
        if pays & ACQUIT:
            self.schedule.acquit(claim)
            if claim.phase is Phase.RUNNING:  # else its child has died since: it is a suspect again
                claim.acquitted = claim.on_trial = False
                claim.lost, claim.trial = 0, acquitted(claim.trial)
        if pays & REPORT:
            assert step.report is not None
            if step.report.fraction is not None:
                claim.fraction = step.report.fraction
            if claim.progress is step.report:
                claim.progress = None
                self.memory.replaced(claim, step.report, None)
        if pays & FINISH:
            self._gone(claim)
        elif not self._owes(claim):
            self.urgent.pop(claim, None)

    def _start(self, claim: Claim, now: Now) -> None:
        claim.fraction = None
        if claim.armed:
            timers.landed(self, claim, now)
        if claim.final is not None:  # cancelled while it was not known whether its start had landed, or expired
            self.schedule.release(claim)
            claim.phase = Phase.ENDING
            self.memory.owes(claim, claim.final)
            return
        self._tokens += 1
        token = claim.token = self._tokens
        claim.phase = Phase.RUNNING
        claim.stop, claim.acquitted, claim.on_trial = None, False, claim.suspect
        claim.progress_mono_ms = now.mono_ms - self.config.progress_ms
        self.running[token] = claim
        limit, shares = claim.timeout_ms, self.schedule.parts_of(claim) < WHOLE
        start = Start(
            token, claim.record, claim.attempt, claim.kind, limit, claim.group if self.children else 0, shares
        )
        timers.start(self, claim, start, now)
        self.effects.append(start)

    def retry(self, claim: Claim, owed: Owed, again: Again, now: Now) -> None:
        """Its attempt is over and another one will come: that is owed from now on, and its time is running."""
        claim.wait = owed
        endings.suspect(claim, claim.lost if owed.lost is None else owed.lost, owed.trial)
        self.memory.replaced(claim, None, owed)
        self.touch(claim)
        self.wait(claim, Wait.RETRY)
        timers.retry(self, claim, again.wait_ms, now)

    def end(self, claim: Claim, final: Final) -> None:
        """Its last event is owed from now on. A claim that has just been judged may come from any phase but RUNNING."""
        claim.final = final
        if claim.phase is not Phase.PICKED:  # PICKED: its start is in a doubtful batch; see _start
            claim.phase = Phase.ENDING
            self.memory.owes(claim, final)
        self.touch(claim)

    def wait(self, claim: Claim, reason: Wait) -> None:
        claim.phase = Phase.WAITING
        claim.wait_reason = reason
        if reason is not Wait.RETRY:
            claim.owner_shard.waiting[claim.band] += 1
            self.memory.parked += claim.record.weight

    def touch(self, claim: Claim) -> None:
        """It owes more than its CREATED."""
        self.fresh.pop(claim, None)
        self.urgent[claim] = None

    @staticmethod
    def _owes(claim: Claim) -> bool:
        return bool(
            claim.final is not None
            or claim.wait is not None
            or (claim.acquitted and claim.phase is Phase.RUNNING)
            or claim.phase is Phase.PICKED
            or (claim.progress is not None and claim.phase is Phase.RUNNING)
        )

    def _gone(self, claim: Claim) -> None:
        del claim.owner_shard.claims[claim.task_id]
        self.memory.gone(claim)
        self.urgent.pop(claim, None)
        self.throttled.pop(claim, None)
        self.schedule.finish(claim)
        self.disarm(claim)

    def disarm(self, claim: Claim) -> None:
        """No deadline of this claim is left."""
        if claim.armed:
            timers.disarm(self, claim)

    def _cancel(self, claim: Claim, now: Now) -> None:
        if claim.final is not None or claim.stop is StopReason.CANCEL:
            return
        if claim.phase is Phase.RUNNING:
            if claim.stop is None:
                self.effects.append(Stop(claim.token, StopReason.CANCEL))
            if claim.stop is not StopReason.REVOKE:  # it is being stopped for its time, and might run again
                claim.stop = StopReason.CANCEL
            return
        if claim.phase is Phase.PICKED and self.in_doubt(claim):
            self.end(claim, admission.cancelled(ErrorCode.CANCELLED))
            return
        self.withdraw(claim)
        self.end(claim, admission.cancelled(ErrorCode.CANCELLED))

    def in_doubt(self, claim: Claim) -> bool:
        """True when a batch pays something of this claim that is in doubt or under way."""
        batches = (self.doubt, self.sent)
        return any(step.claim is claim for batch in batches if batch is not None for step in batch.steps)

    def unpick(self, claim: Claim) -> None:
        """Give the slot back: it will not start here."""
        self.schedule.release(claim)
        if claim.load:
            self.memory.hold(claim, 0)
        claim.phase = Phase.WAITING
        self.schedule.leave(claim)
        if not self._owes(claim):
            self.urgent.pop(claim, None)

    def withdraw(self, claim: Claim) -> None:
        """Out of the schedule or out of its wait; a picked one gives its slot back."""
        if claim.phase is Phase.PICKED:
            self.unpick(claim)
        elif claim.phase is Phase.QUEUED:
            self.schedule.remove(claim)
        elif claim.phase is Phase.WAITING and claim.wait_reason is not Wait.RETRY:
            self._unpark(claim)
        claim.phase = Phase.ENDING
        self.disarm(claim)

    def _unpark(self, claim: Claim) -> None:
        claim.owner_shard.waiting[claim.band] -= 1
        self.memory.parked -= claim.record.weight
        claim.wait_reason = Wait.RETRY  # it is parked no more, whatever phase it is given when its slot is taken back

    def to_queue(self, claim: Claim, now: Now) -> None:
        """Its wait is over."""
        if claim.phase is not Phase.WAITING:
            return
        if claim.wait_reason is not Wait.RETRY:
            self._unpark(claim)
        self.queue(claim, now)

    def queue(self, claim: Claim, now: Now) -> None:
        """Into the schedule, unless it has had as many attempts as a ledger can count."""
        if claim.attempt >= ATTEMPT_MAX:
            self.end(claim, admission.failed(ErrorCode.WORKER_LOST, f"{claim.attempt} attempts, and no end"))
            return
        claim.phase = Phase.QUEUED
        claim.queued_ms = now.mono_ms
        if not self.aside or not self.aside.park(claim):
            self.schedule.add(claim, now.mono_ms)
