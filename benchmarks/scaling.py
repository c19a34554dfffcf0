"""What grows when something else does: tasks a second, and the worker's CPU a task, along one axis after the other.

    processes  1, 2 … N worker processes, N = cores, at least 2
    backlog    20,000, 100,000 and 400,000 requests before one process
    window     10, 100 and 1,000 async slots
    types      1, 20 and 200 task types in turn, of an app that has 200
    payload    parameters of 100 B, 2 KB and 20 KB that do not compress
    format     JSON; then Avro, requests as well as events
    handlers   coroutine, thread, process

The workers own their shards before there is any request: all of them are written in one transaction, and its commit starts
the run. Its rate is counted between the moment when the last of the workers had its first terminal event and the moment when
the first of them had its last, so that all of them worked in it; CPU is that of the worker processes (their children: the
axis `handlers` alone) from the commit to the last task. A run before the first one warms the broker up.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.app import TASK_TYPES, parameters
from benchmarks.many import NAMES
from benchmarks.stand import APP, LOOK_S, READY_S, Failed, OtherProcess, check_histories, status_records, topics, worker
from benchmarks.throughput import follow
from benchmarks.written import Writer
from streamtask.client.build import prepare
from streamtask.codec import peek_status
from streamtask.codec.avro import RESPONSE
from streamtask.codec.reader import PLAIN
from streamtask.config import TopicNames, load_settings
from streamtask.config.container import cores
from streamtask.schema_registry import Formats

WINDOW = 1_000
FIGURES = ("tasks_per_s", "cpu_us_per_task")
TRIES, AGAIN_S = 50, 0.1  # the last few ends are committed a moment after their offsets are counted
TEXT_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. `share`: its tasks, as a share of those that were asked for."""

    value: int | str
    share: float
    processes: int = 1
    window: int = WINDOW
    types: tuple[str, ...] = ("noop",)
    payload_bytes: int = 0
    app: str = APP
    format: str = "json"


def _axes() -> dict[str, list[Run]]:
    """Of 60,000 tasks."""
    many = Run(value=0, share=2 / 3, app="benchmarks.many:app")
    return {
        "processes": [Run(value=n, share=1, processes=n) for n in range(1, max(cores().count, 2) + 1)],
        "backlog": [Run(value=of, share=of / 60_000) for of in (20_000, 100_000, 400_000)],
        "window": [Run(value=of, share=1 / 3, window=of) for of in (10, 100, 1_000)],
        "types": [replace(many, value=of, types=NAMES[:of]) for of in (1, 20, 200)],
        "payload": [
            Run(value=of, share=1 / 3, types=("payload_20k",), payload_bytes=of) for of in (100, 2_000, 20_000)
        ],
        "format": [Run(value=of, share=2 / 3, format=of) for of in ("json", "avro")],
        "handlers": [Run(value=kind, share=1 / 3, types=(TASK_TYPES[kind],)) for kind in TASK_TYPES],
    }


AXES = tuple(_axes())


def measure(
    bootstrap: str, *, tasks: int, concurrency: int, partitions: int, axis: str | None = None
) -> dict[str, Any]:
    """The figures; see the module. axis: this one alone."""
    chosen = {name: runs for name, runs in _axes().items() if axis in (None, name)}
    measured(bootstrap, Run(value="warm-up", share=1 / 3), tasks, partitions)
    axes = {name: [measured(bootstrap, run, tasks, partitions) for run in runs] for name, runs in chosen.items()}
    return {
        "axes": axes,
        "to_first": {
            name: {row["value"]: {one: round(row[one] / rows[0][one], 2) for one in FIGURES} for row in rows[1:]}
            for name, rows in axes.items()
        },
        "tasks": tasks,
        "partitions": partitions,
    }


def measured(bootstrap: str, run: Run, tasks: int, partitions: int) -> dict[str, Any]:
    tasks = max(round(tasks * run.share), 10)
    with topics(bootstrap, "scaling", partitions) as names, contextlib.ExitStack() as stack:
        held = stack.enter_context(held_back(bootstrap, names, run, tasks))
        processes = [
            stack.enter_context(worker(bootstrap, names.prefix, run.window, app=run.app, FORMAT=run.format))
            for _ in range(run.processes)
        ]
        own_all(processes, partitions)
        before_s = cpu_time_s(processes)
        held()
        follow(bootstrap, names, processes, tasks)
        cpu_s = cpu_time_s(processes) - before_s
        per_s = _rate(bootstrap, names, tasks, run)
    return {
        "value": run.value,
        "tasks_per_s": round(per_s),
        "cpu_us_per_task": round(cpu_s / tasks * 1e6, 1),
        "tasks": tasks,
    }


