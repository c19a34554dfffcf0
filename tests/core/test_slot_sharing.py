"""How much of a slot an execution takes, learned from the runs of its type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtask.core.slot_sharing import AHEAD_MAX_MS, CHILDREN, MOST_MIN, WHOLE, Pace, Slots


def learned(*runs: float) -> Pace:
    pace = Pace([100, 16, 2])
    for ms in runs:
        pace.ran("t", ms)
    return pace


def test_nothing_is_known_of_a_type_that_has_not_run() -> None:
    assert "t" not in learned().parts


@pytest.mark.parametrize(
    ("ms", "parts"), [(0.0, 1), (0.2, 2), (1.0, 7), (5.0, 32), (16.0, 79), (49.0, 148), (50.0, WHOLE), (1e9, WHOLE)]
)
def test_a_slot_is_taken_for_the_share_of_the_cycle_in_which_the_handler_runs(ms: float, parts: int) -> None:
    assert learned(*[ms] * 300).parts["t"] == parts


def test_one_slow_run_counts_at_once_and_fast_ones_make_up_for_it_slowly() -> None:
    pace = learned(*[0.2] * 100, 10_000.0)
    assert pace.parts["t"] == WHOLE
    runs = 0
    while pace.parts["t"] == WHOLE:
        pace.ran("t", 0.2)
        runs += 1
    assert 50 < runs < 150


def test_a_type_with_one_long_run_in_a_hundred_never_shares_for_long() -> None:
    pace, shared = learned(), 0
    for run in range(10_000):
        pace.ran("t", 60_000.0 if run % 100 == 0 else 0.2)
        shared += pace.parts["t"] < WHOLE
    assert shared == 0


@pytest.mark.parametrize(("transaction_ms", "parts"), [(0, 7), (5, 7), (10, 6), (16, 6), (1_000, 6), (1e9, 6)])
def test_more_share_a_slot_where_transactions_take_longer_up_to_a_bound(transaction_ms: float, parts: int) -> None:
    pace = learned()
    for _ in range(300):
        pace.committed(transaction_ms, 0)
        pace.ran("t", 1.0)
        pace.ran("long", AHEAD_MAX_MS)
    assert pace.parts == {"t": parts, "long": WHOLE}


def ends(pace: Pace, a_millisecond: int) -> None:
    """So many coroutines end in each millisecond; a transaction of 20 ms commits them."""
    for now_ms in range(1_000_000, 1_002_000, 20):
        pace.ended[0] += 20 * a_millisecond
        pace.committed(20.0, now_ms)


def test_twice_as_many_are_in_flight_as_end_in_a_cycle_and_no_more_than_the_slots_after_a_rest() -> None:
    pace = learned()
    assert pace.most == [100, MOST_MIN, MOST_MIN], "nothing has ended yet"
    ends(pace, 15)
    assert pace.ahead_ms == AHEAD_MAX_MS
    assert pace.most == [2 * 15 * AHEAD_MAX_MS, MOST_MIN, MOST_MIN]
    pace.committed(20.0, 1_010_000)
    assert pace.most == [100, MOST_MIN, MOST_MIN]


def test_a_rate_that_only_the_slots_bound_grows_to_what_the_handlers_can_do() -> None:
    """The handlers can do 15 in each millisecond, and the first ones are in flight for a cycle."""
    pace = learned()
    for now_ms in range(20, 1_000, 20):
        pace.ended[0] += 20 * min(15, round(pace.most[0] / pace.ahead_ms))
        pace.committed(20.0, 1_000_000 + now_ms)
    assert pace.most[0] > 15 * AHEAD_MAX_MS


def test_what_is_in_flight_beyond_that_takes_whole_slots_but_in_children() -> None:
    slots = Slots([1, 1, 1])
    slots.pace.ran("t", 0.01)
    for kind in range(3):
        for _ in range(MOST_MIN):
            slots.take(kind, 1, slots.parts(kind, "t"))
    assert [slots.parts(kind, "t") for kind in range(3)] == [WHOLE, WHOLE, 1]
    assert CHILDREN == 2
    slots.release(0, 1, 1)
    assert slots.parts(0, "t") == 1


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=50))
def test_parts_are_always_from_one_to_a_whole(runs: list[float]) -> None:
    assert 1 <= learned(*runs).parts["t"] <= WHOLE


@given(st.lists(st.floats(AHEAD_MAX_MS, 1e9), min_size=1, max_size=50))
def test_what_never_ran_short_never_shares(runs: list[float]) -> None:
    assert learned(*runs).parts["t"] == WHOLE
