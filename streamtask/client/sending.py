"""Sends records to the broker: some are awaited, some are only counted.

Everything that the client sends, and that the query service sends on behalf of others, goes through here: requests,
cancel requests, and the errors for records that the broker does not accept.

    event loop:   deliver → ClientProducer.send, one countdown per call
    poll thread:  delivery reports → one call_soon_threadsafe for all reports that have arrived
    bulk:         a buffer per topic; while a thread sends one load, the next load is filled

Always true: every record that is handed over gets a report, delivered or not; nothing is dropped when queues are full:
the caller waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from streamtask.client.build import Prepared, Record, spans_end_on_error, traced
from streamtask.codec.formats import Encoder
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import ControlAction, ControlMessage
from streamtask.errors import NotAllowed, RequestRefused, SubmitError, Unreachable
from streamtask.kafka.producer import ClientProducer, Delivery, QueueFull
from streamtask.observability import tracing

HeaderList = list[tuple[str, bytes]]
Outgoing = tuple[str, bytes, bytes, HeaderList | None]  # topic, key, value, headers

LOOK_FIRST = (
    "Before you submit it again, look whether it arrived (client.status, GET /tasks/{task_id}): a second request with that "
    "task_id does not run while the first is open, but it does once the first has ended."
)
_LOOK = "List the missing ACLs: streamtask doctor --role producer"
ROOM_S = 0.005  # interval of checks whether a full queue has room: the queue holds two seconds of sending at full speed
BULK_LOAD_MAX = 20_000  # records of the bulk path that wait to be sent; beyond this the caller waits
BULK_BYTES_MAX = 16_000_000  # and their bytes; as many again are being handed over, and librdkafka holds 128 MB
CLOSE_S = 35.0  # in addition to the delivery timeout, after which every record has been reported


class Delivered(NamedTuple):
    """The outcome of a record. `error` None: all in-sync replicas have the record at partition, offset."""

    partition: int
    offset: int
    error: str | None = None
    too_large: bool = False
    denied: bool = False


class _Countdown:
    """The records of one call. The poll thread fills `places`; the loop fills those that could not be sent."""

    __slots__ = ("expected", "future", "places", "reports")

    def __init__(self, count: int, future: asyncio.Future[None]) -> None:
        self.places: list[Delivered | None] = [None] * count
        self.expected = -1  # number of reports to wait for; unknown until all records are handed over
        # One item per report. A list, not a counter: while the client closes, two threads serve reports (poll and flush),
        # and a lost `+= 1` would leave this call waiting for ever.
        self.reports: list[None] = []
        self.future = future

    def finish_if_complete(self) -> None:
        """Called on the loop."""
        if len(self.reports) == self.expected and not self.future.done():
            self.future.set_result(None)


class Sender:
    """Sends the records of one client; belongs to the event loop that created it."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._loop = asyncio.get_running_loop()
        # A single submit is sent at once; under load, records share a batch because other requests are in flight.
        self._producer = ClientProducer(kafka, linger_ms=0)
        self._done: deque[_Countdown] = deque()
        self._waking = False
        self._load: dict[str, list[Record]] = {}
        self._loaded = 0
        self._loaded_bytes = 0
        self._pump: asyncio.Task[None] | None = None
        self._failed = 0
        self._why = ""
        self._failing = threading.Lock()  # guards the two above: flush(timeout) takes them while a load is being sent
        self._topics: TopicNames | None = None
        self._names: tuple[str, ...] = ()

    async def check(self, topic: str) -> None:
        """Raises TopicsMissing, NotAllowed or Unreachable, which would otherwise show after the delivery timeout."""
        try:
            await asyncio.to_thread(self._producer.partitions, topic)
        except Unreachable as error:
            raise Unreachable(f"{str(error).rstrip('.')}. Nothing was sent.") from None

    # --- Awaited ------------------------------------------------------------------------------------------------------

    async def requests(
        self, prepared: list[Prepared], topics: TopicNames, *, from_http: bool = False
    ) -> list[Delivered]:
        """`deliver` requests, each in its band, with their spans. from_http: another service sent them over HTTP."""
        if self._topics is not topics:
            self._topics, self._names = topics, topics.requests  # building the names takes 1 us each time
        names = self._names
        if not tracing.active():
            return await self.deliver([(names[one.band], one.key, one.value, one.headers) for one in prepared])
        prepared = traced(prepared, topics, from_http=from_http)
        with spans_end_on_error(prepared):
            places = await self.deliver([(names[one.band], one.key, one.value, one.headers) for one in prepared])
        for one, place in zip(prepared, places, strict=True):
            if one.span is not None:
                one.span.end(place.partition, place.offset, place.error)
        return places

    async def cancel(self, task_id: str, reason: str | None, topics: TopicNames, encoder: Encoder) -> None:
        """Write a cancel request to the control topic; returns when it is acknowledged. Raises SubmitError, NotAllowed."""
        message = ControlMessage(
            task_id=task_id, action=ControlAction.CANCEL, created_at=datetime.now(UTC), reason=reason
        )
        topic = topics.control
        (place,) = await self.deliver([(topic, task_id.encode(), encoder.control(topic, message), None)])
        if place.denied:
            raise NotAllowed(
                f"The cancel request for task {task_id} was refused: this client may not write to {topic}. {_LOOK}"
            )
        if place.error is not None:
            raise SubmitError(f"The cancel request for task {task_id} was not acknowledged: {place.error}. Try again.")

    async def deliver(self, records: Sequence[Outgoing]) -> list[Delivered]:
        """Send records in order; returns when each is acknowledged or has failed."""
        countdown = _Countdown(len(records), self._loop.create_future())
        places, send = countdown.places, self._producer.send
        handed = 0
        for index, (topic, key, value, headers) in enumerate(records):
            report = functools.partial(self._report, countdown, index)
            while True:
                try:
                    send(topic, key, value, headers, on_delivery=report, block_s=0)
                    handed += 1
                except QueueFull:
                    await asyncio.sleep(ROOM_S)
                    continue
                except SubmitError as error:
                    places[index] = Delivered(-1, -1, str(error), _is_too_large(str(error)))
                break
        countdown.expected = handed
        countdown.finish_if_complete()
        await countdown.future
        if self._producer.denied:
            places = [place._replace(denied=True) if place is not None and place.error else place for place in places]
        return [place for place in places if place is not None]

    def _report(self, countdown: _Countdown, index: int, delivery: Delivery) -> None:
        """Called on the poll thread."""
        _, partition, offset, error, code = delivery
        if error is None:
            countdown.places[index] = Delivered(partition, offset)
        else:
            denied = code == "TOPIC_AUTHORIZATION_FAILED"
            countdown.places[index] = Delivered(partition, offset, error, _is_too_large(code), denied)
        countdown.reports.append(None)
        # `expected` is read after the report is added; the loop sets `expected`, then reads the reports: one sees the end.
        if countdown.expected == len(countdown.reports):
            self._done.append(countdown)
            if not self._waking:
                self._waking = True
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: no caller is waiting any more
                    self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self._waking = False  # cleared before reading: a report that arrives now schedules another call
        while self._done:
            self._done.popleft().finish_if_complete()

    # --- Only counted -------------------------------------------------------------------------------------------------

    def load(self, topic: str, record: Record) -> bool:
        """Put a record on the next load, which `go` sends. False: the load is full, call `go` before the next record."""
        records = self._load.get(topic)
        if records is None:
            records = self._load[topic] = []
        records.append(record)
        self._loaded += 1
        self._loaded_bytes += len(record[1])
        return self._loaded_bytes < BULK_BYTES_MAX

    async def go(self) -> None:
        """Start sending the load; waits while too many records are loaded."""
        while True:
            if self._loaded and (self._pump is None or self._pump.done()):
                # The client owns it: drain and close await it.
                self._pump = self._loop.create_task(self._send_loads(), name="bulk")
            full = self._loaded >= BULK_LOAD_MAX or self._loaded_bytes >= BULK_BYTES_MAX
            await asyncio.sleep(ROOM_S if full else 0)
            if self._loaded < BULK_LOAD_MAX and self._loaded_bytes < BULK_BYTES_MAX:
                return

    async def _send_loads(self) -> None:
        while self._loaded:
            load, self._load, self._loaded, self._loaded_bytes = self._load, {}, 0, 0
            await asyncio.to_thread(self._send_load, load)

    def _send_load(self, load: dict[str, list[Record]]) -> None:
        for topic, records in load.items():
            left = iter(records)
            while True:
                try:
                    result = self._producer.produce_bulk(topic, left)
                except SubmitError as error:
                    self._fail(1, str(error))  # the record that raised; the following records are still in `left`
                    continue
                except Exception as error:  # noqa: BLE001 whatever it is, these records may not have been sent
                    self._fail(len(records), f"{type(error).__name__}: {error}")
                    break
                why = "not acknowledged in time" if result.pending else ""
                if result.errors:
                    why = ", ".join(f"{name}: {count}" for name, count in result.errors.items())
                self._fail(result.failed + result.pending, why)
                break

    def _fail(self, count: int, why: str) -> None:
        if count:
            with self._failing:
                self._failed, self._why = self._failed + count, why or self._why

    async def drain(self, timeout: float | None) -> bool:
        """Wait until everything loaded was reported. False: `timeout` seconds were not enough."""
        try:
            async with asyncio.timeout(timeout):
                while self._loaded or (self._pump is not None and not self._pump.done()):
                    await self.go()
                    if self._pump is not None:
                        await asyncio.shield(self._pump)
        except TimeoutError:
            return False
        return True

    def take_failures(self) -> tuple[int, str]:
        """Returns (number of bulk records that failed since the last call, the reason)."""
        with self._failing:
            taken = self._failed, self._why
            self._failed, self._why = 0, ""
        return taken

    async def close(self) -> None:
        await self.drain(CLOSE_S)
        await asyncio.to_thread(self._producer.close)


def failure_of(failed: list[tuple[str, Delivered]], total: int) -> SubmitError | RequestRefused | NotAllowed | None:
    """The error for these failures (of `total` requests), which names their task_ids; None when there are none."""
    if not failed:
        return None
    task_ids = tuple(task_id for task_id, _ in failed)
    first = failed[0][1]
    if all(place.denied for _, place in failed):
        how_many = "The request was" if total == 1 else f"{len(failed)} of {total} requests were"
        return NotAllowed(f"{how_many} refused: this client may not write to the topic. {_LOOK}")
    if all(place.too_large for _, place in failed):
        text = f"Request refused: larger than the broker accepts ({first.error})."
        if total > 1:
            text = f"{len(failed)} of {total} requests refused: larger than the broker accepts ({first.error})."
        return RequestRefused(text, fields={"parameters": "too large"})
    if total == 1:
        text = f"The request of task {task_ids[0]} was not acknowledged: {first.error}."
    else:
        text = f"{len(failed)} of {total} requests were not acknowledged. First error: {first.error}."
    return SubmitError(f"{text} {LOOK_FIRST}", task_ids=task_ids)


def _is_too_large(text: str) -> bool:
    return "MSG_SIZE_TOO_LARGE" in text
