"""A short run for CI: the faults of worker processes on one broker, and every promise is kept.

The seed is printed; STREAMTASK_CHAOS_SEED plays another one.
"""

from __future__ import annotations

import os

import pytest
from rich.console import Console

from tests.chaos.run import run
from tests.chaos.summary import summary

FAULTS = ("kill_worker", "kill_two_workers", "freeze_worker", "drain_host", "abort_host", "kill_child", "scale")
SEED = 5
MINUTES = 0.6


@pytest.mark.broker
@pytest.mark.acceptance
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_that_are_killed_frozen_drained_and_scaled_keep_every_promise() -> None:
    seed = int(os.environ.get("STREAMTASK_CHAOS_SEED") or SEED)
    print(f"STREAMTASK_CHAOS_SEED={seed}")
    outcome = run(seed, MINUTES, 1, FAULTS)
    again = f"STREAMTASK_CHAOS_SEED={seed} python -m pytest tests/chaos/test_short.py"
    summary(Console(highlight=False, width=140), outcome, again)
    assert outcome.violations == [], f"{outcome.violations}; evidence: {outcome.evidence}"
    assert sum(outcome.struck.values()) >= 3, f"hardly anything was broken: {outcome.struck}"
    assert outcome.executions > 100, "hardly anything ran"
