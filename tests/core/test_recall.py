"""Facts from tasks.status are about records, not about offsets: a topic that was made anew has others at the same ones."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from streamtask.core.ledger import Ledger
from streamtask.core.offset_map import Entry, decode
from streamtask.core.recall import Recall

A, B = "0190a0a0-0000-7000-8000-00000000000a", "0190a0a0-0000-7000-8000-00000000000b"


def test_a_record_where_a_stranger_has_ended_is_new() -> None:
    ledger = Ledger(0)
    ledger.recall(0, A, True, 1)
    ledger.recall(1, A, True, 1)
    ledger.truncate(2)
    assert ledger.receive(0, B)
    assert not ledger.receive(1, A)
    assert not ledger.is_created(0)
    assert not ledger.recalling
    assert ledger.position == 0


def test_a_record_where_a_stranger_was_open_is_new_and_begins_at_attempt_1() -> None:
    ledger = Ledger(0)
    ledger.recall(0, A, False, 3)
    ledger.recall(1, A, False, 3)
    ledger.truncate(2)
    assert ledger.receive(0, B)
    assert ledger.receive(1, A)
    assert [ledger.is_created(offset) for offset in (0, 1)] == [False, True]
    assert ledger.entries == {1: Entry(3)}


def test_a_record_without_a_task_id_has_no_fact_of_its_own() -> None:
    ledger = Ledger(0)
    ledger.recall(0, A, True, 1)
    ledger.truncate(1)
    assert ledger.receive(0, "")


def test_a_strangers_fact_is_waited_for_no_longer_than_its_record() -> None:
    ledger = Ledger(0)
    for offset, ended in ((0, False), (1, True), (1_500, True)):
        ledger.recall(offset, A, ended, 1)
    ledger.truncate(1_501)
    assert ledger.known_end == 1
    assert ledger.receive(0, B)
    assert ledger.known_end == 1  # its own record now
    assert ledger.receive(1, B)
    assert ledger.recalling
    assert ledger.receive(1_500, B)
    assert not ledger.recalling
    draft = ledger.draft()
    for offset in (0, 1, 1_500):
        draft.created(offset)
    position, text = draft.close()
    ledger.settle(draft)
    state, _ = decode(text, position, log_start=0, log_end=1_501)
    assert [state.is_open(offset) for offset in (0, 1, 1_499, 1_500)] == [True, True, False, True]


def test_after_both_the_old_and_the_new_record_wrote_events_the_new_ones_count() -> None:
    """An owner that died while it recovered: it had run some of the new ones already."""
    ledger = Ledger(0)
    for offset in range(4):
        ledger.recall(offset, A, offset % 2 == 0, 5)
    for offset, ended in ((0, True), (1, True), (2, False), (3, False)):
        ledger.recall(offset, B, ended, 1)
    ledger.truncate(5)
    assert [ledger.receive(offset, B) for offset in range(5)] == [False, False, True, True, True]
    assert ledger.entries == {2: Entry(1), 3: Entry(1)}


def test_a_record_is_over_when_a_later_one_with_its_id_has_ended() -> None:
    """tasks.status keeps the newest event of each id: the first of two records has none there. Bug: it ran again."""
    for later in (1, 1_023, 1_024, 1_500, 1 << 20):
        ledger = Ledger(0)
        ledger.recall(later, A, True, 1)
        ledger.truncate(later + 1)
        assert not ledger.receive(0, A)
        assert not ledger.receive(later, A)


def test_a_record_behind_the_end_of_its_id_is_new_and_so_is_one_before_an_open_one() -> None:
    """An open one is no proof by itself: its record may be lost, and another stand there (core/intake.py looks at both)."""
    ledger = Ledger(0)
    ledger.recall(5, A, True, 1)
    ledger.recall(8, B, False, 1)
    ledger.truncate(10)
    assert ledger.receive(6, A)
    assert ledger.receive(7, B)


def test_an_end_whose_place_another_id_has_taken_since_proves_nothing() -> None:
    ledger = Ledger(0)
    ledger.recall(5, A, True, 1)
    ledger.recall(5, B, True, 1)
    ledger.truncate(10)
    assert ledger.receive(0, A)


def test_ends_are_found_by_id_at_eight_bytes_each() -> None:
    recall, ids = Recall(), [str(uuid.UUID(int=n)) for n in range(20_000)]
    for offset, task_id in enumerate(ids):
        recall.add(offset, task_id, True, 1)
        recall.add(offset, task_id, True, 1)
    assert sum(len(ends) * ends.itemsize for ends in recall._ends.values()) == 8 * len(ids)
    assert all(recall.ended_later(offset - 1, task_id) for offset, task_id in enumerate(ids))
    assert not any(recall.ended_later(offset, task_id) for offset, task_id in enumerate(ids))


Facts = st.lists(
    st.tuples(st.integers(0, 2_500), st.sampled_from([A, B]), st.booleans(), st.integers(0, 5)), max_size=40
)


@given(Facts, st.dictionaries(st.integers(0, 2_500), st.sampled_from(["", A, B]), max_size=40))
def test_exactly_the_newest_facts_of_the_same_task_id_count(
    facts: list[tuple[int, str, bool, int]], log: dict[int, str]
) -> None:
    ledger = Ledger(0)
    known: dict[int, tuple[str, bool, int]] = {}
    for offset, task_id, ended, attempt in facts:
        ledger.recall(offset, task_id, ended, attempt)
        before = known.get(offset, ("", False, 0))
        if before[0] != task_id:
            before = (task_id, False, 0)
        known[offset] = (task_id, ended or before[1], max(attempt, before[2]))
    ledger.truncate(2_501)
    for offset, task_id in sorted(log.items()):
        own, ended, attempt = known.get(offset, ("nobody", False, 0))
        mine = own == task_id
        later = not mine and any(at > offset and known[at][:2] == (task_id, True) for at in known)
        assert ledger.receive(offset, task_id) == (not later and not (mine and ended)), offset
        if not later and not (mine and ended):
            assert ledger.is_created(offset) == mine
            assert ledger.entry(offset).attempt == (attempt if mine else 0)
    ledger.receive(2_501, "")
    draft = ledger.draft()
    for offset in ledger.open_offsets():
        if not ledger.is_created(offset):
            draft.created(offset)
    draft.close()
    ledger.settle(draft)
    assert not ledger.recalling, "all of it has been read, and stands in the text"


def test_ids_that_differ_in_one_digit_anywhere_are_told_apart() -> None:
    """UUIDs of version 7 begin alike, those of version 1 end alike, and some people count them up."""
    base = uuid.UUID(A).int
    recall = Recall()
    recall.add(0, A, True, 1)
    for digit in range(32):
        recall.keep_own(0, str(uuid.UUID(int=base ^ 1 << 4 * digit)))
        assert not recall.has_ended(0), digit
        recall.add(0, A, True, 1)


def test_a_page_of_facts_takes_four_bytes_an_offset() -> None:
    recall = Recall()
    for offset in range(0, 1 << 20, 3):
        recall.add(offset, A, True, 1)
    assert sum(keys.itemsize * len(keys) for keys in recall._keys.values()) == 4 << 20
    recall.drop_from(1 << 10)
    assert len(recall._keys) == len(recall._pages) == 1
