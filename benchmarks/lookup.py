"""`GET /tasks/{id}` of the query service, beside the least that granian answers in the same minute to the same client.

    closed loop   32 connections ask as fast as they are answered: the view, the bare server, twice in turn; the best of each
    open loop     a third of the view's rate while events flow in at a steady rate: p50 and p99 from the moment each was due

The client is one more process on the same cores (http_load.py): both servers share them with it.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.app import TASK_TYPES
from benchmarks.http_load import closed_loop, open_loop
from benchmarks.latency import quantile
from benchmarks.stand import bare_server, fair_threads, query_service, topics
from benchmarks.throughput import submit
from benchmarks.written import Task, Writer, event, requested, write_histories
from streamtask.config import TopicNames

CONNECTIONS = 32
SECONDS = 4.0
ROUNDS = 2
LOADED = 1 / 3  # of the view's rate; at half of it, client, view, writer and broker need more than two cores
EVENTS_PER_S = 5_000
TICK_S = 0.01


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. concurrency is of no use here."""
    with topics(bootstrap, "bench", partitions) as names:
        asyncio.run(submit(bootstrap, names, tasks, TASK_TYPES["async"]))
        written = list(requested(bootstrap, names))
        write_histories(bootstrap, names, written)
        paths = [f"/tasks/{one.task_id}" for one in written]
        with query_service(bootstrap, names.prefix) as view:
            view.until_ready()
            size = len(httpx.get(view.url + paths[0]).raise_for_status().content)
            with bare_server(size) as bare:
                views, bares = [], []
                for _ in range(ROUNDS):
                    views.append(_rate(view.url, paths))
                    bares.append(_rate(bare, ["/tasks/x"]))
            rate = max(views) * LOADED
            with fair_threads(), _flowing(bootstrap, names, written) as flow:
                waits = asyncio.run(open_loop(view.url, paths, connections=CONNECTIONS, rate=rate, seconds=SECONDS * 2))
            lag = httpx.get(f"{view.url}/health").raise_for_status().json()["lag_records"]
    return {
        "p50_ms": round(quantile(waits, 0.5), 2),
        "p99_ms": round(quantile(waits, 0.99), 2),
        "ratio": round(max(views) / max(bares), 3),
        "lookups_per_s": round(max(views)),
        "bare_per_s": round(max(bares)),
        "view_runs_per_s": [round(one) for one in views],
        "bare_runs_per_s": [round(one) for one in bares],
        "loaded_rate_per_s": round(rate),
        "events_per_s": round(flow.per_s()),
        "lag_records": lag,
        "body_bytes": size,
        "tasks": tasks,
        "partitions": partitions,
    }


def _rate(url: str, paths: list[str]) -> float:
    return asyncio.run(closed_loop(url, paths, connections=CONNECTIONS, seconds=SECONDS))


class Flow:
    """Events that are written at a steady rate from a thread, until stop()."""

    def __init__(self, bootstrap: str, names: TopicNames, tasks: list[Task], rate: float) -> None:
        self._writer = Writer(bootstrap, names.status)
        self._tasks, self._rate = itertools.cycle(tasks), rate
        self._stopping = threading.Event()
        self._written = 0
        self._took_s = 0.0
        self._thread = threading.Thread(target=self._run, name="flow")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Raises Failed when not all were acknowledged."""
        self._stopping.set()
        self._thread.join()
        self._writer.flush()

    def per_s(self) -> float:
        """As they were written."""
        return self._written / self._took_s

    def _run(self) -> None:
        began_s = time.monotonic()
        while not self._stopping.wait(TICK_S):
            for _ in range(round((time.monotonic() - began_s) * self._rate) - self._written):
                task = next(self._tasks)
                self._writer.write(task.task_id, event(task, "completed"), task.partition)
                self._written += 1
            self._writer.producer.poll(0)
        self._took_s = time.monotonic() - began_s


@contextmanager
def _flowing(bootstrap: str, names: TopicNames, tasks: list[Task]) -> Iterator[Flow]:
    flow = Flow(bootstrap, names, tasks, EVENTS_PER_S)
    flow.start()
    try:
        yield flow
    finally:
        flow.stop()
