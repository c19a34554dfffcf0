"""How much of a slot an execution takes, learned from the runs of its type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtask.core.slot_sharing import AHEAD_MAX_MS, AHEAD_MS, WHOLE, Pace


def learned(*runs: float) -> Pace:
    pace = Pace()
    for ms in runs:
        pace.ran("t", ms)
    return pace


def test_nothing_is_known_of_a_type_that_has_not_run() -> None:
    assert "t" not in learned().parts


@pytest.mark.parametrize(("ms", "parts"), [(0.0, 1), (0.2, 4), (1.0, 16), (5.0, 80), (AHEAD_MS, WHOLE), (1e9, WHOLE)])
def test_so_many_share_a_slot_as_end_within_the_time_that_one_may_wait(ms: float, parts: int) -> None:
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
    pace, shared = Pace(), 0
    for run in range(10_000):
        pace.ran("t", 60_000.0 if run % 100 == 0 else 0.2)
        shared += pace.parts["t"] < WHOLE
    assert shared == 0


@pytest.mark.parametrize(("transaction_ms", "parts"), [(0, 16), (5, 16), (10, 9), (20, 5), (1_000, 4), (1e9, 4)])
def test_more_share_a_slot_where_transactions_take_longer_up_to_a_bound(transaction_ms: float, parts: int) -> None:
    pace = Pace()
    for _ in range(300):
        pace.committed(transaction_ms)
        pace.ran("t", 1.0)
        pace.ran("long", AHEAD_MS)
    assert pace.parts == {"t": parts, "long": WHOLE}
    assert AHEAD_MAX_MS / 4 <= AHEAD_MS


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=50))
def test_parts_are_always_from_one_to_a_whole(runs: list[float]) -> None:
    assert 1 <= learned(*runs).parts["t"] <= WHOLE


@given(st.lists(st.floats(AHEAD_MS, 1e9), min_size=1, max_size=50))
def test_what_never_ran_short_never_shares(runs: list[float]) -> None:
    assert learned(*runs).parts["t"] == WHOLE
