"""Each rule of the protocol, taken out: by patching the core or by a driver that performs an ask differently.

A mutation is a context manager; while it is active the scenarios named with it must fail. The table in
docs/decisions/0006-rules-and-mutations.md is this file in prose; tests/sim/test_mutations.py holds the two equal.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from streamtask.core import endings, ownership, protocol, settlement, suspects, timers
from streamtask.core import schedule as schedule_room
from streamtask.core import shard as shard_room
from streamtask.core.engine import Engine
from streamtask.core.ledger import Draft, Ledger, charge
from streamtask.core.offset_map import Mark, entry_of
from streamtask.core.recall import Recall
from streamtask.core.shard import Claim, Owed, Standing
from streamtask.core.suspects import ALONE, STAGES, stage_of
from streamtask.domain.model import Outcome, TaskStatus
from streamtask.domain.ports import (
    AwaitEnded,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    Flush,
    HandOver,
    Now,
    Produce,
    ReadSettled,
    SendOffsets,
    Settled,
    Start,
    Stop,
)

from .filling import FILLING
from .heavy import HEAVY
from .mutation import Mutation
from .process import Process
from .record_mutations import RECORD_MUTATIONS
from .refusal_mutations import REFUSAL_MUTATIONS

FAR = 1 << 40


def _write_ahead() -> Any:
    """Handlers start when their RUNNING was produced, not when it was committed."""

    def commit(engine: Any, batch: Any, clock: Any) -> Generator[Any, Any, bool]:
        fault = yield Produce(batch.plan)
        if fault is None:
            fault = yield Flush(batch.plan)
        if fault is None:
            settlement.settle(engine, batch, clock())
            yield HandOver(engine.take_effects())
            fault = yield SendOffsets(batch.plan)
        if fault is None:
            fault = yield EndTransaction()
        if fault is None:
            return True
        return protocol._doubtful(engine, batch, fault)

    return patch.object(protocol, "commit", commit)


def _stable_read() -> Any:
    """committed() does not wait for pending offsets."""
    return patch.object(Process, "_read_settled", lambda self, ask, waited, twist: self.broker.read_settled(ask.shards))


@contextmanager
def _ownership_filter() -> Iterator[None]:
    """A shard that was lost is not marked as gone: late results of its executions are committed."""
    forget = ownership.forget

    def forget_not(engine: Any, numbers: Any) -> None:
        gone = [shard for number in numbers if (shard := engine.shards.get(number)) is not None]
        forget(engine, numbers)
        for shard in gone:
            shard.standing = Standing.OPEN

    # The bounds would notice the claim without a shard before any promise is broken: what breaks then is the question.
    with patch.object(ownership, "forget", forget_not), patch.object(Process, "_bounded", lambda self: None):
        yield


def _read_back() -> Any:
    """A doubtful batch counts as not landed."""

    def resolve(engine: Any, settled: Any, now: Any) -> None:
        engine.doubt = None

    return patch.object(ownership, "resolve", resolve)


def _batch_id_kept() -> Any:
    """The read-back asks for the id in use, not for the id of the batch in doubt."""
    renewed = ownership.renewed

    def forgetful(engine: Any, owner: str) -> None:
        if engine.doubt is not None:
            engine.doubt.owner = owner
        renewed(engine, owner)

    return patch.object(ownership, "renewed", forgetful)


def _running_mark() -> Any:
    """Without the mark everybody who has started counts as running when an owner is gone."""

    def everybody(ledgers: list[Ledger]) -> Any:
        for ledger in ledgers:
            for offset, entry in list(ledger.entries.items()):
                if entry.mark == Mark.NONE:
                    marked = entry_of(entry.attempt, entry.failed, entry.lost, Mark.RUNNING, entry.trial)
                    ledger.state.entries[offset] = marked
        return charge(ledgers)

    return patch.object(shard_room, "charge", everybody)


@contextmanager
def _trial_alone_convicts() -> Iterator[None]:
    """A death in any trial is that of the one that stands it."""

    def convict(ledgers: list[Ledger]) -> Any:
        for ledger in ledgers:
            for offset, entry in list(ledger.entries.items()):
                if entry.mark == Mark.TRIAL:
                    trial = entry.trial - stage_of(entry.trial) + ALONE
                    ledger.state.entries[offset] = entry_of(entry.attempt, entry.failed, entry.lost, entry.mark, trial)
        return charge(ledgers)

    with patch.object(shard_room, "charge", convict):
        yield


def _alone_is_alone() -> Any:
    """One that is to stand its trial alone stands it beside the others."""
    return patch.object(schedule_room, "ALONE", STAGES)


def _nobody_is_charged_for_several() -> Any:
    """The death of a child is charged to each of those that ran in it."""
    died = endings._died

    def each(engine: Engine, claim: Claim, outcome: Outcome, now: Now) -> None:
        died(engine, claim, replace(outcome, beside=0), now)

    return patch.object(endings, "_died", each)


def _groups_are_halved() -> Any:
    """Who was in a child that died runs beside as many as before."""
    return patch.object(suspects, "parted", lambda trial, size: trial)


def _acquittal_forgives() -> Any:
    """Who has outlived its trial keeps its deaths."""

    def keep(self: Draft, offset: int) -> None:
        old = self._entry(offset)
        self._put(offset, entry_of(old.attempt, old.failed, old.lost, Mark.RUNNING, old.trial))

    return patch.object(Draft, "acquitted", keep)


def _the_living_are_not_charged() -> Any:
    """Whoever finds a shard unclean charges its marks, also the process that left it so."""
    adopt = shard_room.Shard.adopt
    return patch.object(shard_room.Shard, "adopt", lambda self, settled, own_ids=(): adopt(self, settled))


def _child_death_charged() -> Any:
    """The death of a child ends the attempt and is nobody's: `lost` stays."""

    def owed(*, message: str, failed: int, lost: int | None = None, trial: int | None = None) -> Owed:
        return Owed(message=message, failed=failed)

    return patch.object(endings, "Owed", owed)


