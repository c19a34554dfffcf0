"""What one worker process takes after a million tasks at full speed: its memory at every tenth of them.

A backlog of no-ops lies before it; nothing else is on the machine but the broker. RSS is that of the worker process alone
(no-ops are coroutines, so it has no children), looked at ten times a second, and its highest is told.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psutil

from benchmarks import payloads
from benchmarks.app import TASK_TYPES
from benchmarks.in_flight import measure as in_flight_measure
from benchmarks.stand import check_histories, status_counts, topics, worker
from benchmarks.throughput import follow, submit

MB = 1e6
TASKS = 1_000_000


def measure(
    bootstrap: str,
    *,
    tasks: int,
    concurrency: int,
    partitions: int,
    in_flight: int | None = None,
    payload: int | None = None,
    result: int | None = None,
) -> dict[str, Any]:
    """The figures; see the module. in_flight: what so many tasks in flight take instead (benchmarks/in_flight.py); payload,
    result: what requests or results of so many bytes do (benchmarks/payloads.py)."""
    if payload is not None or result is not None:
        given = None if tasks == TASKS else tasks
        return payloads.measure(bootstrap, tasks=given, partitions=partitions, payload=payload, result=result)
    if in_flight is not None:
        return in_flight_measure(bootstrap, partitions=partitions, many=in_flight)
    at_tenth: dict[int, int] = {}
    highest = 0
    with topics(bootstrap, "bench", partitions) as names:
        asyncio.run(submit(bootstrap, names, tasks, TASK_TYPES["async"]))
        with worker(bootstrap, names.prefix, concurrency) as process:
            seen = psutil.Process(process.pid)
            files_before = 0

            def look(done: int) -> None:
                nonlocal highest, files_before
                rss = seen.memory_info().rss
                highest = max(highest, rss)
                files_before = files_before or (seen.num_fds() if done else 0)
                at_tenth.setdefault(done * 10 // tasks, rss)

            cpu_us = follow(bootstrap, names, process, tasks, look)
            files, threads = seen.num_fds(), seen.num_threads()
        counts = status_counts(bootstrap, names)
    check_histories(counts, tasks)
    return {
        "rss_after_mb": round(at_tenth[10] / MB, 1),
        "rss_max_mb": round(highest / MB, 1),
        "rss_mb_at_tenths": [round(at_tenth[tenth] / MB) for tenth in sorted(at_tenth)],
        "files": [files_before, files],
        "threads": threads,
        "cpu_us_per_task": round(cpu_us, 1),
        "tasks": tasks,
        "partitions": partitions,
    }
