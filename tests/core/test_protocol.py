"""The flows: claim, commit, revoke, recovery. What is asked of the broker, in which order, and what it means."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from streamtask.core import ownership, protocol
from streamtask.core.offset_map import head_of
from streamtask.core.shard import Standing
from streamtask.domain.model import HandlerKind, RequestRecord, Retry, TaskPolicy
from streamtask.domain.ports import (
    AbortTransaction,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    OffsetCommit,
    Produce,
    ReadSettled,
    Recalled,
    RecallStatus,
    Seat,
    SendOffsets,
    StopReason,
)
from tests.core.desk import RETURNED, STOPPED, Desk, raised


def names(asks: Iterable[object]) -> list[str]:
    return [type(ask).__name__ for ask in asks]


def standing(d: Desk) -> Standing:
    """Of shard 0, now."""
    return d.engine.shards[0].standing


def ready(**more: object) -> Desk:
    d = Desk(**more)  # type: ignore[arg-type]
    d.ready()
    d.asked.clear()
    return d


# --- claim --------------------------------------------------------------------------------------------------------------


def test_a_first_claim_lists_reads_records_and_seats_and_fences_nobody() -> None:
    d = Desk()
    assert names(d.asked) == ["ListOffsets", "ReadSettled", "CommitPlain", "Seat"]
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert (head.owner, head.sequence, head.state) == ("tasks.workers.0.1", 1, "open")
    assert set(d.offsets) == {(0, 0), (1, 0), (2, 0)}


def test_an_open_owner_is_fenced_before_its_offsets_are_read_and_a_clean_one_is_not() -> None:
    d = ready()
    d.submit()
    d.settle()
    taken = d.successor()
    assert names(taken.asked)[:4] == ["ListOffsets", "FenceIds", "ReadSettled", "CommitPlain"]
    assert taken.asked[1] == FenceIds(("tasks.workers.0.1",))
    taken.drive(protocol.revoked(taken.engine, (0,), taken.clock))
    assert names(taken.successor().asked)[:3] == ["ListOffsets", "ReadSettled", "CommitPlain"]


def test_a_claim_that_cannot_read_begins_again_at_the_list() -> None:
    d = Desk(claim=False)
    d.answers[ReadSettled] = [Fault(FaultKind.UNSTABLE)]
    assert not d.claim()
    assert standing(d) is Standing.UNCLAIMED
    d.asked.clear()
    d.turn()
    assert names(d.asked)[:2] == ["ListOffsets", "ReadSettled"]
    assert standing(d) is Standing.CLAIMED


def test_a_claim_commit_without_an_answer_leaves_the_group_and_forgets_every_shard() -> None:
    d = Desk(claim=False, shards=(0, 1))
    d.answers[CommitPlain] = [Fault(FaultKind.DOUBT)]
    assert not d.claim()
    assert names(d.asked)[-1] == "Rejoin"
    assert not d.engine.shards


def test_a_refused_claim_commit_charges_nobody_twice() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    taken = Desk(claim=False)
    taken.engine.owner = "tasks.workers.9.1"
    taken.engine.own_ids = {taken.engine.owner}
    taken.offsets, taken.log_ends = d.offsets, d.log_ends
    taken.answers[CommitPlain] = [Fault(FaultKind.STALE)]
    assert not taken.claim()
    taken.turn()
    entry = taken.engine.shards[0].ledgers[1].entries[record.offset]
    assert (entry.attempt, entry.lost, entry.mark) == (1, 1, 0)


@pytest.mark.parametrize("waits", [False, True], ids=["it ran", "it waited for its retry"])
def test_a_request_that_only_its_last_owner_could_read_fails_with_the_reason(waits: bool) -> None:
    """Its schema is not known here, and the registry is away: not run again, and not «invalid parameters»."""
    d = Desk({"noop": TaskPolicy(retry=Retry(attempts=2, backoff_ms=60_000))})
    d.ready()
    record = d.submit()
    d.settle()
    if waits:
        d.end(record, raised())
        d.settle()
    d = d.successor()
    record.request, record.problem = None, ("schema_unavailable", "the registry is away")
    d.feed(record)
    d.settle()
    assert d.history(record)[-2:] == ["running 1", "failed"]
    assert (d.last(record).attempt, d.last(record).error_code) == (1, "schema_unavailable")
    assert [(letter.reason, letter.text) for letter in d.dead] == [("schema_unavailable", "the registry is away")]
    assert not d.running


def test_a_text_of_a_newer_release_is_not_claimed_and_not_overwritten() -> None:
    d = Desk(claim=False)
    d.offsets[0, 0] = OffsetCommit(0, 0, 5, "st7|whatever")
    d.log_ends[0, 0] = 9
    assert d.claim()
    assert d.engine.shards[0].refused is not None
    assert d.offsets[0, 0].text == "st7|whatever"
    assert "CommitPlain" not in names(d.asked)
    assert [n.name for n in d.notes] == ["shard_refused"]


@pytest.mark.parametrize("text", ["", "somebody else's", "st1|A|B|C|open|1|2|x", "st1|!!|"])
def test_metadata_that_is_not_ours_is_recovered_from_tasks_status(text: str) -> None:
    d = Desk(claim=False)
    records = [d.record() for _ in range(3)]
    d.offsets[1, 0] = OffsetCommit(1, 0, 2, text)
    assert d.claim()
    (recall,) = [e for e in d.other_effects if isinstance(e, RecallStatus)]
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert head.state == "recovering"
    ownership.control_read(d.engine, (0,))
    facts = [
        Recalled("normal-0@0", records[0].task_id, True, 1, d.now.wall_ms),
        Recalled("normal-0@1", records[1].task_id, False, 3, d.now.wall_ms + 5_000),
    ]
    ownership.recalled(d.engine, 0, recall.epoch, facts, done=True)
    d.feed(*records)
    d.settle()
    assert d.history(records[0]) == []
    assert d.history(records[1]) == ["running 4"]
    assert d.history(records[2]) == ["created", "running 1"]
    assert d.last(records[1]).updated_ms >= d.now.wall_ms + 5_000
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert head.state == "open"


def test_an_owner_that_dies_while_recovering_leaves_word_of_it() -> None:
    d = Desk(claim=False)
    records = [d.record() for _ in range(2)]
    assert d.claim()
    taken = Desk(claim=False)
    taken.offsets, taken.log_ends = d.offsets, d.log_ends
    assert taken.claim()
    (recall,) = [e for e in taken.other_effects if isinstance(e, RecallStatus)]
    ownership.control_read(taken.engine, (0,))
    done = [Recalled(f"normal-0@{n}", records[n].task_id, True, 1, 0) for n in range(2)]
    ownership.recalled(taken.engine, 0, recall.epoch, done, done=True)
    taken.feed(*records)
    taken.settle()
    assert taken.history(records[0]) == taken.history(records[1]) == []
    assert taken.offsets[1, 0].offset == 2


def test_a_committed_offset_below_the_log_start_is_a_gap_that_is_told() -> None:
    d = ready()
    for _ in range(3):
        d.submit()
    d.turn()
    d.log_starts[1, 0] = 2
    taken = d.successor()
    (note,) = [n for n in taken.notes if n.name == "records_lost"]
    assert (note.fields["from"], note.fields["to"], note.fields["open"]) == (0, 2, 2)
    assert any(isinstance(a, Seat) and a.positions[1, 0] == 2 for a in taken.asked)


def test_a_committed_offset_above_the_log_end_goes_on_at_the_end() -> None:
    d = Desk(claim=False)
    d.offsets[1, 0] = OffsetCommit(1, 0, 50, "st1|A||")
    d.log_ends[1, 0] = 20
    assert d.claim()
    (note,) = [n for n in d.notes if n.name == "records_lost"]
    assert (note.fields["from"], note.fields["to"]) == (20, 50)
    assert d.offsets[1, 0].offset == 20


def test_nothing_new_is_admitted_before_what_was_known_has_come_back() -> None:
    d = ready()
    low = d.submit(band=2, task_id="0190a0a0-0000-7000-8000-00000000000a")
    d.turn()
    taken = d.successor()
    high = taken.record(band=0, task_id=low.task_id)
    taken.feed(high)
    taken.settle()
    assert taken.history(high) == []
    taken.feed(low)
    taken.settle()
    assert taken.history(high) == []
    assert taken.dead[-1].reason == "duplicate"
    assert taken.history(low)[-1] == "running 2"


# --- commit -------------------------------------------------------------------------------------------------------------


def test_every_transaction_sends_the_lead_cell_of_each_shard_it_touches() -> None:
    d = ready(shards=(0, 1))
    d.submit(shard=0)
    d.submit(shard=1, band=2)
    d.turn()
    (send,) = [a for a in d.asked if isinstance(a, SendOffsets)]
    assert {(o.band, o.shard) for o in send.plan.offsets} == {(0, 0), (1, 0), (0, 1), (2, 1)}
    assert names(d.asked) == ["Produce", "Flush", "SendOffsets", "EndTransaction"]


def test_what_comes_in_during_a_flush_is_the_next_batchs() -> None:
    d = ready()
    first = d.submit()
    d.settle()
    second = d.submit()
    later: list[RequestRecord] = []

    def meanwhile() -> None:
        if not later:
            d.end(first)
            later.append(d.submit())
            d.engine.prepare(d.now)

    d.when_flushing = meanwhile
    assert d.turn()
    assert d.history(first) == ["created", "running 1"]
    assert d.history(second) == ["created", "running 1"]
    assert d.history(later[0]) == []
    assert d.turn()
    assert d.history(first)[-1] == "completed"
    assert d.history(later[0]) == ["created", "running 1"]
    taken = d.successor()
    taken.feed(second, *later)
    taken.settle()
    assert taken.history(second)[-1] == "running 2"
    assert taken.history(later[0])[-1] == "running 2", (
        "it stands in the ledger, though it came between draft and settling"
    )


def test_a_cancel_that_comes_during_the_flush_of_a_start_ends_it_before_its_handler() -> None:
    d = ready()
    record = d.submit()
    d.when_flushing = lambda: d.engine.cancel_read([record.task_id], d.now)
    d.settle()
    assert not d.running
    assert d.history(record) == ["created", "running 1", "cancelled"]


def test_a_batch_that_is_aborted_after_something_came_in_keeps_both() -> None:
    d = ready()
    first = d.submit()
    later: list[RequestRecord] = []

    def meanwhile() -> None:
        if not later:
            later.append(d.submit())
            d.engine.prepare(d.now)

    d.when_flushing = meanwhile
    d.answers[SendOffsets] = [Fault(FaultKind.ABORT)]
    assert not d.turn()
    d.settle()
    assert d.history(first) == d.history(later[0]) == ["created", "running 1"]


def test_the_created_of_those_that_wait_goes_with_the_next_end_and_alone_after_a_while() -> None:
    d = ready(slots={HandlerKind.ASYNC: 1, HandlerKind.THREAD: 0, HandlerKind.PROCESS: 0})
    first = d.submit()
    d.settle()
    waiting, another = d.submit(), d.submit()
    assert not d.turn(), "it would cost a transaction of its own"
    wait_ms = d.engine.next_due_ms(d.now)
    assert wait_ms == d.config.created_wait_ms
    d.end(first)
    assert d.turn()
    assert d.history(waiting) == ["created", "running 1"]
    assert d.history(another) == ["created"]
    third = d.submit()
    d.later(d.config.created_wait_ms)
    assert d.turn()
    assert d.history(third) == ["created"]


@pytest.mark.parametrize("step", [Produce, SendOffsets, EndTransaction])
@pytest.mark.parametrize("kind", [FaultKind.ABORT, FaultKind.STALE])
def test_an_aborted_batch_is_rebuilt_from_memory(step: type, kind: FaultKind) -> None:
    d = ready()
    record = d.submit()
    d.answers[step] = [Fault(kind)]
    assert not d.turn()
    assert isinstance(d.asked[-1], AbortTransaction)
    assert d.history(record) == []
    d.settle()
    assert d.history(record) == ["created", "running 1"]
    assert len(d.running) == 1


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("kind", [FaultKind.DOUBT, FaultKind.RETRY])
def test_a_doubtful_batch_is_resolved_by_the_committed_id_and_sequence(landed: bool, kind: FaultKind) -> None:
    d = ready()
    record = d.submit()
    real = d.perform

    def perform(ask: object) -> object:
        if isinstance(ask, EndTransaction):
            if landed:
                d.land()
            d.perform = real  # type: ignore[method-assign]
            return Fault(kind)
        return real(ask)  # type: ignore[arg-type]

    d.perform = perform  # type: ignore[method-assign]
    d.turn()
    d.asked.clear()
    assert not d.running
    d.turn()
    assert names(d.asked)[:5] == ["Poll", "RenewProducer", "ListOffsets", "FenceIds", "ReadSettled"]
    d.settle()
    assert d.history(record) == ["created", "running 1"]
    assert [start.attempt for start in d.running.values()] == [1]
    d.end(record)
    d.settle()
    assert d.history(record)[-1] == "completed"


def test_the_id_of_the_batch_in_doubt_is_kept_over_a_second_recovery() -> None:
    d = ready()
    record = d.submit()
    d.answers[EndTransaction] = [Fault(FaultKind.DOUBT)]
    d.drive(protocol.step(d.engine, d.clock))
    doubt = d.engine.doubt
    assert doubt is not None
    d.answers[ReadSettled] = [Fault(FaultKind.UNSTABLE)]
    d.turn()
    assert d.engine.doubt is doubt
    d.engine.fenced = True  # the second id is over as well
    d.settle()
    d.turn()
    assert d.history(record) == ["created", "running 1"]
    assert d.engine.doubt is None


def test_a_task_cancelled_while_its_start_is_in_doubt_does_not_start() -> None:
    d = ready()
    record = d.submit()
    real = d.perform

    def perform(ask: object) -> object:
        if isinstance(ask, EndTransaction):
            d.land()
            d.perform = real  # type: ignore[method-assign]
            return Fault(FaultKind.DOUBT)
        return real(ask)  # type: ignore[arg-type]

    d.perform = perform  # type: ignore[method-assign]
    d.drive(protocol.step(d.engine, d.clock))
    d.engine.cancel_read([record.task_id], d.now)
    d.settle()
    d.turn()
    d.settle()
    assert d.history(record) == ["created", "running 1", "cancelled"]
    assert not d.running


def test_after_a_fence_nothing_is_committed_under_the_old_id() -> None:
    d = ready()
    d.submit()
    d.answers[Produce] = [Fault(FaultKind.FENCED)]
    d.turn()
    assert names(d.asked) == ["Produce"]
    d.turn()
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert head.owner == "tasks.workers.0.2"


# --- revoke and loss ------------------------------------------------------------------------------------------------------


def test_a_revoke_ends_first_then_commits_clean_then_sees_it() -> None:
    d = ready()
    done, open_one = d.submit(), d.submit()
    d.turn()
    d.end(done)
    d.when_awaiting = lambda tokens: d.end(open_one, STOPPED)
    d.asked.clear()
    assert d.drive(protocol.revoked(d.engine, (0,), d.clock))
    assert names(d.asked) == ["AwaitEnded", "Produce", "Flush", "SendOffsets", "EndTransaction", "ReadSettled"]
    assert [s.reason for s in d.stops] == [StopReason.REVOKE]
    assert d.history(done)[-1] == "completed"
    assert d.history(open_one)[-1] == "running 1"
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert head.state == "clean"
    assert not d.engine.shards


def test_a_clean_hand_over_charges_nobody_and_the_next_attempt_is_the_next_number() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    d.when_awaiting = lambda tokens: d.end(record, STOPPED)
    d.drive(protocol.revoked(d.engine, (0,), d.clock))
    taken = d.successor()
    taken.feed(record)
    taken.settle()
    assert taken.history(record)[-1] == "running 2"
    assert taken.engine.shards[0].ledgers[1].entries[0].lost == 0


def test_what_ends_in_the_revoke_is_committed_with_it() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    d.when_awaiting = lambda tokens: d.end(record, RETURNED)
    d.drive(protocol.revoked(d.engine, (0,), d.clock))
    assert d.history(record)[-1] == "completed"
    assert d.offsets[1, 0].offset == 1


def test_a_lost_shard_commits_nothing_and_its_late_results_are_dropped() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    before = dict(d.offsets)
    protocol.lost(d.engine, (0,))
    d.take()
    assert [s.reason for s in d.stops] == [StopReason.REVOKE]
    assert d.engine.schedule.free(next(iter(d.running.values())).kind) == 7
    d.end(record)
    assert d.engine.late_results == 1
    assert d.engine.schedule.free(TaskPolicy().kind) == 8
    assert not d.turn()
    assert d.offsets == before


def test_progress_of_a_lost_shard_is_not_written_when_the_shard_comes_back() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    (token,) = d.running
    protocol.lost(d.engine, (0,))
    d.claim()
    d.ready()
    d.engine.progressed(token, 0.5, None, d.now)
    d.settle()
    assert d.history(record) == ["created", "running 1"]
    assert not d.engine.urgent


# --- deaths ---------------------------------------------------------------------------------------------------------------


def test_a_death_is_charged_once_however_often_the_shard_is_claimed() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    third = d.successor().successor()
    assert third.engine.shards[0].ledgers[1].entries[record.offset].lost == 1


def test_a_task_that_waits_for_its_retry_is_not_charged() -> None:
    d = ready(policies={"noop": TaskPolicy(retry=Retry(attempts=3, backoff_ms=60_000))})
    record = d.submit()
    d.turn()
    d.end(record, raised())
    d.settle()
    taken = d.successor()
    assert taken.engine.shards[0].ledgers[1].entries[record.offset].lost == 0


def test_who_kills_its_worker_twice_and_in_all_its_trials_is_quarantined() -> None:
    """Without children. Only the third trial is one that it stands alone, so of those deaths only that one counts."""
    d = ready()
    record = d.submit()
    d.turn()
    for attempt in (2, 3, 4, 5):
        d = d.successor()
        d.feed(record)
        d.settle()
        assert d.history(record)[-1] == f"running {attempt}"
    d = d.successor()
    d.feed(record)
    d.settle()
    assert d.history(record)[-1] == "failed"
    assert d.last(record).error_code == "worker_lost"
    assert [letter.reason for letter in d.dead] == ["worker_lost"]


def test_neighbours_of_a_poison_are_never_quarantined() -> None:
    d = ready()
    innocents = [d.submit() for _ in range(4)]
    poison = d.submit()
    d.settle()
    for _ in range(12):
        if any(start.record is poison for start in d.running.values()):
            d = d.successor()
            d.feed(*innocents, poison)
        d.later(10_001)
        d.settle()
        d.turn()
    assert d.history(poison)[-1] == "failed"
    assert all("failed" not in d.history(one) for one in innocents)
    assert all(d.engine.shards[0].ledgers[1].entries[one.offset].lost <= 2 for one in innocents)
