"""Ledger rules one by one; any order of everything is test_ledger_machine.py's."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamtask.core.ledger import GAP_ROOM, Ledger, charge
from streamtask.core.offset_map import (
    ATTEMPT_MAX,
    FAILED_MAX,
    LEAD_TEXT_MAX,
    LOST_MAX,
    TEXT_MAX,
    TRIAL_MAX,
    Entry,
    Head,
    Mark,
    decode,
    entry_of,
)
from streamtask.core.suspects import ALONE, ONLY, SINGLE, STAGES, stage_of

HEAD = Head("tasks.workers.0.abc", 1, 2, "open")
FAR = 2**63 - 1
ID = "0190a0a0-0000-7000-8000-000000000001"  # only a recall compares it: test_recall.py
NEW = "0190a0a0-0000-7000-8000-0000000000ff"


def received(*offsets: int, position: int = 0, text_max: int = TEXT_MAX) -> Ledger:
    ledger = Ledger(position, text_max=text_max)
    for offset in offsets:
        assert ledger.receive(offset, ID)
    return ledger


def do(ledger: Ledger, *done: int) -> tuple[int, str]:
    draft = ledger.draft()
    for offset in done:
        draft.done(offset)
    committed = draft.close()
    ledger.settle(draft)
    return committed


def start(ledger: Ledger, offset: int, attempt: int = 1, mark: int = Mark.RUNNING, trial: int = 0) -> None:
    draft = ledger.draft()
    draft.started(offset, attempt, mark, trial)
    draft.close()
    ledger.settle(draft)


def restart(committed: tuple[int, str], log_end: int = FAR) -> Ledger:
    read = decode(committed[1], committed[0], log_start=0, log_end=log_end)
    assert read is not None
    return Ledger.restored(read[0])


def test_the_position_is_the_lowest_open_offset() -> None:
    ledger = received(*range(5))
    assert ledger.position == 0
    do(ledger, 1, 3)
    assert ledger.position == 0
    do(ledger, 0)
    assert ledger.position == 2
    do(ledger, 4, 2)
    assert ledger.position == 5


def test_a_done_offset_above_an_open_one_is_remembered_but_not_passed() -> None:
    ledger = received(*range(4))
    committed = do(ledger, 1, 3)
    again = restart(committed)
    assert [again.receive(offset, ID) for offset in range(5)] == [True, False, True, False, True]
    assert again.position == 0


def test_a_gap_holds_nothing_back() -> None:
    ledger = received(3, 7, 8, position=1)
    assert ledger.position == 3
    do(ledger, 3)
    assert ledger.position == 7
    assert not ledger.is_open(5)


def test_a_repeat_is_refused() -> None:
    ledger = received(0, 5)
    assert not ledger.receive(5, ID)
    assert not ledger.receive(3, ID)
    assert ledger.open_offsets() == [0, 5]


def test_a_draft_that_is_dropped_leaves_no_trace() -> None:
    ledger = received(0, 1, 2)
    before = ledger.text()
    draft = ledger.draft()
    draft.created(0)
    draft.started(0, 1)
    draft.done(1)
    assert draft.changed()
    assert draft.close(HEAD) == (0, "st1|B|A|RB|open|1|2|tasks.workers.0.abc")
    assert ledger.text() == before
    assert ledger.is_open(1)


def test_a_draft_settles_also_on_a_ledger_that_has_moved_on() -> None:
    ledger = received(0, 1, 2)
    draft = ledger.draft()
    draft.created(0)
    draft.created(1)
    draft.started(1, 1)
    draft.done(0)
    draft.close()
    assert ledger.receive(6, ID)
    ledger.settle(draft)
    assert ledger.open_offsets() == [1, 2, 6]
    assert (ledger.position, ledger.created, ledger.entries) == (1, 2, {1: Entry(attempt=1, mark=Mark.RUNNING)})


def test_a_draft_settles_also_when_the_log_start_moved_past_some_of_it() -> None:
    ledger = received(0, 1, 2)
    draft = ledger.draft()
    draft.started(0, 1)
    draft.done(2)
    draft.close()
    assert ledger.skip_to(1) == [0]
    ledger.settle(draft)
    assert ledger.open_offsets() == [1]
    assert ledger.entries == {}


def test_one_draft_may_tell_a_whole_history() -> None:
    ledger = received(0, 1)
    draft = ledger.draft()
    draft.created(0)
    draft.started(0, 1)
    draft.waiting(0, 1)
    draft.done(0)
    draft.created(1)
    assert draft.close() == (1, "st1|B||")
    ledger.settle(draft)
    assert ledger.is_created(1)


def test_a_wait_a_hand_over_and_an_acquittal_clear_what_they_should() -> None:
    ledger = received(0)
    start(ledger, 0, 4, Mark.TRIAL, 2)
    assert ledger.entry(0) == Entry(attempt=4, mark=Mark.TRIAL, trial=2)
    draft = ledger.draft()
    draft.acquitted(0)
    ledger.settle(draft)
    assert ledger.entry(0) == Entry(attempt=4, mark=Mark.RUNNING, trial=STAGES)
    draft = ledger.draft()
    draft.cleared(0)
    ledger.settle(draft)
    assert ledger.entry(0) == Entry(attempt=4, trial=STAGES)
    start(ledger, 0, 5)
    draft = ledger.draft()
    draft.waiting(0, 3)
    ledger.settle(draft)
    assert ledger.entry(0) == Entry(attempt=5, failed=3, trial=STAGES)


def test_what_ends_leaves_no_counters() -> None:
    ledger = received(0, 1)
    start(ledger, 1)
    do(ledger, 1)
    assert ledger.entries == {}


@pytest.mark.parametrize("step", ["done", "cleared", "created"])
@pytest.mark.parametrize("offset", [0, 2, 7])
def test_a_change_of_what_is_not_open_is_a_broken_invariant(step: str, offset: int) -> None:
    ledger = received(0, 1, 5)
    do(ledger, 0)
    with pytest.raises(AssertionError):
        getattr(ledger.draft(), step)(offset)


def test_an_attempt_is_granted_once() -> None:
    ledger = received(0)
    start(ledger, 0, 3)
    for attempt in (1, 3, ATTEMPT_MAX + 1):
        with pytest.raises(AssertionError):
            ledger.draft().started(0, attempt)


def test_created_is_published_once_and_in_order() -> None:
    ledger = received(0, 1, 2)
    draft = ledger.draft()
    draft.created(0)
    with pytest.raises(AssertionError, match="before that of 1"):
        draft.created(2)
    with pytest.raises(AssertionError, match="published before"):
        draft.created(0)


def test_a_start_overtakes_the_created_of_others_and_says_so_itself() -> None:
    ledger = received(*range(5))
    start(ledger, 2)
    assert [ledger.is_created(offset) for offset in range(5)] == [False, False, True, False, False]
    again = restart((0, ledger.text()))
    for offset in range(5):
        assert again.receive(offset, ID)
    assert [again.is_created(offset) for offset in range(5)] == [False, False, True, False, False]
    draft = again.draft()
    for offset in (0, 1, 3):
        draft.created(offset)
    again.settle(draft)
    assert [again.is_created(offset) for offset in range(5)] == [True, True, True, True, False]


# --- Room ---


def test_a_new_cell_has_room_for_320_to_400_requests() -> None:
    assert Ledger(0).room() == Ledger(0).claims_max == 355
    assert Ledger(0, text_max=LEAD_TEXT_MAX).room() == 336


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), st.sampled_from([400, LEAD_TEXT_MAX, TEXT_MAX]), st.booleans())
def test_whatever_is_admitted_within_room_the_text_fits_in_any_order(
    rng: random.Random, text_max: int, greedy: bool
) -> None:
    """Gaps of every size, counters at their largest, ends in any order, admissions again as soon as there is room."""
    ledger = Ledger(rng.choice([0, 10**6]), text_max=text_max)
    offset = ledger.position
    for _ in range(40):
        room = ledger.room()
        budget = offset + GAP_ROOM
        for last in reversed(range(room)):
            offset += rng.choice([0, 1, 17, 513, 16_400])
            if not last and rng.random() < 0.2:
                offset += rng.choice([2**21, 2**40])  # one, anywhere
            elif offset >= budget:
                break
            assert ledger.receive(offset, ID)
            offset += 1
        open_ = ledger.open_offsets()
        draft = ledger.draft()
        for at in open_:
            if ledger.entry(at).attempt < ATTEMPT_MAX:
                draft.started(at, ATTEMPT_MAX, Mark.TRIAL, TRIAL_MAX)
                draft.state.entries[at] = entry_of(ATTEMPT_MAX, FAILED_MAX, LOST_MAX, Mark.TRIAL, TRIAL_MAX)
        if open_:
            ends = open_[1:] if greedy else open_
            for at in rng.sample(ends, rng.randrange(len(ends) + 1)):
                draft.done(at)
        position, text = draft.close()
        assert len(text) <= text_max
        assert decode(text, position, log_start=0, log_end=FAR) is not None
        ledger.settle(draft)


def test_what_the_text_knows_is_let_in_though_the_ledger_is_full() -> None:
    ledger = Ledger(0, text_max=400)
    for offset in range(ledger.room()):
        assert ledger.receive(offset, ID)
    assert ledger.room() == 0
    count = ledger.open_count
    start(ledger, count - 1)
    read = decode(ledger.text(), 0, log_start=0, log_end=FAR)
    assert read is not None
    again = Ledger.restored(read[0], text_max=400)
    for offset in range(count):
        assert again.room() == count - offset
        assert again.receive(offset, ID)
    assert again.room() == 0


def test_a_request_of_many_hours_lies_under_any_number_of_finished_ones() -> None:
    ledger = Ledger(0)
    start_of = [0]
    for offset in range(200_000):
        assert ledger.room() > 100
        assert ledger.receive(offset, ID)
        start_of.append(offset)
        if offset % 250 == 249:
            do(ledger, *[at for at in start_of if at and ledger.is_open(at)])
            start_of = []
    assert ledger.position == 0
    assert len(ledger.text()) < 12


# --- Deaths ---


def of(*entries: Entry) -> Ledger:
    ledger = received(*range(len(entries)))
    ledger.state.entries = {offset: entry for offset, entry in enumerate(entries) if entry != Entry()}
    return ledger


@pytest.mark.parametrize("lost", [0, 1, 2, 3, 31])
@pytest.mark.parametrize("trial", [0, STAGES])
def test_outside_a_trial_a_death_of_the_worker_is_charged_below_two_to_all_that_ran(lost: int, trial: int) -> None:
    ledger = of(Entry(3, 1, lost, Mark.RUNNING, trial), Entry(3, 1, lost, Mark.NONE, trial))
    assert charge([ledger]) == ([(0, 0)] if lost < 2 else [])
    assert ledger.entries == {
        0: Entry(3, 1, lost + (lost < 2), Mark.NONE, trial),
        1: Entry(3, 1, lost, Mark.NONE, trial),
    }


def three_cells(trial: int) -> list[Ledger]:
    """One on trial, beside one that has never died, one that was acquitted and runs on, and one that waits."""
    return [
        of(Entry(1, mark=Mark.RUNNING), Entry(4, mark=Mark.RUNNING, trial=STAGES)),
        of(Entry(2, lost=2, trial=3)),
        of(Entry(), Entry(3, lost=2, mark=Mark.TRIAL, trial=trial)),
    ]


def test_a_death_of_the_worker_in_a_trial_charges_those_beside_it_and_that_one_stands_a_narrower_one() -> None:
    ledgers = three_cells(trial=2)
    assert charge(ledgers) == [(0, 0), (0, 1)]
    assert ledgers[0].entries == {0: Entry(1, lost=1), 1: Entry(4, lost=1, trial=STAGES)}, "acquitted: its first death"
    assert ledgers[1].entries == {0: Entry(2, lost=2, trial=3)}
    assert ledgers[2].entries == {1: Entry(3, lost=2, trial=ONLY)}


def test_a_death_in_a_trial_stood_alone_charges_that_one_over_the_whole_shard() -> None:
    ledgers = three_cells(trial=ALONE)
    assert charge(ledgers) == [(2, 1)]
    assert ledgers[0].entries == {0: Entry(1), 1: Entry(4, trial=STAGES)}, "it is not charged"
    assert ledgers[1].entries == {0: Entry(2, lost=2, trial=3)}
    assert ledgers[2].entries == {1: Entry(3, lost=3, trial=ALONE)}


def test_many_that_met_the_death_of_their_worker_on_trial_are_narrowed_down_to_one_that_stands_it_alone() -> None:
    """A poison that kills its worker from inside its child, among 355 suspects: found after five more deaths."""
    ledger = of(*[Entry(3, lost=2, mark=Mark.TRIAL)] * 355)
    stages = []
    for tried in (355, 32, 4, 1, 1):
        for offset, entry in ledger.entries.items():
            mark = Mark.TRIAL if offset < tried else Mark.NONE
            ledger.state.entries[offset] = Entry(entry.attempt, 0, entry.lost, mark, entry.trial)
        charge([ledger])
        stages.append(ledger.entry(0).trial)
    assert stages == [4, SINGLE, ONLY, ALONE, ALONE]
    assert [entry.lost for entry in ledger.entries.values()] == [3] + [2] * 354
    assert ledger.entry(100).trial == 4, "those that were not on trial are as they were"


def test_no_death_of_a_worker_but_in_a_trial_stood_alone_takes_anyone_from_two_to_three() -> None:
    marks = [Mark.NONE, Mark.RUNNING, Mark.TRIAL]
    for lost, first, second, trial in itertools.product(range(5), marks, marks, range(TRIAL_MAX + 1)):
        ledger = of(Entry(1, lost=lost, mark=first, trial=1), Entry(1, lost=2, mark=second, trial=trial))
        charge([ledger])
        assert ledger.entry(1).lost == (3 if second == Mark.TRIAL and stage_of(trial) == ALONE else 2)
        assert all(entry.mark == Mark.NONE for entry in ledger.entries.values())


def test_a_death_is_charged_once_however_often_the_shard_is_claimed() -> None:
    ledger = of(Entry(1, mark=Mark.RUNNING))
    assert charge([ledger]) == [(0, 0)]
    again = restart((ledger.position, ledger.text()))
    assert charge([again]) == []
    assert again.entry(0) == Entry(1, lost=1)


def test_counters_stay_at_their_bounds() -> None:
    ledger = of(Entry(1, lost=LOST_MAX, mark=Mark.TRIAL, trial=ALONE))
    charge([ledger])
    assert ledger.entry(0) == Entry(1, lost=LOST_MAX, trial=ALONE)
    ledger = of(Entry(1, lost=2, mark=Mark.TRIAL, trial=TRIAL_MAX))
    charge([ledger])
    assert ledger.entry(0).trial <= TRIAL_MAX


# --- The log is not as it was ---


def test_what_lies_below_the_log_start_is_dropped_and_told() -> None:
    committed = do(received(*range(10)), 1, 2, 6)
    ledger = restart(committed)
    assert ledger.skip_to(5) == [0, 3, 4]
    assert (ledger.position, ledger.received) == (5, 5)
    assert [ledger.receive(offset, ID) for offset in range(5, 9)] == [True, False, True, True]
    assert ledger.skip_to(20) == [5, 7, 8]
    assert ledger.position == 20
    assert ledger.receive(20, ID)


def test_records_that_do_not_come_back_are_told() -> None:
    ledger = received(*range(6))
    start(ledger, 1)
    start(ledger, 4)
    again = restart(do(ledger, 2))
    assert again.receive(0, ID)
    assert again.receive(5, ID)
    assert again.vanished == [1, 3, 4]
    assert again.entries == {}
    assert again.room() == 353
    again = restart((0, ledger.text()))
    assert again.receive(9, ID)
    assert again.vanished == [0, 1, 3, 4]
    assert again.position == 9


def test_a_log_that_was_cut_takes_what_was_known_beyond_with_it() -> None:
    ledger = received(*range(10))
    do(ledger, 2, 7, 8)
    start(ledger, 9)
    assert ledger.truncate(6) == [6, 9]
    assert (ledger.position, ledger.received, ledger.entries) == (0, 6, {})
    assert [ledger.receive(offset, ID) for offset in range(6, 10)] == [True] * 4
    assert ledger.truncate(0) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert ledger.position == 0
    assert ledger.receive(0, ID)


# --- Recovery from tasks.status ---


def test_what_status_knows_as_ended_is_not_worked_on_again() -> None:
    ledger = Ledger(10)
    for offset in (12, 10, 5_000):
        ledger.recall(offset, ID, False, 1)
        ledger.recall(offset, ID, True, 1)
    ledger.recall(11, ID, False, 3)
    ledger.recall(13, ID, False, 0)
    ledger.truncate(6_000)
    assert [ledger.receive(offset, ID) for offset in range(10, 14)] == [False, True, False, True]
    assert ledger.receive(14, NEW)
    assert ledger.position == 11
    assert ledger.entry(11) == Entry(attempt=3)
    assert [ledger.is_created(offset) for offset in (11, 13, 14)] == [True, True, False]
    assert ledger.recalling
    assert not ledger.receive(5_000, ID)
    assert not ledger.recalling
    again = restart((ledger.position, ledger.text()))
    assert [again.receive(offset, ID) for offset in (11, 12, 13)] == [True, False, True]
    assert [again.receive(14, NEW), again.receive(5_000, ID)] == [True, False]
    assert [again.is_created(offset) for offset in (11, 13, 14)] == [True, True, False]


def test_a_late_event_of_a_task_that_has_ended_does_not_open_it_again() -> None:
    ledger = Ledger(0)
    ledger.recall(0, ID, True, 2)
    ledger.recall(0, ID, False, 1)
    assert not ledger.receive(0, ID)


def test_facts_last_until_created_has_passed_them() -> None:
    ledger = Ledger(0)
    ledger.recall(1, ID, False, 0)
    ledger.truncate(10)
    assert ledger.receive(0, ID)
    assert ledger.receive(1, ID)
    assert ledger.recalling, "the text cannot say that 1 is created and 0 is not"
    draft = ledger.draft()
    draft.created(0)
    assert draft.state.created == 2
    ledger.settle(draft)
    assert not ledger.recalling
    assert ledger.is_created(1)


def test_facts_beyond_the_log_or_below_the_position_are_not_waited_for() -> None:
    ledger = Ledger(5)
    for offset in (3, 4):
        ledger.recall(offset, ID, True, 1)
    assert not ledger.recalling
    for offset in (8, 9, 3_000):
        ledger.recall(offset, ID, offset != 9, 1)
    assert ledger.recalling
    ledger.truncate(9)
    assert ledger.recalling
    ledger.truncate(8)
    assert not ledger.recalling


def test_facts_join_what_the_text_says() -> None:
    ledger = received(*range(5))
    start(ledger, 1, 4)
    again = restart(do(ledger, 3))
    again.recall(0, ID, True, 1)
    again.recall(1, ID, False, 2)
    again.recall(2, ID, False, 6)
    assert [again.receive(offset, ID) for offset in range(5)] == [False, True, True, False, True]
    assert again.entries == {1: Entry(4, mark=Mark.RUNNING), 2: Entry(6)}
    assert again.position == 1


def id_of(offset: int) -> str:
    """The task_id of the record there: each has its own (test_recall.py: what if not)."""
    return f"0190a0a0-0000-7000-8000-{offset:012d}"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_after_a_recovery_exactly_what_had_not_ended_is_worked_on(data: st.DataObject) -> None:
    start_at = data.draw(st.sampled_from([0, 1_000]))
    facts = data.draw(st.dictionaries(st.integers(0, 3_000), st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
    records = sorted(
        {offset for offset in facts if data.draw(st.booleans())}
        | data.draw(st.sets(st.integers(0, 3_100), max_size=40))
    )
    log_end = data.draw(st.integers(2_000, 3_200))
    ledger = Ledger(start_at)
    for offset in data.draw(st.permutations(sorted(facts))):
        ledger.recall(offset, id_of(offset), False, min(1, facts[offset][1]))
        ledger.recall(offset, id_of(offset), *facts[offset])
    ledger.truncate(log_end)
    for offset in (offset for offset in records if start_at <= offset < log_end):
        ended, attempt = facts.get(offset, (False, 0))
        assert ledger.receive(offset, id_of(offset)) == (not ended)
        if not ended:
            assert ledger.is_created(offset) == (offset in facts)
            assert ledger.entry(offset).attempt == attempt
            if data.draw(st.booleans()) and not ledger.is_created(offset):
                draft = ledger.draft()
                for low in ledger.open_offsets():
                    if not ledger.is_created(low) and low <= offset:
                        draft.created(low)
                draft.close()
                ledger.settle(draft)
    draft = ledger.draft()
    for offset in ledger.open_offsets():
        if not ledger.is_created(offset):
            draft.created(offset)
    committed = draft.close()
    ledger.settle(draft)
    assert ledger.recalling == any(offset >= ledger.received for offset in facts if start_at <= offset < log_end)
    if not ledger.recalling:
        again = restart(committed)
        for offset in (offset for offset in records if again.position <= offset < log_end):
            assert again.receive(offset, id_of(offset)) == ledger.is_open(offset)
            assert not ledger.is_open(offset) or again.is_created(offset)


def test_a_million_ended_ones_are_recalled_in_little_memory() -> None:
    ledger = Ledger(0)
    for offset in range(0, 1_000_000, 5):
        ledger.recall(offset, ID, True, 1)
    recall = ledger._recall
    assert recall is not None
    assert len(recall._pages) <= 1_000
    for offset in range(0, 1_000_000, 5):
        assert not ledger.receive(offset, ID)
    assert not ledger.recalling
    assert ledger.position == 999_996
