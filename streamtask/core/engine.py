"""The engine of a worker: facts come in, effects and the next batch go out.

The engine is the state (state.py) with incoming facts as methods; the functions of the other modules decide what follows from
a fact. It starts no task before its RUNNING has settled, and drops results of an execution whose shard has gone (Kafka fences
members, not partitions, so this filter is ours). The flows that talk to the broker are in core/protocol.py; what they do to
the ownership of shards is in core/ownership.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamtask.core import batch, endings, group_commit, intake, set_aside, timers, transitions
from streamtask.core.batch import Batch, Limits, Owing
from streamtask.core.shard import CLOSING, GONE, OPEN, RUNNING, Claim, Owed
from streamtask.core.state import State
from streamtask.domain.model import Ending, Outcome, RequestRecord
from streamtask.domain.ports import Cell, Effect, Note, Now

_RETURNED = Ending.RETURNED  # see core/shard.py


class Engine(State):
    """The state, and the facts that come in. See the module docstring."""

    # -- facts ---------------------------------------------------------------------------------------------------------

    def fetched(self, records: Iterable[RequestRecord]) -> None:
        """Records of owned shards, in order of offset within each cell. Records of other shards are dropped."""
        shards = self.shards
        for record in records:
            shard = shards.get(record.partition)
            if shard is None or not shard.ledgers or shard.standing is CLOSING:
                continue
            self.backlogged.add((record.band, record.partition))
            intake.fetched(self, shard, record)

    def position_lost(self, cell: Cell, log_start: int) -> None:
        """The log no longer holds the next record of this cell: it continues at `log_start`.

        If `log_start` is below what was already received, the log was cut, or its topic was recreated, under its owner: other
        records will take the offsets that the ledger knows. The shard is then claimed again (protocol.step).
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
            self.backlogged.add(cell)  # its deferred records are examined now

    def cancel_read(self, task_ids: Iterable[str], now: Now) -> None:
        """Task ids that tasks.control cancels, in the order of that topic."""
        for task_id in task_ids:
            self.cancels.add(task_id)
            for shard in self.shards.values():
                claim = shard.claims.get(task_id)
                if claim is not None:
                    transitions.cancel(self, claim)

    def begun(self, token: int, now: Now) -> None:
        """This execution starts only now (reported for those that are `late` and `timed`): its time counts from here."""
        claim = self.running.get(token)
        if claim is not None and claim.owner_shard.standing is not GONE:
            timers.begun(self, claim, now)

    def ended(self, token: int, outcome: Outcome, now: Now) -> None:
        """An execution has really ended, so its slot is free."""
        claim = self.running.pop(token, None)
        if claim is None:
            self.late_results += 1
            return
        self.schedule.release(claim)
        self.memory.ended(claim, outcome.result)
        if outcome.ran_ms is not None:
            self.schedule.pace.ran(claim.task_type, outcome.ran_ms)
        if claim.armed:
            transitions.disarm(self, claim)
        if claim.owner_shard.standing is GONE:
            self.late_results += 1  # its shard has gone: the new owner runs it again
            return
        assert claim.phase is RUNNING, f"{claim} ended without running"
        claim.acquitted = claim.on_trial = False
        claim.progress = None if outcome.ending is _RETURNED else claim.progress
        endings.judge(self, claim, outcome, now)

    def progressed(self, token: int, fraction: float | None, message: str | None, now: Now) -> None:
        """The latest progress of an execution; it causes at most one event every `progress_ms`."""
        claim = self.running.get(token)
        if claim is None or claim.owner_shard.standing is GONE:
            return
        owed = Owed(fraction, message)
        self.memory.replaced(claim, claim.progress, owed)
        claim.progress = owed
        if now.mono_ms - claim.progress_mono_ms >= self.config.progress_ms:
            claim.progress_mono_ms = now.mono_ms
            transitions.touch(self, claim)
        else:
            self.throttled[claim] = None

    def tick(self, now: Now) -> None:
        """Apply what follows from the passing of time alone."""
        timers.due(self, now)
        if self.aside:
            set_aside.tick(self, now)
        if now.mono_ms >= self.refresh_mono_ms:
            self._refresh(now)
        if self.throttled:
            for claim in list(self.throttled):
                if now.mono_ms - claim.progress_mono_ms >= self.config.progress_ms:
                    del self.throttled[claim]
                    if claim.progress is not None and claim.phase is RUNNING:
                        claim.progress_mono_ms = now.mono_ms
                        transitions.touch(self, claim)

    def _refresh(self, now: Now) -> None:
        """Publish the last event of a task again once the task has run for a quarter of the status retention."""
        every = self.config.refresh_ms
        self.refresh_mono_ms = now.mono_ms + every // 8
        for claim in self.running.values():
            gone = claim.owner_shard.standing is GONE
            if not gone and now.mono_ms - claim.progress_mono_ms >= every:
                claim.progress_mono_ms = now.mono_ms
                claim.progress = claim.progress or Owed(claim.fraction)
                transitions.touch(self, claim)

    def next_due_ms(self, now: Now) -> int | None:
        """Milliseconds until `tick` has something to do, or None."""
        waits = [
            due - at for due, at in ((self.wall.next_ms(), now.wall_ms), (self.mono.next_ms(), now.mono_ms)) if due
        ]
        if self.throttled:
            waits.append(self.config.progress_ms)
        if (left := self._alone_after_ms(now)) > 0:
            waits.append(left)
        if (left := self.fills_ms(now)) > 0:
            waits.append(left)
        return max(0, min(waits)) if waits else None

    def _alone_after_ms(self, now: Now) -> int:
        """How long the CREATED of waiting requests do not justify a batch of their own.

        Under load the next end or start carries them along for free a few milliseconds later; alone they cost as much as
        a thousand ends.
        """
        if not self.fresh or not self.running:
            return 0
        return self.settled_mono_ms + self.config.created_wait_ms - now.mono_ms

    def drain(self) -> None:
        """Admit and start nothing from now on; running tasks may end."""
        self.draining = True

    def hold(self, wait_ms: int, now: Now) -> None:
        """Send nothing for this long: the broker throttles us, and a transaction must not stay open meanwhile."""
        self.held_until_ms = now.mono_ms + wait_ms

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    # -- the next batch ------------------------------------------------------------------------------------------------

    def fills_ms(self, now: Now) -> int:
        """How long the next batch waits for more, at most (core/group_commit.py); 0: it should be built now."""
        return group_commit.fill_ms(self, now)

    def prepare(self, now: Now) -> None:
        """Admit what has been fetched. `build` also does this; this call does it while a batch is in flight, or filled."""
        if (self.backlogged or self.memory.heavy) and not self.draining:
            intake.admit(self, now)

    @property
    def supplied(self) -> bool:
        """True when so many requests wait that the next batch is full whatever has just been fetched."""
        return not self.fenced and self.schedule.waiting >= self.config.events_max // 3

    def build(self, now: Now) -> Batch | None:
        """Admit, pick, and put what is owed into one transaction; None if nothing is owed."""
        assert not self.fenced, "recover first"
        assert self.sent is None, "a batch is under way"
        if not self.draining:
            self.prepare(now)
            intake.pick(self, now)
        self.schedule.slots.picked()
        refusals = [r for r in self.refusals if r.shard.standing is OPEN] if self.refusals else ()
        heads = [s for s in self.shards.values() if s.standing is OPEN and (s.owes_head or s.recovered_since_head())]
        if not heads and not refusals and not self.urgent and self._alone_after_ms(now) > 0:
            return None
        urgent: Iterable[Claim] = self.urgent
        fresh: Iterable[Claim] = self.fresh
        if not all(s.standing is OPEN for s in self.shards.values()):
            urgent, fresh = self._open_ones(urgent), self._open_ones(fresh)
        owing = set_aside.owing(self, heads, refusals) if self.aside else Owing(heads, refusals, urgent, fresh)
        limits = Limits(self.config.events_max, self.size.limit, self.units_max or self.config.events_max)
        made = batch.build(self.owner, owing, now.wall_ms, limits=limits)
        if made is not None:
            made.made_mono_ms = now.mono_ms
        return made

    def build_closing(self, numbers: Iterable[int], now: Now) -> Batch | None:
        """The clean hand-over of these shards: what is done, with every running mark cleared."""
        closing = [s for n in numbers if (s := self.shards.get(n)) and s.standing is CLOSING and s.ledgers]
        owing = Owing(closing, urgent=set_aside.closing(self, closing), avoid=self.aside.avoid())
        limits = Limits(1 << 30, self.size.closing_limit, self.units_max or 1 << 30)
        return batch.build(self.owner, owing, now.wall_ms, limits=limits, closing=True)

    @staticmethod
    def _open_ones(claims: Iterable[Claim]) -> Iterator[Claim]:
        return (claim for claim in claims if claim.owner_shard.standing is OPEN)
