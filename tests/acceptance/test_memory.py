"""A backlog that weighs something, before a real worker with little memory: it works it off, and holds what it may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamtask.domain.identity import new_task_id
from tests.acceptance.harness import Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

REQUESTS, ROWS = 240, 5_000  # of 300 KB; decoded 1.6 MB each
MEMORY_MB = 64
AT_REST_MB = 110  # the process itself, on a machine that gives each thread an arena
ENDS_S = 240.0


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1_024


def test_a_backlog_that_decodes_to_more_than_its_memory_is_worked_off_within_it(bench: Bench) -> None:
    rows = json.dumps([{"id": n, "name": f"the name of {n}", "value": n / 2} for n in range(ROWS)]).encode()
    ids = [new_task_id() for _ in range(REQUESTS)]
    for number, task_id in enumerate(ids):
        head = b'{"task_type": "rows", "task_id": "%s", "parameters": {"rows": ' % task_id.encode()
        bench.produce(head + rows + b"}}", key=task_id.encode(), band=number % 3)
    worker = bench.worker(app="benchmarks.app:app", STREAMTASK_MEMORY_MB=str(MEMORY_MB))
    ends = bench.ends(ids, ENDS_S)
    assert {seen.status for seen in ends.values()} == {"completed"}
    peak = _peak_mb(worker.pid)
    assert peak < AT_REST_MB + 1.2 * MEMORY_MB, f"{peak:.0f} MB at the most"
    until(lambda: worker.events("worker_started"), "it has told of its start")
    assert worker.events("worker_started")[0]["memory_mb"] == MEMORY_MB
