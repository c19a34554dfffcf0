"""What a failure and a death lead to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtask.core.retry import GIVE_UP, Again, death, decide
from streamtask.domain.model import Ending, Outcome, Retry, TaskPolicy

RAISED = Outcome(Ending.RAISED)
JUST_BELOW_ONE = 1 - 2**-53


@pytest.mark.parametrize(("attempts", "failed", "again"), [(1, 1, False), (3, 1, True), (3, 2, True), (3, 3, False)])
def test_attempts_bound_the_failures(attempts: int, failed: int, again: bool) -> None:
    assert isinstance(decide(Retry(attempts=attempts), RAISED, failed, 0.5), Again) == again


def test_the_wait_doubles_up_to_its_bound() -> None:
    retry = Retry(attempts=99, backoff_ms=1_000, backoff_max_ms=6_000)
    waits = [decide(retry, RAISED, failed, JUST_BELOW_ONE) for failed in range(1, 6)]
    assert waits == [Again(1_000), Again(2_000), Again(4_000), Again(6_000), Again(6_000)]
    assert decide(retry, RAISED, 98, 0.0) == Again(0)
    assert decide(Retry(attempts=10**6), RAISED, 900_000, JUST_BELOW_ONE) == Again(60_000)


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full_and_never_beyond_the_bound(failed: int, rand: float) -> None:
    again = decide(Retry(attempts=1_000, backoff_ms=500, backoff_max_ms=30_000), RAISED, failed, rand)
    assert isinstance(again, Again)
    assert 0 <= again.wait_ms <= min(500 * 2 ** (failed - 1), 30_000)


def test_the_handlers_own_wait_wins_and_counts_as_an_attempt() -> None:
    later = Outcome(Ending.RAISED, after_ms=123_456)
    assert decide(Retry(attempts=2), later, 1, 0.5) == Again(123_456)
    assert decide(Retry(attempts=2), later, 2, 0.5) is GIVE_UP
    assert decide(Retry(attempts=2), Outcome(Ending.RAISED, after_ms=-5), 1, 0.5) == Again(0)


def test_what_may_not_be_retried_is_given_up() -> None:
    assert decide(Retry(attempts=9), Outcome(Ending.RAISED, retryable=False, after_ms=5), 1, 0.5) is GIVE_UP


@pytest.mark.parametrize(
    ("lost_max", "fates"),
    [
        (3, ["run", "run", "suspect", "quarantine", "quarantine"]),
        (1, ["run", "quarantine", "quarantine", "quarantine", "quarantine"]),
        (0, ["run", "run", "suspect", "suspect", "suspect"]),
    ],
)
def test_two_deaths_make_a_suspect_and_lost_max_ends_it(lost_max: int, fates: list[str]) -> None:
    assert [death(TaskPolicy(lost_max=lost_max), lost) for lost in range(5)] == fates
