"""Tasks a second of one worker process that has a backlog before it, and of the raw loop over the same requests.

The backlog is submitted first, with the priorities 1..10 in turn, so that all bands have work. Then one worker process
starts. Timed from its first to its last terminal event, by the timestamps of their records, read committed afterwards:
no reader takes part in the run. The raw loop reads the same requests, before and after; its best of three counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.app import TASK_TYPES, parameters
from benchmarks.stand import (
    ROOT,
    Failed,
    OtherProcess,
    check_histories,
    kafka,
    status_of,
    status_records,
    topics,
    worker,
)
from streamtask.client import AsyncClient
from streamtask.config import Settings, TopicNames, load_settings
from streamtask.kafka import takeover
from streamtask.kafka.offset_queries import topic_ends
from streamtask.kafka.tail import Place

LOOK_S = 0.1
STALL_S = 60.0  # without any progress
ANSWER_S = 10.0
RAW_RUNS = 3
FLUSH_S = 120.0


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int, handler: str = "async") -> dict[str, Any]:
    """The figures; see the module. handler: its kind, a name in TASK_TYPES."""
    with topics(bootstrap, "bench", partitions) as names, topics(bootstrap, "raw", partitions) as raw:
        submit_per_s = asyncio.run(submit(bootstrap, names, tasks, TASK_TYPES[handler]))
        raws = [raw_loop(bootstrap, names, raw.status, tasks)]
        with worker(bootstrap, names.prefix, concurrency) as process:
            cpu_us = follow(bootstrap, names, process, tasks)
        found = rate(bootstrap, names, tasks)
        raws += [raw_loop(bootstrap, names, raw.status, tasks) for _ in range(RAW_RUNS - 1)]
    return {
        **beside_raw(found, cpu_us, raws),
        "submit_per_s": round(submit_per_s),
        "handler": handler,
        "tasks": tasks,
        "partitions": partitions,
    }


def beside_raw(found: Mapping[str, Any], cpu_us: float, raws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a worker beside those of the fastest raw loop. found: of `rate`; cpu_us: of a task."""
    best = fastest(raws)
    return {
        "tasks_per_s": round(found["tasks_per_s"]),
        "raw_tasks_per_s": round(best["tasks_per_s"]),
        "ratio": round(found["tasks_per_s"] / best["tasks_per_s"], 3),
        "cpu_us_per_task": round(cpu_us, 1),
        "raw_cpu_us_per_task": round(best["cpu_us_per_task"], 1),
        "raw_runs_per_s": [round(raw["tasks_per_s"]) for raw in raws],
        "event_bytes": round(found["event_bytes"]),
        "raw_event_bytes": round(best["event_bytes"]),
    }


def fastest(raws: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The raw loop that counts."""
    return max(raws, key=lambda raw: float(raw["tasks_per_s"]))


async def submit(bootstrap: str, names: TopicNames, tasks: int, task_type: str) -> float:
    """The backlog; returns requests a second, acknowledged."""
    return await submit_all(
        load_settings(bootstrap_servers=bootstrap, prefix=names.prefix),
        (
            {"task_type": task_type, "parameters": parameters(i, task_type), "priority": i % 10 + 1}
            for i in range(tasks)
        ),
    )


async def submit_all(settings: Settings, requests: Iterable[dict[str, Any]]) -> float:
    """The same of any requests."""
    async with AsyncClient(settings=settings) as client:
        began_s = time.monotonic()
        tasks = await client.submit_bulk(requests)
        await client.flush(FLUSH_S)
        return tasks / (time.monotonic() - began_s)


def raw_loop(bootstrap: str, names: TopicNames, status: str, tasks: int, job: str = "noop") -> dict[str, Any]:
    """What benchmarks.raw says of this many of the requests. job: done in its loop, for each request."""
    command = [sys.executable, "-m", "benchmarks.raw", bootstrap, names.prefix, status, str(tasks), job]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if said.returncode:
        raise Failed(f"The raw loop failed:\n{said.stderr[-3_000:]}")
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def follow(
    bootstrap: str,
    names: TopicNames,
    process: OtherProcess | Sequence[OtherProcess],
    tasks: int,
    look: Callable[[int], None] = lambda _done: None,
) -> float:
    """Wait until all requests, this many, are committed as done. Returns the CPU time of the worker, or of all of them,
    without its start, µs a task. look: told how many are done, ten times a second."""
    processes = [process] if isinstance(process, OtherProcess) else list(process)
    goal = {place: end for place, end in topic_ends(kafka(bootstrap), names.requests).items() if end}
    # Not the admin client: asked of a broker that has never had a group it crashed the process (kafka/offset_queries.py).
    with contextlib.closing(takeover.reader(kafka(bootstrap), names.group)) as reader:
        return _follow(reader, goal, processes, tasks, look)


def _follow(
    reader: Consumer,
    ends: Mapping[Place, int],
    processes: Sequence[OtherProcess],
    tasks: int,
    look: Callable[[int], None],
) -> float:
    places = [TopicPartition(*place) for place in ends]
    seen = [psutil.Process(process.pid) for process in processes]
    first: tuple[int, float] | None = None
    done, moved_s = 0, time.monotonic()
    while done < tasks:
        time.sleep(LOOK_S)
        for process in processes:
            process.check()
        try:
            listed = reader.committed(places, timeout=ANSWER_S)
        except KafkaException:
            listed = []  # a new broker makes its offsets topic first; whoever never answers is a stall
        at = sum(max(part.offset, 0) for part in listed)
        cpu_s = sum(sum(one.cpu_times()[:2]) for one in seen)
        look(at)
        if at > done:
            first = first or (at, cpu_s)
            done, moved_s = at, time.monotonic()
        elif time.monotonic() - moved_s > STALL_S:
            raise Failed(
                f"{done} of {tasks} tasks are done, and for {STALL_S:g} s no other one. {_stalled(listed, ends, processes)}"
            )
    assert first is not None, "no task, no figure"
    return (cpu_s - first[1]) / max(tasks - first[0], 1) * 1e6


def _stalled(listed: list[TopicPartition], ends: Mapping[Place, int], processes: Sequence[OtherProcess]) -> str:
    """Where it stands: offsets (a marker may lie behind the last record) of their ends, with what the worker noted there."""
    places = ", ".join(
        f"{part.topic}[{part.partition}] {part.offset} of {ends[part.topic, part.partition]} {part.metadata!r}"
        for part in listed
        if part.offset < ends[part.topic, part.partition]
    )
    logs = "\n".join(process.said()[-2_000:] for process in processes)
    return f"Committed: {places}. The worker said:\n{logs}"


def rate(bootstrap: str, names: TopicNames, tasks: int) -> dict[str, float]:
    """Tasks a second between the first and the last terminal event; those of the first moment are not counted."""
    counts: Counter[str] = Counter()
    ends: Counter[int] = Counter()  # terminal events by their time, ms
    size = 0
    for records in status_records(bootstrap, names):
        for record in records:
            status = status_of(record)
            counts[status] += 1
            size += len(record.value or b"")
            if status == "completed":
                ends[record.timestamp_ms] += 1
    check_histories(counts, tasks)
    began, ended = min(ends), max(ends)
    counted = tasks - ends[began]
    return {"tasks_per_s": counted / max(ended - began, 1) * 1_000, "event_bytes": size / (3 * tasks)}
