"""Tasks at a steady rate, whether they are answered or not: what `latency --rate` times.

    event loop   the library's client: every TICK_S the requests that are due, `submit_many` of them; no tick waits for another
    reader       a thread with a tail of the status topic, read committed: when each terminal event came

A task is timed from when it was due, so that whoever is late (client, broker or worker) is in the figure. The first
WARM_UP_S do not count. Client and reader share one process, which shares the cores with the worker and the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from benchmarks.app import parameters
from benchmarks.stand import Failed, OtherProcess, kafka
from streamtask.client import AsyncClient
from streamtask.codec import peek_status
from streamtask.config import TopicNames
from streamtask.kafka.tail import Tail
from streamtask.worker.process import tame_collector

WARM_UP_S = 2.0
TICK_S = 0.01  # 50 requests at 5,000 a second; at 5 ms the broker had twice as many batches, of one or two requests
WAIT_S = 60.0
RECORDS_MAX = 500  # more at once would hold the interpreter, and the client with it

Took = dict[str, tuple[float, float, float]]  # {task_id: (submitted or due, acknowledged, ended)}, ms on the wall clock


def load(
    bootstrap: str, names: TopicNames, process: OtherProcess, *, rate: float, tasks: int
) -> tuple[Took, dict[str, Any]]:
    """What became of the tasks behind the warm-up, this many, and further figures. Raises Failed."""
    tame_collector()  # as in a worker: a walk over what is kept here would be in the figure
    seen = psutil.Process(process.pid)
    warm_up = round(rate * WARM_UP_S)
    with _reading(bootstrap, names) as reader:
        began_s, cpu_s, own_s = time.monotonic(), sum(seen.cpu_times()[:2]), time.process_time()
        sent = asyncio.run(_submit(bootstrap, names, rate, warm_up + tasks))
        took_s = time.monotonic() - began_s
        reader.wait_for(len(sent))
        cpu_s = sum(seen.cpu_times()[:2]) - cpu_s
        own_s = time.process_time() - own_s
        took = {task_id: (*times, reader.ended_ms[task_id]) for task_id, times in sent[warm_up:]}
    return took, {
        "rate_per_s": rate,
        "submitted_per_s": round(len(sent) / took_s),
        "cpu_us_per_task": round(cpu_s / len(sent) * 1e6, 1),
        "client_us_per_task": round(own_s / len(sent) * 1e6, 1),
    }


async def _submit(bootstrap: str, names: TopicNames, rate: float, tasks: int) -> list[tuple[str, tuple[float, float]]]:
    """(task_id, (due, acknowledged)) in the order in which they were due."""
    sent: list[list[tuple[str, tuple[float, float]]]] = []
    async with AsyncClient(bootstrap, prefix=names.prefix) as client, asyncio.TaskGroup() as group:
        await client.submit_many([])  # it has connected

        async def tick(place: int, first: int, count: int, due_ms: float) -> None:
            receipts = await client.submit_many(
                {"task_type": "stamp", "parameters": parameters(number), "priority": number % 10 + 1}
                for number in range(first, first + count)
            )
            acknowledged_ms = time.time() * 1_000
            sent[place] = [(receipt.task_id, (due_ms, acknowledged_ms)) for receipt in receipts]

        began_s, began_ms, first = time.monotonic(), time.time() * 1_000, 0
        while first < tasks:
            turn = len(sent) + 1
            count = min(round(turn * TICK_S * rate), tasks) - first
            sent.append([])
            if count:
                group.create_task(tick(turn - 1, first, count, began_ms + turn * TICK_S * 1_000), name=f"tick-{turn}")
            first += count
            await asyncio.sleep(max(began_s + (turn + 1) * TICK_S - time.monotonic(), 0))
    return [one for part in sent for one in part]


class Reader:
    """Notes when the terminal event of each task came."""

    def __init__(self, bootstrap: str, names: TopicNames) -> None:
        self.ended_ms: dict[str, float] = {}
        self._tail = Tail(kafka(bootstrap), [names.status])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._tail.close()

    def wait_for(self, tasks: int) -> None:
        """Raises Failed when not all of them have ended in time."""
        deadline = time.monotonic() + WAIT_S
        while len(self.ended_ms) < tasks:
            if time.monotonic() > deadline:
                raise Failed(f"{len(self.ended_ms)} of {tasks} tasks have ended: the rate is more than is done here.")
            time.sleep(TICK_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            records = self._tail.poll(RECORDS_MAX, 0.1)
            now_ms = time.time() * 1_000
            for record in records:
                event = peek_status(record.value or b"")
                if event["status"] == "completed":
                    self.ended_ms[event["task_id"]] = now_ms


@contextlib.contextmanager
def _reading(bootstrap: str, names: TopicNames) -> Iterator[Reader]:
    reader = Reader(bootstrap, names)
    reader.start()
    try:
        yield reader
    finally:
        reader.stop()
