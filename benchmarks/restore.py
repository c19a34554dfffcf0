"""How fast an empty view reads everything: `streamtask serve` on a new SQLite file, with all its indices.

Requests and the three events of each lie there. Timed from the moment the service listens until it is ready; then one task
is looked up and the counts are compared, so that what was read is in the store. Beside it, in the same run, the limit: a
reader of the same topics that keeps nothing. That is the hardest case: as if no worker had committed an offset. Then once
more as workers leave the topics, with all requests committed as finished, of which the view reads only the events.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from benchmarks.app import TASK_TYPES
from benchmarks.stand import Failed, query_service, records_of, topics
from benchmarks.throughput import submit
from benchmarks.written import finish, requested, write_histories
from streamtask.config import TopicNames


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. concurrency is of no use here."""
    with topics(bootstrap, "bench", partitions) as names:
        asyncio.run(submit(bootstrap, names, tasks, TASK_TYPES["async"]))
        written = list(requested(bootstrap, names))
        events = write_histories(bootstrap, names, written)
        records = tasks + events
        raws = [_read(bootstrap, names, records)]
        took_s = _restore(bootstrap, names, written[-1].task_id, tasks)
        raws.append(_read(bootstrap, names, records))
        finish(bootstrap, names)
        finished_s = _restore(bootstrap, names, written[-1].task_id, tasks)
    return {
        "tasks_per_s": round(tasks / took_s),
        "raw_tasks_per_s": round(tasks / min(raws)),
        "ratio": round(min(raws) / took_s, 3),
        "events_per_s": round(events / took_s),
        "records_per_s": round(records / took_s),
        "ready_s": round(took_s, 2),
        "finished_events_per_s": round(events / finished_s),
        "finished_ready_s": round(finished_s, 2),
        "tasks": tasks,
        "events": events,
        "partitions": partitions,
    }


def _restore(bootstrap: str, names: TopicNames, task_id: str, tasks: int) -> float:
    """Seconds until a new view is ready."""
    with query_service(bootstrap, names.prefix) as view:
        began_s = time.monotonic()
        view.until_ready()
        took_s = time.monotonic() - began_s
        _check(view.url, task_id, tasks)
    return took_s


def _read(bootstrap: str, names: TopicNames, records: int) -> float:
    """Seconds to read all of it, as the view reads."""
    seen, began_s = 0, time.monotonic()
    for read in records_of(bootstrap, [*names.requests, names.status]):
        seen += len(read)
    if seen != records:
        raise Failed(f"{records} records were written, and {seen} were read: nothing was measured.")
    return time.monotonic() - began_s


def _check(url: str, task_id: str, tasks: int) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        found = http.get(f"/tasks/{task_id}").raise_for_status().json()
        counts = http.get("/stats").raise_for_status().json()["tasks"]
    if found["status"] != "completed" or counts["completed"] != tasks:
        raise Failed(f"The view should hold {tasks} completed tasks and holds {counts}: nothing was measured.")
