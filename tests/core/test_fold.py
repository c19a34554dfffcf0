"""Folding: any order of arrival, any repeats, any part of the facts: the same row."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.core.fold import fold, stands
from streamtask.domain.identity import Origin


@dataclass(frozen=True)
class Row:
    status: str
    version: int = 0
    origin: str = "high-3@5"
    updated_ms: int = 0


def folded(facts: list[Row]) -> Row | None:
    latest: Row | None = None
    for fact in facts:
        latest = fold(latest, fact) or latest
    return latest


def test_the_first_fact_stands_and_the_same_one_again_changes_nothing() -> None:
    row = Row("created")
    assert fold(None, row) is row
    assert fold(row, row) is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_history_folds_to_its_end_in_any_order(order: tuple[int, ...]) -> None:
    facts = [Row("created"), Row("created", 7), Row("running", 8), Row("completed", 12)]
    assert folded([facts[at] for at in order]) == facts[3]


def test_a_status_event_stands_before_any_request() -> None:
    request, event = Row("created", origin="low-3@1", updated_ms=-5), Row("created", 9, "high-3@5")
    assert stands(request, event)
    assert not stands(event, request)


def test_the_newest_progress_stands() -> None:
    assert folded([Row("running", 4), Row("running", 9), Row("running", 6)]) == Row("running", 9)


def test_a_terminal_status_is_never_left() -> None:
    for status in ("completed", "failed", "cancelled"):
        for later in ("created", "running", "completed", "failed", "cancelled"):
            assert folded([Row(status, 4), Row(later, 9)]) == Row(status, 4)
            assert folded([Row(later, 9), Row(status, 4)]) == Row(status, 4)


def test_running_does_not_go_back_to_created() -> None:
    assert folded([Row("running", 4), Row("created", 9)]) == Row("running", 4)


def test_the_first_history_of_a_task_id_stands() -> None:
    first = [Row("created", 1, "low-3@9"), Row("running", 2, "low-3@9"), Row("failed", 3, "low-3@9")]
    second = [Row("created", 6, "high-3@1"), Row("running", 7, "high-3@1"), Row("completed", 8, "high-3@1")]
    assert folded(first + second) == first[2]
    assert folded(second + first) == first[2]
    assert folded(second) == second[2]


def test_of_two_requests_the_one_created_first_stands() -> None:
    early, late = Row("created", origin="low-3@9", updated_ms=5), Row("created", origin="high-3@1", updated_ms=6)
    assert folded([early, late]) == folded([late, early]) == early


def test_an_origin_that_cannot_be_read_stands_behind_one_that_can() -> None:
    known, unknown = Row("running", 9), Row("completed", 2, "")
    assert folded([known, unknown]) == folded([unknown, known]) == known
    assert folded([Row("running", 1, ""), Row("completed", 2, "")]) == unknown


@st.composite
def facts_of_a_task(draw: st.DrawFn) -> list[Row]:
    """Request records in several bands and partitions; in each partition the histories lie one behind the other."""
    version = dict.fromkeys(range(3), 0)
    facts = []
    for offset in range(draw(st.integers(1, 5))):
        partition = draw(st.integers(0, 2))
        origin = str(Origin(draw(st.sampled_from(["high", "low"])), partition, offset))
        created_ms = draw(st.integers(0, 3))
        facts.append(Row("created", 0, origin, created_ms))
        statuses = [
            "created",
            *["running"] * draw(st.integers(0, 3)),
            *draw(st.sampled_from([[], ["completed"], ["cancelled"]])),
        ]
        for at, status in enumerate(statuses[: draw(st.integers(0, 6))]):
            version[partition] += draw(st.integers(1, 3))
            facts.append(Row(status, version[partition], origin, created_ms + at))
    return facts


@settings(max_examples=400)
@given(facts_of_a_task(), st.data())
def test_any_order_with_any_repeats_folds_to_the_same(facts: list[Row], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(facts), min_size=1, unique=True))  # compaction took the others
    shuffled = data.draw(st.permutations(kept + data.draw(st.lists(st.sampled_from(kept), max_size=5))))
    assert folded(shuffled) == folded(kept)


@given(facts_of_a_task())
def test_facts_are_totally_ordered(facts: list[Row]) -> None:
    for one, other in itertools.combinations(dict.fromkeys(facts), 2):
        assert stands(one, other) != stands(other, one), (one, other)
    for one, two, three in itertools.permutations(dict.fromkeys(facts), 3):
        if stands(one, two) and stands(two, three):
            assert stands(one, three), (one, two, three)