# --- The backlog ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_back(bootstrap: str, names: TopicNames, run: Run, tasks: int) -> Iterator[Callable[[], object]]:
    """All requests, in a transaction that what is yielded commits: workers that read committed see none before."""
    encoder = Formats(load_settings(bootstrap_servers=bootstrap, prefix=names.prefix, format=run.format)).encoder()
    writers = [
        Writer(bootstrap, topic, f"{names.prefix}.{secrets.token_hex(4)}", minutes=10) for topic in names.requests
    ]
    for writer in writers:
        writer.producer.begin_transaction()
    for number in range(tasks):
        task_type = run.types[number % len(run.types)]
        if run.payload_bytes:
            given = parameters(number) | {"payload": _text(number, run.payload_bytes)}
        else:
            given = parameters(number, task_type)
        request = {"task_type": task_type, "parameters": given, "priority": number % 10 + 1}
        one = prepare(request, names, None, encoder)
        writers[one.band].write(one.task_id, one.value)
    for writer in writers:
        writer.flush()

    def let_go() -> None:
        for writer in writers:
            writer.producer.commit_transaction()

    yield let_go


def _text(number: int, size: int) -> str:
    return base64.b64encode(random.Random(number).randbytes(size // 4 * 3)).decode()


# --- The workers ------------------------------------------------------------------------------------------------------


def own_all(processes: list[OtherProcess], partitions: int) -> None:
    """Wait until each of them has shards, and all of them together have all."""
    deadline = time.monotonic() + READY_S
    while True:
        held = [owned(process.said()) for process in processes]
        if all(held) and sum(map(len, held)) == partitions:
            return
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise Failed(f"After {READY_S:g} s the workers own {held} of {partitions} shards.")
        time.sleep(LOOK_S)


def owned(log: str) -> set[int]:
    """The shards that a worker owns, by its log: from their claim until it says otherwise."""
    found: set[int] = set()
    for line in log.splitlines():
        if '"shards_' in line and line.endswith("}"):
            said = json.loads(line)
            match said["event"]:
                case "shards_claimed":
                    found |= set(said["shards"])
                case "shards_revoked" | "shards_lost":
                    found -= set(said["shards"])
    return found


def cpu_time_s(processes: list[OtherProcess]) -> float:
    """Of these processes and of the children that they have now."""
    own = [psutil.Process(process.pid) for process in processes]
    return sum(sum(one.cpu_times()[:2]) for root in own for one in (root, *root.children(recursive=True)))


def _rate(bootstrap: str, names: TopicNames, tasks: int, run: Run) -> float:
    """Tasks a second while all workers worked. Raises Failed, also when a history is not complete."""
    for _ in range(TRIES):
        counts: Counter[str] = Counter()
        ends: Counter[int] = Counter()  # by their time, ms
        times: dict[str, list[int]] = {}  # {worker: first, last}
        for records in status_records(bootstrap, names):
            for record in records:
                event = peek_status(PLAIN.json(RESPONSE, record.value or b""))
                counts[event["status"]] += 1
                if event["status"] == "completed":
                    ends[record.timestamp_ms] += 1
                    first, last = times.get(event["worker"], (record.timestamp_ms, record.timestamp_ms))
                    times[event["worker"]] = [min(first, record.timestamp_ms), max(last, record.timestamp_ms)]
        if counts["completed"] >= tasks:
            break
        time.sleep(AGAIN_S)
    check_histories(counts, tasks)
    began, ended = max(first for first, _ in times.values()), min(last for _, last in times.values())
    if len(times) != run.processes or (ended <= began and run.processes > 1):
        raise Failed(f"{len(times)} of {run.processes} workers worked, and not at one time: give more --tasks.")
    counted = sum(count for at, count in ends.items() if began < at <= ended)
    return counted / max(ended - began, 1) * 1_000


# --- For people -------------------------------------------------------------------------------------------------------


def text(found: Mapping[str, Any]) -> str:
    """A table of each axis."""
    console = Console(file=io.StringIO(), width=TEXT_WIDTH, color_system=None)
    for axis, rows in found["axes"].items():
        table = Table(
            axis, "tasks", "tasks/s", "of the first", "CPU µs a task", "of the first", box=None, pad_edge=False
        )
        first = rows[0]
        for row in rows:
            per_s, cpu_us = row["tasks_per_s"], row["cpu_us_per_task"]
            ratios = f"{per_s / first['tasks_per_s']:.2f}", f"{cpu_us / first['cpu_us_per_task']:.2f}"
            value = f"{row['value']:,}" if isinstance(row["value"], int) else row["value"]
            table.add_row(value, f"{row['tasks']:,}", f"{per_s:,}", ratios[0], f"{cpu_us:.1f}", ratios[1])
        console.print(table)
        console.print()
    return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]
