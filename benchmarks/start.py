"""How long a worker takes to start: from exec of `streamtask worker` to the handler of its first task.

The topics are there, and in each start one request that waits. The parts come from what the processes log and from what the
events say, on this machine's clock:

    parent    exec … the parent has looked at the cluster and gives its child the settings
    imports   … the child, which was started earlier, has imported library and app, and looked as well
    join      … it is a member of the group and told its shards
    claim     … the shards are claimed, the request is read, its RUNNING is in a transaction
    commit    … that is committed, and the handler begins, as it says in its result
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import datetime
from typing import Any

from benchmarks.app import parameters
from benchmarks.latency import quantile
from benchmarks.stand import Failed, OtherProcess, check_histories, command_worker, status_records, topics
from streamtask.client import AsyncClient
from streamtask.codec import decode_status
from streamtask.config import TopicNames
from streamtask.domain.model import TaskResponse, TaskStatus, to_ms

PARTS = ("parent", "imports", "join", "claim", "commit")
WAIT_S = 60.0
CHILD, STARTED, ASSIGNED = "child_started", "worker_started", "shards_assigned"


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. tasks: how many starts."""
    with topics(bootstrap, "bench", partitions) as names:
        starts = [asyncio.run(_start(bootstrap, names, concurrency)) for _ in range(tasks)]
        events = _events(bootstrap, names, tasks)
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    whole: list[float] = []
    for task_id, marks in starts:
        picked, completed = events[task_id]["running"].updated_at, events[task_id]["completed"]
        assert picked is not None, "our events have their time"
        marks = [*marks, to_ms(picked), completed.result["began_ms"]]
        whole.append(marks[-1] - marks[0])
        for name, low, high in zip(PARTS, marks, marks[1:], strict=False):
            parts[name].append(high - low)
    return {
        "p50_ms": round(quantile(whole, 0.5)),
        "p99_ms": round(quantile(whole, 0.99)),
        "starts_ms": [round(one) for one in whole],
        "parts_p50_ms": {name: round(quantile(held, 0.5)) for name, held in parts.items()},
        "tasks": tasks,
        "partitions": partitions,
    }


async def _start(bootstrap: str, names: TopicNames, concurrency: int) -> tuple[str, list[float]]:
    """(task_id, ms of exec, of the child's start, of its readiness to join, of its shards)."""
    async with AsyncClient(bootstrap, prefix=names.prefix) as client:
        receipt = await client.submit("stamp", parameters(0))
        exec_ms = time.time() * 1_000
        with command_worker(bootstrap, names.prefix, concurrency) as process:
            try:
                ended = await receipt.wait(WAIT_S)
            finally:
                process.check()
            marks = _logged(process)
    if ended.status is not TaskStatus.COMPLETED:
        raise Failed(f"Task {receipt.task_id} ended as {ended.status}: {ended.error}")
    return receipt.task_id, [exec_ms, *(marks[name] for name in (CHILD, STARTED, ASSIGNED))]


def _logged(process: OtherProcess) -> dict[str, float]:
    """When each thing was first logged, ms."""
    marks: dict[str, float] = {}
    for line in process.said().splitlines():
        if line.startswith("{") and line.endswith("}"):
            said = json.loads(line)
            at = datetime.fromisoformat(said["timestamp"]).timestamp() * 1_000
            marks.setdefault(said.get("what") or said["event"], at)
    if missing := {CHILD, STARTED, ASSIGNED} - marks.keys():
        raise Failed(f"The worker did not log {', '.join(sorted(missing))}:\n{process.said()}")
    return marks


def _events(bootstrap: str, names: TopicNames, tasks: int) -> dict[str, dict[str, TaskResponse]]:
    """{task_id: {status: event}}."""
    events: dict[str, dict[str, TaskResponse]] = {}
    counts: Counter[str] = Counter()
    for records in status_records(bootstrap, names):
        for record in records:
            event = decode_status(record.value)
            counts[event.status.value] += 1
            events.setdefault(event.task_id, {})[event.status.value] = event
    check_histories(counts, tasks)
    return events
