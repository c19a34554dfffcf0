"""From the commit of a transaction to the view that shows it, while events flow at the rate of 5,000 tasks a second.

A writer commits the three events of its tasks in transactions, as a worker does, without being one. In every transaction one
task is asked for by a long poll that has been waiting: timed from the return of the commit to the answer in the client's
hands. The client reads bytes: a general one takes a millisecond of each answer, and its eight answers come at once.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from benchmarks.http_load import length_of
from benchmarks.latency import quantile
from benchmarks.stand import Failed, fair_threads, query_service, topics
from benchmarks.written import STEPS, Task, Writer, event
from streamtask.config import TopicNames
from streamtask.domain.identity import Origin, new_task_id

TASKS_PER_S = 5_000
PERIOD_S = 0.02  # between two commits
PROBES = 8  # long polls at once
WAIT_S = 30.0
WARM_UP = 50


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. tasks: look-ups that count."""
    with (
        topics(bootstrap, "bench", partitions) as names,
        query_service(bootstrap, names.prefix) as view,
        fair_threads(),
        _committing(bootstrap, names, partitions) as stream,
    ):
        view.until_ready()
        took = asyncio.run(_look(view.url, stream, WARM_UP + tasks))[WARM_UP:]
        lag = httpx.get(f"{view.url}/health").raise_for_status().json()["lag_records"]
    return {
        "p50_ms": round(quantile(took, 0.5), 1),
        "p99_ms": round(quantile(took, 0.99), 1),
        "events_per_s": round(stream.per_s()),
        "transactions_per_s": round(stream.commits_per_s()),
        "lag_records": lag,
        "tasks": len(took),
        "partitions": partitions,
    }


class Stream:
    """Commits the events of new tasks at a steady rate. `probes` are tasks whose end comes in the next transaction."""

    def __init__(self, bootstrap: str, names: TopicNames, partitions: int) -> None:
        self._writer = Writer(bootstrap, names.status, f"{names.prefix}.{secrets.token_hex(4)}")
        self._partitions = partitions
        self._lock = threading.Lock()
        self._probes: list[tuple[Task, asyncio.Future[float]]] = []
        self._number = self._commits = self._events = 0
        self._began_s = self._took_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream")
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def new_task(self) -> Task:
        with self._lock:
            self._number += 1
            partition = self._number % self._partitions
            origin = str(Origin("high", partition, self._number))
        return Task(new_task_id(), partition, origin, 9, time.time_ns() // 1_000_000)

    def end(self, task: Task, committed: asyncio.Future[float]) -> None:
        """Its end is in the next transaction; `committed` is told when that was committed, on the monotonic clock."""
        with self._lock:
            self._probes.append((task, committed))

    def per_s(self) -> float:
        return self._events / self._took_s

    def commits_per_s(self) -> float:
        return self._commits / self._took_s

    def _run(self) -> None:
        try:
            self._began_s = time.monotonic()
            while not self._stopping.is_set():
                self._commit()
                due_s = self._began_s + self._commits * PERIOD_S
                self._stopping.wait(max(due_s - time.monotonic(), 0.0))
        except BaseException as error:  # noqa: BLE001 told to who looks
            self.failure = error
        finally:
            self._took_s = time.monotonic() - self._began_s

    def _commit(self) -> None:
        producer, writer = self._writer.producer, self._writer
        with self._lock:
            probes, self._probes = self._probes, []
        wanted = round((time.monotonic() - self._began_s + PERIOD_S) * TASKS_PER_S) - self._events // len(STEPS)
        tasks = [self.new_task() for _ in range(min(max(wanted, 1), TASKS_PER_S))]
        producer.begin_transaction()
        for status in STEPS:
            for task in tasks:
                writer.write(task.task_id, event(task, status), task.partition)
        for task, _ in probes:
            writer.write(task.task_id, event(task, "completed"), task.partition)
        writer.flush()
        producer.commit_transaction(WAIT_S)
        now = time.monotonic()
        self._commits += 1
        self._events += len(tasks) * len(STEPS)
        for _, committed in probes:
            committed.get_loop().call_soon_threadsafe(committed.set_result, now)


@contextmanager
def _committing(bootstrap: str, names: TopicNames, partitions: int) -> Iterator[Stream]:
    stream = Stream(bootstrap, names, partitions)
    stream.start()
    try:
        yield stream
    finally:
        stream.stop()
    if stream.failure is not None:
        raise Failed(f"The writer failed: {stream.failure}")


async def _look(url: str, stream: Stream, count: int) -> list[float]:
    """Milliseconds of each."""
    took: list[float] = []
    place = urlsplit(url)

    async def one_after_the_other() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            while len(took) < count:
                took.append(await _one(reader, writer, place.netloc, stream))
        finally:
            writer.close()

    await asyncio.gather(*(one_after_the_other() for _ in range(PROBES)))
    return took


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, stream: Stream) -> float:
    """A long poll for the end of a task, and then its end."""
    task = stream.new_task()
    writer.write(f"GET /tasks/{task.task_id}?wait={WAIT_S:g} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    await asyncio.sleep(PERIOD_S)  # the long poll waits in the service by then; if it did not, it would take longer
    committed: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    stream.end(task, committed)
    head = await reader.readuntil(b"\r\n\r\n")
    seen_s = time.monotonic()
    body = await reader.readexactly(length_of(head) or 0)
    if not head.startswith(b"HTTP/1.1 200") or orjson.loads(body)["status"] != "completed":
        raise Failed(f"{WAIT_S:g} s after its end was written the view does not show it: it is behind. {body[:300]!r}")
    return (seen_s - await committed) * 1_000
