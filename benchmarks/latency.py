"""Latency: from the call of submit to the terminal event in the caller's hands, read committed.

Idle, one task at a time; or, with a rate, that many tasks a second whether they are answered or not (benchmarks/steady.py).

Client and worker are two processes; the client is the library's own. The parts come from what the events themselves say
(milliseconds, all on this machine's clock; the handler returns when it began), so nothing is measured inside the worker:

    submit    the broker has the request (the receipt)
    pick      … until the worker has put the task's RUNNING into a transaction
    start     … until that is committed and the handler starts
    handler   … until its end is in a transaction
    end       … until the caller has the terminal event, read committed
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks import steady
from benchmarks.app import parameters
from benchmarks.stand import Failed, check_histories, status_records, topics, worker
from benchmarks.steady import Took
from streamtask.client import AsyncClient
from streamtask.codec import decode_status
from streamtask.config import TopicNames
from streamtask.domain.model import TaskResponse, TaskStatus, to_ms

WARM_UP = 50
WAIT_S = 30.0
SECONDS = 10  # of a steady rate, unless --tasks says otherwise
PARTS = ("submit", "pick", "start", "handler", "end")


def measure(
    bootstrap: str, *, tasks: int, concurrency: int, partitions: int, rate: float | None = None
) -> dict[str, Any]:
    """The figures; see the module. rate: tasks a second; None: idle."""
    more: dict[str, Any] = {}
    with topics(bootstrap, "bench", partitions) as names:
        with worker(bootstrap, names.prefix, concurrency) as process:
            try:
                if rate is None:
                    took = asyncio.run(_one_by_one(bootstrap, names, tasks))
                else:
                    took, more = steady.load(bootstrap, names, process, rate=rate, tasks=tasks)
            finally:
                process.check()  # first of all: why did it end?
        parts = _parts(bootstrap, names, took)
    whole = [ended - began for began, _, ended in took.values()]
    return {
        **more,
        "p50_ms": round(quantile(whole, 0.5), 1),
        "p99_ms": round(quantile(whole, 0.99), 1),
        "parts_p50_ms": {name: round(quantile(held, 0.5), 1) for name, held in parts.items()},
        "parts_p99_ms": {name: round(quantile(held, 0.99), 1) for name, held in parts.items()},
        "tasks": len(took),
        "partitions": partitions,
    }


async def _one_by_one(bootstrap: str, names: TopicNames, tasks: int) -> Took:
    took: Took = {}
    async with AsyncClient(bootstrap, prefix=names.prefix) as client:
        for number in range(WARM_UP + tasks):
            began = time.time()
            receipt = await client.submit("stamp", parameters(number), priority=number % 10 + 1)
            acknowledged = time.time()
            ended = await receipt.wait(WAIT_S)
            now = time.time()
            if ended.status is not TaskStatus.COMPLETED:
                raise Failed(f"Task {receipt.task_id} ended as {ended.status}: {ended.error}")
            if number >= WARM_UP:
                took[receipt.task_id] = (began * 1_000, acknowledged * 1_000, now * 1_000)
    return took


def _parts(bootstrap: str, names: TopicNames, took: Took) -> dict[str, list[float]]:
    """{part: ms of each task}."""
    events: dict[str, dict[str, TaskResponse]] = {}
    counts: Counter[str] = Counter()
    for records in status_records(bootstrap, names):
        for record in records:
            event = decode_status(record.value)
            if event.task_id in took:
                counts[event.status.value] += 1
                events.setdefault(event.task_id, {})[event.status.value] = event
    check_histories(counts, len(took))
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    for task_id, (began, acknowledged, ended) in took.items():
        running, completed = events[task_id]["running"], events[task_id]["completed"]
        assert running.updated_at is not None, "our events have their time"
        assert completed.updated_at is not None, "our events have their time"
        picked, started, finished = to_ms(running.updated_at), completed.result["began_ms"], to_ms(completed.updated_at)
        marks = (began, acknowledged, picked, started, finished, ended)
        for name, low, high in zip(PARTS, marks, marks[1:], strict=False):
            parts[name].append(high - low)  # the worker may be faster than the receipt: then `pick` is below 0
    return parts


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=1_000, method="inclusive")[round(share * 1_000) - 1]
