"""A view without Kafka: the real service, store and routes over a log that the test writes by hand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import orjson
from fastapi import FastAPI

from streamtask.client.build import prepare
from streamtask.codec import encode_control, encode_status
from streamtask.config import TopicNames
from streamtask.domain.identity import Origin
from streamtask.domain.model import ControlAction, ControlMessage, StatusEvent, TaskRequest, TaskStatus
from streamtask.errors import StreamtaskError
from streamtask.projection.store import MemoryStore, Partition, Store
from streamtask.projection.view import OnGap, ViewService
from streamtask.query_service.hosts import Hosts
from streamtask.query_service.http import create_app

NAMES = TopicNames("t")
PARTITIONS = 2
T0 = 1_790_000_000_000
CLUSTER = "test-cluster"
_TICK = threading.Event()  # never set


class LogRecord(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Log:
    """Topics in memory; a Source of the view. `hold` keeps its records from the reader until `release`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: dict[Partition, list[LogRecord]] = {
            (topic, number): []
            for topic in (*NAMES.requests, NAMES.status, NAMES.control)
            for number in range(PARTITIONS)
        }
        self._positions: dict[Partition, int] = dict.fromkeys(self._records, 0)
        self._held = False
        self.batches: list[int] = []
        self.open_transaction: dict[Partition, int] = {}  # records at the end that cannot be read yet
        self.broken: Exception | None = None
        self.is_stale = False
        self.opened = 0
        self.pasts = 0
        self.log_starts: dict[Partition, int] = {}  # where a log begins that has lost its beginning

    # the test's side

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
        timestamp_ms: int = T0,
    ) -> int:
        with self._changed:
            records = self._records[topic, partition]
            records.append(LogRecord(topic, partition, len(records), timestamp_ms, key, value, headers))
            self._changed.notify_all()
            return len(records) - 1

    def hold(self) -> None:
        with self._changed:
            self._held = True

    def release(self) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def go_stale(self) -> None:
        with self._changed:
            self._positions = dict.fromkeys(self._records, 0)
            self.is_stale = True
            self._changed.notify_all()

    def request(self, band: int, partition: int, document: Mapping[str, Any], **more: Any) -> Origin:
        offset = self.append(NAMES.requests[band], partition, orjson.dumps(document), **more)
        return Origin(NAMES.bands[band].name, partition, offset)

    def status(self, task_id: str, status: str, origin: Origin, **more: Any) -> int:
        """Returns the version that the view gives it."""
        at_ms = more.pop("updated_ms", T0 + 1_000)
        event = StatusEvent(task_id, origin.partition, TaskStatus(status), T0, at_ms, str(origin), **more)
        value = encode_status(event, locale="en", worker="w")
        return self.append(NAMES.status, origin.partition, value, task_id.encode()) + 1

    def past(self, places: Mapping[Partition, int], on_gap: OnGap) -> Past:
        """A second reader, from these offsets on."""
        self.pasts += 1
        return Past(self, places, on_gap)

    # Source

    def open(self) -> Log:
        self.opened += 1
        self.is_stale = False
        return self

    def poll(self, records_max: int, timeout_s: float, bytes_max: int | None = None) -> Sequence[LogRecord]:
        deadline = time.monotonic() + min(timeout_s, 0.02)  # so that a test ends at once
        with self._changed:
            while True:
                if self.broken is not None:
                    raise self.broken
                batch = [] if self._held or self.is_stale else self._take(records_max, bytes_max or 1 << 62)
                left = deadline - time.monotonic()
                if batch or left <= 0:
                    if batch:
                        self.batches.append(len(batch))
                    return batch
                self._changed.wait(left)

    def _take(self, records_max: int, bytes_max: int) -> list[LogRecord]:
        batch: list[LogRecord] = []
        size = 0
        for place, records in self._records.items():
            readable = len(records) - self.open_transaction.get(place, 0)
            part: list[LogRecord] = []
            for record in records[self._positions[place] : readable][: records_max - len(batch)]:
                if size >= bytes_max:
                    break
                size += len(record.value or b"")
                part.append(record)
            batch += part
            self._positions[place] += len(part)
        return batch

    def positions(self) -> Mapping[Partition, int]:
        with self._changed:
            return dict(self._positions)

    def ends(self) -> Mapping[Partition, int]:
        with self._changed:
            return {place: len(held) - self.open_transaction.get(place, 0) for place, held in self._records.items()}

    def high_watermarks(self) -> Mapping[Partition, int]:
        with self._changed:
            return {place: len(held) for place, held in self._records.items()}

    def stale(self) -> bool:
        return self.is_stale

    def close(self) -> None:
        """Nothing to close."""


class Past(Log):
    """Reads the records of another Log."""

    def __init__(self, log: Log, places: Mapping[Partition, int], on_gap: OnGap) -> None:
        super().__init__()
        self._changed = log._changed
        self._records = {place: log._records[place] for place in places}
        self._positions = dict(places)
        self.open_transaction = log.open_transaction
        for place, wanted in places.items():
            found = log.log_starts.get(place, 0)
            if wanted < found:
                self._positions[place] = found
                on_gap(place, wanted, found)


class Placed(NamedTuple):
    task_id: str
    band: str
    partition: int
    offset: int


class LogSubmitter:
    """Writes into the Log what the client would write into Kafka."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.refusal: StreamtaskError | None = None
        self.cancelled: list[tuple[str, str | None]] = []

    async def submit(self, request: TaskRequest, headers: dict[str, str]) -> Placed:
        if self.refusal is not None:
            raise self.refusal
        made = prepare(request, NAMES, headers)
        offset = self._log.append(NAMES.requests[made.band], 1, made.value, made.key, tuple(made.headers or ()))
        return Placed(made.task_id, NAMES.bands[made.band].name, 1, offset)

    async def cancel(self, task_id: str, reason: str | None) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.cancelled.append((task_id, reason))
        message = ControlMessage(task_id=task_id, action=ControlAction.CANCEL, reason=reason)
        self._log.append(NAMES.control, 0, encode_control(message), task_id.encode())


class Bench(NamedTuple):
    log: Log
    store: Store
    service: ViewService
    submitter: LogSubmitter
    http: httpx.AsyncClient
    app: FastAPI

    async def until_ready(self) -> None:
        async with asyncio.timeout(60):
            await self.service.caught_up.wait()

    async def until_read(self) -> None:
        """Everything in the log is in the store."""
        ends = {place: end for place, end in self.log.ends().items() if end}
        await until(lambda: self.store.offsets().items() >= ends.items())


async def until(seen: Callable[[], bool]) -> None:
    """Within ten seconds."""
    async with asyncio.timeout(60):
        while not seen():
            await asyncio.to_thread(_TICK.wait, 0.001)  # another thread's doing: there is no event for every fact


async def until_waiting(view: Bench, count: int) -> None:
    """So many requests wait."""
    await until(lambda: view.service.watchers.count >= count)


@asynccontextmanager
async def bench(
    log: Log | None = None, store: Store | None = None, *, api_key: str | None = None, body_bytes_max: int = 100_000
) -> AsyncIterator[Bench]:
    log = log or Log()
    store = store or MemoryStore()
    service = ViewService(store, log.open, NAMES, CLUSTER, open_past=log.past)
    submitter = LogSubmitter(log)
    hosts = Hosts(allowed=["view.test"])
    app = create_app(service, submitter, api_key=api_key, body_bytes_max=body_bytes_max, hosts=hosts)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://view.test") as http:
        yield Bench(log, store, service, submitter, http, app)
