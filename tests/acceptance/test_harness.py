"""The bench sees what it is there to see: each rule about executions has a planted breach."""

from __future__ import annotations

import dataclasses

import pytest

from tests.acceptance.harness import Bench, Execution

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]


def test_a_planted_breach_of_each_rule_is_found(bench: Bench) -> None:
    bench.worker()
    done = bench.client.submit("noop")
    never = bench.client.submit("noop")
    bench.end(done.task_id)
    bench.end(never.task_id)
    bench.finish()
    (ran,) = bench.starts(done.task_id)
    after = bench.end(done.task_id).timestamp_ms + 1_000
    bench.add(dataclasses.replace(ran))
    with pytest.raises(AssertionError, match="share an attempt"):
        bench.check_executions()
    _breach(bench, dataclasses.replace(ran, attempt=2), "has no RUNNING")
    _breach(bench, dataclasses.replace(ran, ms=after), "after the end")
    _breach(bench, dataclasses.replace(ran, ms=ran.ms - 60_000), "before its RUNNING")


def _breach(bench: Bench, planted: Execution, found: str) -> None:
    bench.only(planted)
    with pytest.raises(AssertionError, match=found):
        bench.check_executions()