def _time_from_the_beginning() -> Any:
    """The time of an execution counts from when it was handed over."""

    def at_once(engine: Any, claim: Claim, handed: Start, now: Now) -> None:
        timers.run(engine, claim, handed.timeout_ms, now)

    return patch.object(timers, "start", at_once)


def _child_death_clears_the_mark() -> Any:
    """The transaction that charges a child's death leaves the running mark where it is: the next claim charges it too."""

    def waiting(self: Draft, offset: int, failed: int, lost: int | None = None, trial: int | None = None) -> None:
        old = self._entry(offset)
        mark = Mark.NONE if lost is None else old.mark
        self._put(offset, entry_of(old.attempt, failed, old.lost if lost is None else lost, mark, old.trial))

    return patch.object(Draft, "waiting", waiting)


@contextmanager
def _explicit_positions() -> Iterator[None]:
    """auto.offset.reset=earliest in place of positions sought: the bounds of the log are not looked at."""
    fetch = Process._fetch

    def read_settled(self: Process, ask: ReadSettled, waited: int, twist: str) -> Any:
        if self.broker.unstable(ask.shards):
            return Fault(FaultKind.RETRY, "unstable")
        found = self.broker.read_settled(ask.shards)
        return {cell: Settled(s.offset, s.text, 0, FAR) for cell, s in found.items()}

    def fetch_reset(self: Process) -> Any:
        for cell, position in self.positions.items():
            log = self.broker.logs[cell]
            if not log.start <= position <= log.end:
                self.positions[cell] = log.start
        return fetch(self)

    with patch.object(Process, "_read_settled", read_settled), patch.object(Process, "_fetch", fetch_reset):
        yield


def _facts_by_task_id() -> Any:
    """A fact of tasks.status counts for whatever record stands at the offset that it names."""
    return patch.object(Recall, "keep_own", lambda self, offset, task_id: None)


def _claimed_again_when_torn() -> Any:
    """An owner whose log was cut goes on with its ledger, from the end of the log."""
    return patch.object(ownership, "torn", lambda engine: ())


def _only_reports(plan: Any) -> bool:
    return all(e.status is TaskStatus.RUNNING and e.progress is not None for e in plan.events) and not plan.dead


@contextmanager
def _fence_rule_and_fencing() -> Iterator[None]:
    """A batch of mere progress sends no offsets, and nobody fences the recorded owner."""
    send = Process._send_offsets

    def send_offsets(self: Process, ask: SendOffsets, waited: int, twist: str) -> Any:
        return None if _only_reports(ask.plan) else send(self, ask, waited, twist)

    with (
        patch.object(Process, "_send_offsets", send_offsets),
        patch.object(Process, "_fence_ids", lambda self, ask, waited, twist: None),
    ):
        yield


