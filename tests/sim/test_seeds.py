"""500 seeds of the simulation; `python -m tests.sim --seeds 10000` plays more. A failure prints its seed and last steps."""

from __future__ import annotations

import pytest

from .seeds import run

SEEDS = 500
CHUNK = 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_holds_in_seeds_from(first: int) -> None:
    for seed in range(first, first + CHUNK):
        run(seed)
