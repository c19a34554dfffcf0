"""A task may take longer than `max.poll.interval.ms`: the owner polls while handlers run. The interval is short here; that it
is in force is shown beside it, by an owner that cannot poll.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.acceptance.harness import Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

APP = "tests.acceptance.long_app:app"
INTERVAL_S = 10.0
ENVIRONMENT = {
    "STREAMTASK_KAFKA": json.dumps({"max.poll.interval.ms": int(INTERVAL_S * 1_000)}),
    "STREAMTASK_CHILDREN": "2",
    "STREAMTASK_SESSION_TIMEOUT_MS": str(
        int(INTERVAL_S * 1_000)
    ),  # as long as it may be: the interval is what is tried
}
KINDS = ("long_async", "long_thread", "long_process")


def test_tasks_that_outlast_max_poll_interval_keep_their_shards_and_run_once(bench: Bench, tmp_path: Path) -> None:
    worker, path = bench.worker(ENVIRONMENT, app=APP), tmp_path / "go"
    long = bench.client.submit_many([{"task_type": kind, "parameters": {"path": str(path)}} for kind in KINDS * 2])
    until(lambda: len({one.type for one in bench.running()}) == len(KINDS), "one of each kind runs")
    began_s = time.monotonic()
    beside = 0
    while time.monotonic() < began_s + 2.5 * INTERVAL_S:  # a shard that is lost is lost after one interval
        beside += 1
        assert bench.end(bench.client.submit("noop").task_id).status == "completed"
    assert beside > 2
    path.touch()
    ends = bench.ends([one.task_id for one in long])
    assert [(end.status, end.event.attempt) for end in ends.values()] == [("completed", 1)] * len(long)
    assert all(len(bench.starts(one.task_id)) == 1 for one in long), "each has run once"
    assert len(worker.events("shards_assigned")) == 1, "no rebalance"
    assert not worker.events("shards_lost")
    bench.finish()


def test_an_owner_that_cannot_poll_loses_its_shards_after_max_poll_interval(bench: Bench) -> None:
    """The interval of the test above is in force."""
    stuck = bench.worker(ENVIRONMENT, app=APP)
    bench.until_owning(stuck, 4)
    task = bench.client.submit("keeps_the_interpreter_at_first")
    (first,) = until(lambda: bench.starts(task.task_id), "it keeps the interpreter")
    began_s = time.monotonic()
    bench.worker(ENVIRONMENT, app=APP)
    end = bench.end(task.task_id, 6 * INTERVAL_S)
    took_s = time.monotonic() - began_s
    assert (end.status, end.event.attempt) == ("completed", 2)
    assert bench.starts(task.task_id)[-1].pid != first.pid
    assert took_s > 0.5 * INTERVAL_S, "its heartbeats kept its shards until then"
    stuck.kill()
    bench.finish()