def _slow_id_ended() -> Any:
    """A commit that was slow but answered keeps its id: a copy of its EndTxn may still come."""
    end = Process._end_transaction

    def lenient(self: Process, ask: EndTransaction, waited: int, twist: str) -> Any:
        fault = end(self, ask, waited, twist)
        return None if twist == "copy" else fault

    return patch.object(Process, "_end_transaction", lenient)


def _rejoin_after_doubt() -> Any:
    """A claim commit without an answer in time counts as done."""
    commit = Process._commit_plain

    def lenient(self: Process, ask: CommitPlain, waited: int, twist: str) -> Any:
        fault = commit(self, ask, waited, twist)
        if twist == "copy":
            self.claimed.update(o.shard for o in ask.offsets)
            return None
        return fault

    return patch.object(Process, "_commit_plain", lenient)


@contextmanager
def _end_first() -> Iterator[None]:
    """Revoke commits the clean record first and ends the handlers then."""
    revoked, stop = protocol.revoked, Process._stop

    def late(engine: Any, numbers: Any, clock: Any) -> Generator[Any, Any, Any]:
        flow = revoked(engine, numbers, clock)
        answer: Any = None
        while True:
            try:
                ask = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = None if type(ask) is AwaitEnded else (yield ask)

    def stop_later(self: Process, effect: Stop) -> None:
        self.do(100, lambda: stop(self, effect))

    with patch.object(protocol, "revoked", late), patch.object(Process, "_stop", stop_later):
        yield


def _revoke_waits() -> Any:
    """Revoke returns as soon as its commit was answered."""
    revoked = protocol.revoked

    def hasty(engine: Any, numbers: Any, clock: Any) -> Generator[Any, Any, Any]:
        flow = revoked(engine, numbers, clock)
        answer: Any = None
        while True:
            try:
                ask = flow.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = None if type(ask) is ReadSettled else (yield ask)

    return patch.object(protocol, "revoked", hasty)


def _fencing() -> Any:
    """Nobody fences the recorded owner: safe, but its open transaction is waited for until it times out."""
    return patch.object(Process, "_fence_ids", lambda self, ask, waited, twist: None)


def _fence_former() -> Any:
    """Ids that this worker used before are not fenced: what one left open stays open."""
    ids_to_fence = ownership.ids_to_fence

    def spare(engine: Any, heads: Any) -> tuple[str, ...]:
        return tuple(one for one in ids_to_fence(engine, heads) if one not in engine.own_ids)

    return patch.object(ownership, "ids_to_fence", spare)


