"""What a task in flight costs in memory: `memory --in-flight`.

A worker process with a slot for each is given a few tasks that wait for something that does not come, then many more; its
RSS, once it stands still, before and after, divided by the difference. It contains all that the process holds for them:
claims, ledgers, handlers' coroutines, and what librdkafka and the allocator keep of the way in.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil

from benchmarks.app import parameters
from benchmarks.stand import Failed, OtherProcess, status_counts, topics, worker
from benchmarks.throughput import submit_all
from streamtask.config import TopicNames, load_settings

FEW, MANY = 10, 10_000
WAIT_S = 120.0
# In turn, so that no partition of a band gets more than its ledger holds open (355 that have begun): with the priorities 1..10
# the middle band had up to 369 of 10,000, and the worker rightly did not begin the last ones.
PRIORITIES = (1, 5, 9)
STILL_S = 2.0  # RSS has not moved by more than this much …
STILL_BYTES = 100_000
LOOK_S = 0.2


def measure(bootstrap: str, *, partitions: int, many: int = MANY) -> dict[str, Any]:
    """The figures; see the module."""
    with (
        topics(bootstrap, "bench", partitions) as names,
        # They would be waited for; nobody ends them.
        worker(bootstrap, names.prefix, many, DRAIN_GRACE_S="0") as process,
    ):
        few = _rss(bootstrap, names, process, 0, FEW)
        after = _rss(bootstrap, names, process, FEW, many)
    return {
        "bytes_per_task": round((after - few) / (many - FEW)),
        "limit_bytes": 3_000,
        "rss_mb_few": round(few / 1e6, 1),
        "rss_mb_many": round(after / 1e6, 1),
        "in_flight": [FEW, many],
        "tasks": many,
        "partitions": partitions,
    }


def _rss(bootstrap: str, names: TopicNames, process: OtherProcess, running: int, wanted: int) -> int:
    """Bytes, once this many run."""
    asyncio.run(
        submit_all(
            load_settings(bootstrap_servers=bootstrap, prefix=names.prefix),
            (
                {"task_type": "held", "parameters": parameters(number), "priority": PRIORITIES[number % 3]}
                for number in range(running, wanted)
            ),
        )
    )
    deadline = time.monotonic() + WAIT_S
    while True:
        process.check()
        counts = status_counts(bootstrap, names)
        if counts == {"created": wanted, "running": wanted}:
            break
        if time.monotonic() > deadline or counts["running"] > wanted or counts["completed"]:
            raise Failed(f"{wanted} tasks should run, but there are {dict(counts)}: nothing was measured.")
        time.sleep(LOOK_S)
    return _still(process, deadline)


def _still(process: OtherProcess, deadline: float) -> int:
    seen = psutil.Process(process.pid)
    held, since_s = seen.memory_info().rss, time.monotonic()
    while time.monotonic() - since_s < STILL_S and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        rss = seen.memory_info().rss
        if abs(rss - held) > STILL_BYTES:
            held, since_s = rss, time.monotonic()
    return seen.memory_info().rss
