"""A child process dies under a task and its worker lives: a death of that task alone, charged once."""

from __future__ import annotations

import pytest

from streamtask.core import protocol
from streamtask.core.ledger import ALONE
from streamtask.core.offsetmap import LOST_MAX, Entry, Mark
from streamtask.core.retry import Again, after_death
from streamtask.model import Ending, HandlerKind, Outcome, RequestRecord, Retry, TaskPolicy
from streamtask.ports import EndTransaction, Fault, FaultKind, StopReason
from tests.core.desk import RETURNED, Desk, raised

LOST = Outcome(Ending.LOST, code="worker_lost", error="killed by SIGSEGV")
SOON = Retry(backoff_ms=5_000)


def ready(*, children: int = 0, **policy: object) -> Desk:
    slots = {HandlerKind.ASYNC: 8, HandlerKind.THREAD: 2, HandlerKind.PROCESS: children}
    d = Desk({"noop": TaskPolicy(**{"retry": SOON, **policy})}, slots=slots)  # type: ignore[arg-type]
    d.ready()
    return d


def entry(d: Desk, offset: int = 0) -> Entry:
    return d.engine.shards[0].ledgers[1].entry(offset)


def again(d: Desk) -> None:
    """The wait is over: its next attempt starts."""
    d.later(60_001)
    d.settle()


def test_a_death_of_its_process_is_charged_and_the_task_runs_again() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    d.end(record, LOST)
    d.turn()
    assert entry(d) == Entry(1, lost=1, mark=Mark.NONE), "charged and cleared in the transaction of its event"
    assert d.history(record) == ["created", "running 1", "running 1"]
    assert "SIGSEGV" in (d.last(record).message or "")
    again(d)
    assert entry(d) == Entry(2, lost=1, mark=Mark.RUNNING)
    d.end(record, RETURNED)
    d.settle()
    assert d.history(record)[-2:] == ["running 2", "completed"]
    assert d.dead == []


def test_three_deaths_of_its_process_are_quarantine_though_no_retry_is_allowed() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    for attempt in (1, 2, 3):
        assert d.history(record)[-1] == f"running {attempt}"
        d.end(record, LOST)
        d.settle()
        again(d)
    assert d.history(record)[-1] == "failed"
    last = d.last(record)
    assert (last.error_code, last.attempt) == ("worker_lost", 3)
    assert "SIGSEGV" in (last.error or "")
    assert [letter.reason for letter in d.dead] == ["worker_lost"]


def test_a_death_is_no_failure_and_a_failure_is_no_death() -> None:
    d = ready(retry=Retry(attempts=2, backoff_ms=5_000))
    record = d.submit()
    d.turn()
    d.end(record, LOST)
    d.settle()
    again(d)
    d.end(record, raised())
    d.turn()
    assert (entry(d).failed, entry(d).lost) == (1, 1)
    again(d)
    d.end(record, LOST)
    d.turn()
    assert (entry(d).failed, entry(d).lost) == (1, 2)
    again(d)
    d.end(record, raised())
    d.settle()
    assert (d.last(record).error_code, d.last(record).attempt) == ("handler_error", 4)


def test_neighbours_of_a_dead_child_are_charged_nothing() -> None:
    d = ready()
    poison, neighbour = d.submit(), d.submit()
    d.turn()
    d.end(poison, LOST)
    d.settle()
    assert entry(d, 1) == Entry(1, mark=Mark.RUNNING)
    d.end(neighbour)
    d.settle()
    assert d.history(neighbour)[-1] == "completed"


def test_a_worker_that_dies_before_the_death_was_committed_has_it_charged_once() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    d.end(record, LOST)
    taken = d.successor()
    assert entry(taken) == Entry(1, lost=1)
    assert entry(taken.successor()) == Entry(1, lost=1)


def test_a_worker_that_dies_after_the_death_was_committed_has_it_charged_once() -> None:
    d = ready(retry=Retry(backoff_ms=60_000))
    record = d.submit()
    d.turn()
    d.end(record, LOST)
    d.settle()
    assert entry(d.successor()) == Entry(1, lost=1)