MUTATIONS: dict[str, Mutation] = {
    "write_ahead": Mutation(
        "write-ahead start",
        _write_ahead,
        ("poison_before_its_first_commit",),
        "a handler starts before its RUNNING is committed: its deaths are never counted",
    ),
    "stable_read": Mutation(
        "stable read of committed offsets",
        _stable_read,
        ("stable_read_of_a_decided_transaction",),
        "a decided batch whose marker is late is not seen: second CREATED",
    ),
    "ownership_filter": Mutation(
        "ownership filter",
        _ownership_filter,
        ("late_result_of_a_lost_shard",),
        "a member of the group ends a task whose shard is another's, which runs it: the history goes back an attempt",
    ),
    "read_back": Mutation(
        "read-back of a doubtful batch",
        _read_back,
        ("doubtful_commit_applied",),
        "a batch that landed is sent again: second CREATED",
    ),
    "batch_id_kept": Mutation(
        "id and sequence of the batch kept until it is resolved",
        _batch_id_kept,
        ("second_recovery_before_the_first_has_resolved", "trace_two_doubtful_commits"),
        "the recovery compares with the wrong id: second CREATED",
    ),
    "running_mark": Mutation(
        "running mark",
        _running_mark,
        ("trace_death_charged_twice", "trace_death_charged_to_a_waiting_task", "clean_handover_then_instant_death"),
        "a death is charged again at every claim, or to a task that only waits",
    ),
    "trial_alone_convicts": Mutation(
        "only a death in a trial that it stood alone quarantines a suspect",
        _trial_alone_convicts,
        ("poison_that_kills_in_the_trial_of_another", "poison_that_nobody_suspects_kills_in_the_trial_of_another"),
        "an innocent one is quarantined for a death that another caused during its trial",
    ),
    "alone_is_alone": Mutation(
        "nothing starts beside one that stands its trial alone",
        _alone_is_alone,
        ("poison_that_nobody_suspects_kills_in_the_trial_of_another",),
        "the same, in its next trial",
    ),
    "nobody_is_charged_for_several": Mutation(
        "the death of a child is charged to who was alone in it",
        _nobody_is_charged_for_several,
        ("poison_among_many",),
        "those that ran in the child of a poison are quarantined with it",
    ),
    "groups_are_halved": Mutation(
        "a group whose child died is halved",
        _groups_are_halved,
        ("poison_among_many",),
        "a poison is never alone in its child: it takes those beside it along for ever",
    ),
    "acquittal_forgives": Mutation(
        "who outlives its trial is acquitted",
        _acquittal_forgives,
        ("suspect_that_is_acquitted",),
        "a long task stays a suspect, and stands trial again after every death of a worker",
    ),
    "the_living_are_not_charged": Mutation(
        "a process that claims again what it had charges nobody",
        _the_living_are_not_charged,
        ("owner_that_was_frozen_claims_again",),
        "a worker that was frozen for longer than its session makes suspects of all that ran in it",
    ),
    "child_death_charged": Mutation(
        "a child's death is charged to its task",
        _child_death_charged,
        ("poison_of_its_child", "child_dies_and_then_its_worker"),
        "deaths that take no worker along are never counted: their task is never isolated, never quarantined",
    ),
    "child_death_clears_the_mark": Mutation(
        "the transaction that charges a child's death clears its mark",
        _child_death_clears_the_mark,
        ("child_dies_and_then_its_worker",),
        "when the worker dies too, the next claim charges the same death again",
    ),
    "time_from_the_beginning": Mutation(
        "time limits count from the beginning",
        _time_from_the_beginning,
        ("child_that_starts_slowly", "time_limit_behind_others"),
        "a task is stopped, again and again, before its handler has run, or has run as long as it may",
    ),
    "explicit_positions": Mutation(
        "explicit positions",
        _explicit_positions,
        ("offset_beyond_the_log_end",),
        "records at offsets that were once done are skipped: they never become terminal",
    ),
    "facts_by_task_id": Mutation(
        "a fact of tasks.status counts only for its task_id",
        _facts_by_task_id,
        ("topic_made_anew", "log_cut_and_recovery_interrupted"),
        "requests in a topic that was made anew are called done: they never run",
    ),
    "claimed_again_when_torn": Mutation(
        "a log cut under its owner is claimed again",
        _claimed_again_when_torn,
        ("log_cut_under_its_owner",),
        "what then stands at offsets that its ledger knows is taken for a repeat: it never runs",
    ),
    "fence_rule_and_fencing": Mutation(
        "fence rule together with fencing",
        _fence_rule_and_fencing,
        ("zombie_whose_batch_has_no_offsets",),
        "a zombie's events, fenced by nobody, appear after the terminal one",
    ),
    "fencing": Mutation(
        "fencing of the recorded owner",
        _fencing,
        ("death_inside_the_first_transaction",),
        "only a transaction timeout ends what the dead owner has open: everything waits 10-20 s",
    ),
    "fence_former": Mutation(
        "fencing of the worker's own earlier id",
        _fence_former,
        ("producer_left_inside_its_transaction",),
        "a producer that was left behind holds its shards up until its transaction times out",
    ),
    "slow_id_ended": Mutation(
        "a slow commit ends its id",
        _slow_id_ended,
        ("trace_late_copy_of_end_txn",),
        "a late copy of EndTxn ends the next batch early: its events appear without its offsets",
    ),
    "rejoin_after_doubt": Mutation(
        "leave and join again after a doubtful claim commit",
        _rejoin_after_doubt,
        ("trace_late_copy_of_a_claim",),
        "a late copy of the claim lands over a newer ledger: second CREATED",
    ),
    "end_first": Mutation(
        "revoke ends what is open first",
        _end_first,
        ("trace_death_hidden_by_a_clean_record",),
        "a death between the clean record and the end of the handlers is not counted",
    ),
    "revoke_waits": Mutation(
        "revoke returns when its clean record is visible",
        _revoke_waits,
        ("clean_owner_is_not_fenced",),
        "the next owner sees `open` and fences a healthy worker",
    ),
}
MUTATIONS |= REFUSAL_MUTATIONS | RECORD_MUTATIONS
MUTATIONS |= {name: Mutation(*parts) for name, parts in (HEAVY | FILLING).items()}
