"""A property that does not hold, for test_fuzz.py; not collected by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st


@given(st.integers())
def test_every_number_is_small(number: int) -> None:
    assert number < 1_000