@pytest.mark.parametrize("landed", [True, False])
def test_a_death_whose_commit_is_in_doubt_is_charged_once(landed: bool) -> None:
    d = ready()
    record = d.submit()
    d.turn()
    d.end(record, LOST)
    d.answers[EndTransaction] = [Fault(FaultKind.DOUBT)]
    if landed:
        perform = d.perform
        d.perform = lambda ask: (perform(ask), d.land())[0] if type(ask).__name__ == "SendOffsets" else perform(ask)  # type: ignore[method-assign]
        d.turn()
        d.perform = perform  # type: ignore[method-assign]
    else:
        d.turn()
    d.settle()
    d.ready()
    d.settle()
    again(d)
    assert entry(d) == Entry(2, lost=1, mark=Mark.RUNNING)


def test_a_task_that_died_twice_is_a_suspect_and_starts_on_trial() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    for _ in range(2):
        d.end(record, LOST)
        d.settle()
        again(d)
    assert entry(d) == Entry(3, lost=2, mark=Mark.TRIAL, trial=1)
    d.end(record)
    d.settle()
    assert d.history(record)[-1] == "completed"


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [(StopReason.CANCEL, "cancelled", "cancelled"), (StopReason.TIMEOUT, "failed", "timeout")],
)
def test_who_was_told_to_stop_and_died_of_it_is_no_death(reason: StopReason, status: str, code: str) -> None:
    d = ready(timeout_ms=1_000)
    record = d.submit()
    d.turn()
    if reason is StopReason.CANCEL:
        d.engine.cancel_read([record.task_id], d.now)
    else:
        d.later(1_000)
        d.turn()
    assert [stop.reason for stop in d.stops] == [reason] or d.turn() is not None
    d.end(record, LOST)
    d.settle()
    assert (d.last(record).status.value, d.last(record).error_code) == (status, code)


def test_a_death_during_a_revoke_is_given_up_like_the_others() -> None:
    d = ready()
    record = d.submit()
    d.turn()
    d.when_awaiting = lambda tokens: d.end(record, LOST)
    assert d.drive(protocol.revoked(d.engine, (0,), d.clock))
    assert entry(d.successor()).lost == 0


def test_a_type_that_is_never_quarantined_waits_longer_after_each_death() -> None:
    d = ready(lost_max=0)
    record = d.submit()
    d.turn()
    for _ in range(40):
        d.end(record, LOST)
        d.settle()
        again(d)
    assert entry(d) == Entry(41, lost=LOST_MAX, mark=Mark.RUNNING)
    policy = Retry(attempts=1, backoff_ms=1_000, backoff_max_ms=60_000)
    assert [after_death(policy, lost, 0.999_999) for lost in (1, 2, 3, 9)] == [
        Again(w) for w in (1_000, 2_000, 4_000, 60_000)
    ]


@pytest.mark.parametrize("lost_max", [3, 0])
def test_who_died_twice_runs_isolated_whatever_its_kind_and_whoever_died(lost_max: int) -> None:
    d = ready(lost_max=lost_max)
    record = d.submit()
    d.turn()
    isolated = []
    for by_worker in (True, False):
        isolated.append(next(iter(d.running.values())).isolated)
        if by_worker:
            d = d.successor()
            d.feed(record)
        else:
            d.end(record, LOST)
        d.settle()
        again(d)
    isolated.append(next(iter(d.running.values())).isolated)
    assert isolated == [False, False, True]


def died_twice(d: Desk, count: int) -> tuple[Desk, list[RequestRecord]]:
    """So many tasks under which two workers have died; the third one has started what it could."""
    records = [d.submit() for _ in range(count)]
    d.settle()
    for _ in range(2):
        d = d.successor()
        d.feed(*records)
        d.settle()
    return d, records


def test_the_isolated_run_side_by_side_in_the_slots_of_children_and_none_is_on_trial() -> None:
    d, records = died_twice(ready(children=3), 5)
    assert sorted(start.isolated for start in d.running.values()) == [True, True], "one of three is kept for high"
    assert {entry(d, record.offset).mark for record in records} == {Mark.RUNNING, Mark.NONE}
    innocent = d.submit()
    d.settle()
    assert d.history(innocent)[-1] == "running 1", "the slots of its own kind are free"
    for _ in range(5):
        for start in list(d.running.values()):
            d.end(start.record)
        d.settle()
    assert {d.history(record)[-1] for record in records} == {"completed"}


