"""How long an urgent request waits behind a million others: from the call of submit to the start of its handler.

One worker process with SLOTS slots. First alone: urgent ones (priority 10) at random moments, nothing else there. Then the
backlog: requests of priority 1, each a task of TASK_MS, so that every slot is taken; and the urgent ones again. A task that
runs is not interrupted, so one of them may have to end first. All times are those of the events on this machine's clock.

    pick    … until the worker has put the task's RUNNING into a transaction
    start   … until that is committed and the handler begins, as it says in its result
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

from benchmarks.app import parameters
from benchmarks.latency import quantile
from benchmarks.stand import Failed, OtherProcess, check_histories, kafka, status_of, status_records, topics, worker
from benchmarks.written import Writer
from streamtask.client import AsyncClient
from streamtask.codec import decode_status
from streamtask.config import TopicNames
from streamtask.domain.identity import new_task_id
from streamtask.domain.model import TaskResponse, to_ms
from streamtask.kafka.offset_queries import topic_ends

SLOTS = 50  # 2,500 tasks of 20 ms a second: more would be more than a worker starts, and its slots not taken
TASK_MS = 20
PROBES, WARM_UP = 200, 10
PAUSE_S = (0.02, 0.06)
BUSY_ROUNDS = 10  # every slot has had so many tasks before the first urgent one comes
BUSY_WAIT_S = 60.0
VALUE = '{"task_type":"sleep_20ms","task_id":"%s","parameters":{"path":"lib/module_%d.py","size":%d,"deep":true},"priority":1}'

Submitted = dict[str, float]  # {task_id: ms on the wall clock}


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. tasks: the backlog. concurrency: beyond SLOTS of no use here."""
    slots = min(concurrency, SLOTS)
    with topics(bootstrap, "bench", partitions) as names, worker(bootstrap, names.prefix, slots) as process:
        alone = asyncio.run(_urgent(bootstrap, names))
        wrote_s = _write(bootstrap, names, tasks)
        _until_busy(bootstrap, names, process, slots)
        behind = asyncio.run(_urgent(bootstrap, names))
        process.check()
        events, ended = _read(bootstrap, names, {**alone, **behind})
        left = tasks - ended.total()
    if left <= 0:
        raise Failed(f"All {tasks} tasks of the backlog ended before the last urgent one: give more --tasks.")
    began, last = min(behind.values()), max(behind.values())
    per_s = sum(count for at, count in ended.items() if began <= at < last) / (last - began) * 1_000
    figures: dict[str, Any] = {}
    for name, submitted in (("alone_", alone), ("", behind)):
        picks, starts = _waits(submitted, events)
        for what, held in (("", starts), ("pick_", picks)):
            figures[f"{name}{what}p50_ms"] = round(quantile(held, 0.5), 1)
            figures[f"{name}{what}p99_ms"] = round(quantile(held, 0.99), 1)
    return {
        **figures,
        "limit_ms": TASK_MS + 25,
        "slots": slots,
        "slots_busy": round(per_s * TASK_MS / 1_000, 1),
        "beside_per_s": round(per_s),
        "written_per_s": round(tasks / wrote_s),
        "urgent": len(behind),
        "left": left,
        "tasks": tasks,
        "partitions": partitions,
    }


async def _urgent(bootstrap: str, names: TopicNames) -> Submitted:
    """Those behind the warm-up."""
    submitted: Submitted = {}
    rng = random.Random(1)
    async with AsyncClient(bootstrap, prefix=names.prefix) as client:
        for number in range(WARM_UP + PROBES):
            began_ms = time.time() * 1_000
            receipt = await client.submit("stamp", parameters(number), priority=10)
            if number >= WARM_UP:
                submitted[receipt.task_id] = began_ms
            elif number == WARM_UP - 1:
                await receipt.wait(BUSY_WAIT_S)  # the worker may only have started, the backlog only have come
            await asyncio.sleep(rng.uniform(*PAUSE_S))
        await receipt.wait(BUSY_WAIT_S)  # the last one: those before it began earlier
    return submitted


def _write(bootstrap: str, names: TopicNames, tasks: int) -> float:
    """The backlog; returns seconds until it is acknowledged."""
    began_s = time.monotonic()
    writer = Writer(bootstrap, names.requests[-1])
    for number in range(tasks):
        task_id = new_task_id()
        writer.write(task_id, (VALUE % (task_id, number, number)).encode())
    writer.flush()
    return time.monotonic() - began_s


def _until_busy(bootstrap: str, names: TopicNames, process: OtherProcess, slots: int) -> None:
    deadline, first = time.monotonic() + BUSY_WAIT_S, None
    while True:
        end = sum(topic_ends(kafka(bootstrap), [names.status]).values())
        first = end if first is None else first
        if end - first >= BUSY_ROUNDS * slots * 3:
            return
        process.check()
        if time.monotonic() > deadline:
            raise Failed(f"The worker did not come to the backlog within {BUSY_WAIT_S:g} s.")
        time.sleep(0.05)


def _read(
    bootstrap: str, names: TopicNames, urgent: Submitted
) -> tuple[dict[str, dict[str, TaskResponse]], Counter[int]]:
    """The events of each urgent task by their statuses, and how many of the others ended in each millisecond."""
    events: dict[str, dict[str, TaskResponse]] = {}
    counts: Counter[str] = Counter()
    ended: Counter[int] = Counter()
    urgent_keys = {task_id.encode() for task_id in urgent}
    for records in status_records(bootstrap, names):
        for record in records:
            if record.key in urgent_keys:
                event = decode_status(record.value)
                counts[event.status.value] += 1
                events.setdefault(event.task_id, {})[event.status.value] = event
            elif status_of(record) == "completed":
                ended[record.timestamp_ms] += 1
    check_histories(counts, len(urgent))
    return events, ended


def _waits(submitted: Submitted, events: dict[str, dict[str, TaskResponse]]) -> tuple[list[float], list[float]]:
    """(ms until each was picked, ms until each had started)."""
    picks, starts = [], []
    for task_id, began_ms in submitted.items():
        picked, completed = events[task_id]["running"].updated_at, events[task_id]["completed"]
        assert picked is not None, "our events have their time"
        picks.append(to_ms(picked) - began_ms)
        starts.append(completed.result["began_ms"] - began_ms)
    return picks, starts
