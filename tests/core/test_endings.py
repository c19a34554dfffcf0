"""A child process dies under a task and its worker lives: a death of that task alone, charged once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from streamtask.core import protocol
from streamtask.core.offset_map import LOST_MAX, Entry, Mark
from streamtask.core.retry import Again, after_death
from streamtask.core.suspects import ALONE, ONLY, SINGLE, STAGES
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, Retry, TaskPolicy
from streamtask.domain.ports import Ask, EndTransaction, Fault, FaultKind, SendOffsets, StopReason
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

        def perform_and_land(ask: Any) -> Any:
            answer = perform(ask)
            if type(ask) is SendOffsets:
                d.land()
            return answer

        d.perform = perform_and_land  # type: ignore[method-assign]  # on this desk alone
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
    assert entry(d) == Entry(3, lost=2, mark=Mark.TRIAL)
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
    assert entry(d) == Entry(41, lost=LOST_MAX, mark=Mark.TRIAL)
    policy = Retry(attempts=1, backoff_ms=1_000, backoff_max_ms=60_000)
    assert [after_death(policy, lost, 0.999_999) for lost in (1, 2, 3, 9)] == [
        Again(w) for w in (1_000, 2_000, 4_000, 60_000)
    ]


@pytest.mark.parametrize("lost_max", [3, 0])
def test_who_died_twice_runs_in_quarantine_whatever_its_kind_and_whoever_died(lost_max: int) -> None:
    d = ready(children=2, lost_max=lost_max)
    record = d.submit()
    d.turn()
    groups = []
    for by_worker in (True, False):
        groups.append(next(iter(d.running.values())).group)
        if by_worker:
            d = d.successor()
            d.feed(record)
        else:
            d.end(record, LOST)
        d.settle()
        again(d)
    groups.append(next(iter(d.running.values())).group)
    assert groups[:2] == [0, 0]
    assert groups[2] > 0


def died_twice(d: Desk, count: int) -> tuple[Desk, list[RequestRecord]]:
    """So many tasks under which two workers have died; the third one has started what it could."""
    records = [d.submit() for _ in range(count)]
    d.settle()
    for _ in range(2):
        d = d.successor()
        d.feed(*records)
        d.settle()
    return d, records


def begin(d: Desk) -> None:
    """All that was handed over begins."""
    for token in d.running:
        d.engine.begun(token, d.now)


def test_suspects_run_in_one_group_on_trial_beside_the_others() -> None:
    d, records = died_twice(ready(children=3), 4)
    assert len({start.group for start in d.running.values()}) == 1
    assert len(d.running) == 4
    assert {entry(d, record.offset) for record in records} == {Entry(3, lost=2, mark=Mark.TRIAL)}
    innocent = d.submit()
    d.settle()
    assert d.history(innocent)[-1] == "running 1", "half of the slots are free"
    for start in list(d.running.values()):
        d.end(start.record)
    d.settle()
    assert {d.history(record)[-1] for record in records} == {"completed"}


def test_a_trial_counts_from_where_the_child_begins_and_who_outlives_it_is_acquitted() -> None:
    d, (record,) = died_twice(ready(children=3), 1)
    d.later(d.engine.config.trial_ms)
    d.settle()
    assert entry(d).mark == Mark.TRIAL, "its child has not begun"
    begin(d)
    d.later(d.engine.config.trial_ms - 1)
    d.settle()
    assert entry(d).mark == Mark.TRIAL
    d.later(1)
    d.settle()
    assert entry(d) == Entry(3, lost=0, mark=Mark.RUNNING, trial=STAGES)
    d = d.successor()
    assert entry(d) == Entry(3, lost=1, trial=STAGES), "that is its first death now"
    d.feed(record)
    d.settle()
    assert [start.group for start in d.running.values()] == [0]


def test_where_the_child_of_several_dies_nobody_is_charged_and_their_groups_are_half_as_large() -> None:
    d, records = died_twice(ready(children=3), 4)
    begin(d)
    deaths = d.engine.deaths
    for record in records:
        d.end(record, replace(LOST, beside=3))
    d.settle()
    assert {entry(d, record.offset) for record in records} == {Entry(4, lost=2, mark=Mark.TRIAL, trial=SINGLE - 1)}
    assert sorted(Counter(start.group for start in d.running.values()).values()) == [2, 2]
    assert "as did that of 3 others" in (d.events[-1].message or "") or d.history(records[0])[-2:] == [
        "running 3",
        "running 4",
    ]
    assert d.engine.deaths == deaths
    for record in records[:2]:
        d.end(record, replace(LOST, beside=1))
    d.settle()
    assert [entry(d, record.offset).trial for record in records] == [SINGLE] * 2 + [SINGLE - 1] * 2
    assert len({start.group for start in d.running.values()}) == 3, "those two are alone"


def test_a_death_alone_in_quarantine_is_the_third_one_also_of_one_that_was_acquitted() -> None:
    d, records = died_twice(ready(children=3), 2)
    d.end(records[0], LOST)
    d.settle()
    assert d.last(records[0]).error_code == "worker_lost"
    begin(d)
    d.later(d.engine.config.trial_ms)
    d.settle()
    assert entry(d, records[1].offset).lost == 0
    d.end(records[1], LOST)
    d.settle()
    assert d.last(records[1]).error_code == "worker_lost"


def test_an_acquitted_one_whose_child_dies_with_others_in_it_is_a_suspect_again() -> None:
    d, records = died_twice(ready(children=3), 2)
    begin(d)
    d.later(d.engine.config.trial_ms)
    d.settle()
    for record in records:
        d.end(record, replace(LOST, beside=1))
    d.settle()
    assert {entry(d, one.offset) for one in records} == {Entry(4, lost=2, mark=Mark.TRIAL, trial=STAGES + SINGLE)}


def test_a_child_that_dies_while_the_acquittal_is_being_committed_makes_a_suspect_again() -> None:
    d, records = died_twice(ready(children=3), 2)
    begin(d)
    d.later(d.engine.config.trial_ms)
    perform, told = d.perform, list[Ask]()

    def perform_and_die(ask: Any) -> Any:
        if type(ask) is EndTransaction and not told:
            told.append(ask)
            for record in records:
                d.end(record, replace(LOST, beside=1))
        return perform(ask)

    d.perform = perform_and_die  # type: ignore[method-assign]
    d.settle()
    assert told
    assert {entry(d, one.offset) for one in records} == {Entry(4, lost=2, mark=Mark.TRIAL, trial=SINGLE)}


def died_on_trial(children: int) -> tuple[Desk, RequestRecord, list[RequestRecord]]:
    """Two workers have died while a suspect stood trial in them, beside one that nobody suspected: (the next one, both)."""
    d, (tried,) = died_twice(ready(children=children), 1)
    for trial in (ONLY, ALONE):
        d = d.successor()
        assert entry(d, tried.offset).trial == trial
        d.feed(tried)
        if trial == ONLY:
            d.settle()
    return d, tried, [d.submit()]


@pytest.mark.parametrize("children", [3, 0])
def test_a_worker_that_dies_in_a_trial_charges_nobody_a_third_death_unless_it_was_stood_alone(children: int) -> None:
    d, tried, others = died_on_trial(children)
    assert entry(d, tried.offset).lost == 2
    d.settle()
    (start,) = d.running.values()
    assert start.record is tried, "first, and nothing beside it"
    assert entry(d, tried.offset) == Entry(5, lost=2, mark=Mark.TRIAL, trial=ALONE)
    d = d.successor()
    assert entry(d, tried.offset).lost == 3, "now it is its own"
    d.feed(tried, *others)
    d.settle()
    assert d.last(tried).error_code == "worker_lost"
    assert d.history(others[0])[-1] == "running 1"


@pytest.mark.parametrize("survives", [True, False])
def test_others_start_when_a_trial_that_is_stood_alone_is_over(survives: bool) -> None:
    d, tried, others = died_on_trial(3)
    d.settle()
    assert [start.record for start in d.running.values()] == [tried]
    if survives:
        begin(d)
        d.later(d.engine.config.trial_ms)
    else:
        d.end(tried)
    d.settle()
    assert d.history(others[0])[-1] == "running 1"


def test_a_type_that_is_never_quarantined_never_stands_trial_alone() -> None:
    d, (tried,) = died_twice(ready(children=3, lost_max=0), 1)
    for _ in range(4):
        d = d.successor()
        d.feed(tried)
        d.settle()
    assert entry(d, tried.offset).trial == SINGLE
    assert entry(d, tried.offset).lost == 2