def test_where_a_worker_dies_with_isolated_ones_they_run_next_on_trial_one_at_a_time() -> None:
    d, records = died_twice(ready(children=3), 2)
    assert len(d.running) == 2
    d = d.successor()
    assert [entry(d, record.offset).lost for record in records] == [2, 2], "no death of anybody's own"
    d.feed(*records)
    d.settle()
    (start,) = d.running.values()
    assert (start.isolated, entry(d, start.record.offset).mark) == (True, Mark.TRIAL)


def died_on_trial(children: int, count: int = 2) -> tuple[Desk, RequestRecord, list[RequestRecord]]:
    """A worker has died while one of so many stood trial, beside one that nobody suspected: (the next one, it, others)."""
    d, records = died_twice(ready(children=children), count)
    if children:
        d = d.successor()
        d.feed(*records)
    unsuspected = d.submit()
    d.settle()
    (tried,) = (start.record for start in d.running.values() if start.record is not unsuspected)
    assert entry(d, tried.offset) == Entry(entry(d, tried.offset).attempt, lost=2, mark=Mark.TRIAL, trial=1)
    assert len(d.running) == 2
    return d.successor(), tried, [record for record in (*records, unsuspected) if record is not tried]


@pytest.mark.parametrize("children", [3, 0])
def test_a_death_in_a_trial_beside_others_is_nobodys_and_that_one_stands_the_next_one_alone(children: int) -> None:
    d, tried, others = died_on_trial(children)
    assert [entry(d, record.offset).lost for record in (tried, *others)] == [2, 2, 0]
    new = d.record(band=0)
    d.feed(new, *sorted([*others, tried], key=lambda record: record.offset))
    d.settle()
    (start,) = d.running.values()
    assert start.record is tried, "first, whatever its priority, and nothing beside it"
    assert entry(d, tried.offset).mark == Mark.TRIAL
    d = d.successor()
    assert [entry(d, record.offset).lost for record in (tried, *others)] == [3, 2, 0], "now it is its own"
    d.feed(new, *sorted([*others, tried], key=lambda record: record.offset))
    d.settle()
    for _ in range(3):
        for start in list(d.running.values()):
            d.end(start.record)
        d.settle()
    assert [d.history(record)[-1] for record in (tried, new, *others)] == ["failed"] + ["completed"] * 3


def test_a_ledger_that_says_alone_and_not_how_long_is_taken_for_a_first_trial() -> None:
    d, tried, others = died_on_trial(3)
    ledger = d.engine.shards[0].ledgers[1]
    ledger.state.entries[tried.offset] = Entry(4, lost=2, trial=ALONE)
    d.feed(*sorted([*others, tried], key=lambda record: record.offset))
    d.settle()
    assert [start.record for start in d.running.values()] == [tried]
    d.later(d.engine.config.trial_ms)
    d.settle()
    assert entry(d, tried.offset) == Entry(5, lost=2, mark=Mark.RUNNING, trial=ALONE)
    assert len(d.running) > 1


@pytest.mark.parametrize("survives", [True, False])
def test_others_start_when_a_trial_that_is_stood_alone_is_over(survives: bool) -> None:
    d, tried, others = died_on_trial(3)
    d.feed(*sorted([*others, tried], key=lambda record: record.offset))
    d.settle()
    assert [start.record for start in d.running.values()] == [tried]
    unsuspected = others[-1]
    assert d.history(unsuspected)[-1] == "running 1", "of the worker that has died"
    if survives:
        d.later(d.engine.config.trial_ms * 2 - 1)
        d.settle()
        assert len(d.running) == 1, "its second trial is twice as long"
        d.later(1)
    else:
        d.end(tried)
    d.settle()
    assert d.history(unsuspected)[-1] == "running 2"


def test_an_isolated_one_whose_child_dies_is_charged_and_the_others_run_on() -> None:
    d, records = died_twice(ready(children=3), 2)
    d.end(records[0], LOST)
    d.settle()
    assert d.last(records[0]).error_code == "worker_lost"
    d.end(records[1])
    d.settle()
    assert d.history(records[1])[-1] == "completed"
