"""The idempotent producer of clients: requests and control messages, acknowledged by all in-sync replicas.

It has two paths with one contract. `send` reports each record to its own callback; `produce_bulk` only counts, which makes it
several times as fast. Always true: each record is reported exactly once, delivered or not; a full queue drops nothing: the
caller waits or gets an error. Any thread may call it; callbacks run on the poll thread.

A librdkafka client may keep the leaders of a topic that was deleted and recreated for as long as it lives, and deliver nothing
to some partitions (tests/contract/test_topics_made_anew.py). So once a record has timed out, the next one goes through a new
client; the old one reports what it still holds, and is dropped. The same applies to a bulk producer after a fatal error. A
record that the old one still holds may be overtaken by a later one with the same key, unless the caller waits for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streamtask.config.kafka import KafkaSettings
from streamtask.errors import SubmitError
from streamtask.kafka.connection_errors import DENIED, Heard, failed, refuse_absent
from streamtask.kafka.faults import error_of, is_lost

HeaderList = list[tuple[str, bytes]]
POLL_S = 0.1
ERRORS_KEPT_MAX = 20
TIMED_OUT = "_MSG_TIMED_OUT"
FLUSHES_MAX = 10  # of a producer that raises an error each time


class Delivery(NamedTuple):
    """The fate of one record. `error` is None when every in-sync replica has it; otherwise `code` names the error."""

    topic: str
    partition: int
    offset: int
    error: str | None = None
    code: str = ""


@dataclass(slots=True)
class BulkResult:
    """sent: records handed over; failed: those not acknowledged (some may be in the log anyway); errors: {name: count} of
    the failed; pending: not yet reported at the deadline.
    """

    sent: int = 0
    failed: int = 0
    pending: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class QueueFull(SubmitError):
    """The producer's queue is full and the caller did not want to wait. Nothing was sent."""


class ClientProducer:
    """Sends records. Use it as a context manager, or call close().

    linger_ms  0: a single record leaves at once; 5: many share a batch
    """

    def __init__(self, settings: KafkaSettings, *, linger_ms: int = 5) -> None:
        self._settings = settings
        self._linger_ms = linger_ms
        self.denied = False  # it may not write to any topic: an idempotent producer does not recover from that
        self._heard = Heard(settings.on_error)
        self._producer = self._client()
        self._retired: list[Producer] = []  # they still report what they hold
        self._renewing = threading.Lock()
        self._timed_out = False  # whether a record of the present client has timed out
        self._bulk: Producer | None = None
        self._bulk_lock = threading.Lock()
        self._bulk_result = BulkResult()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="client-producer", daemon=True)
        self._thread.start()

    def _client(self) -> Producer:
        return Producer(self._settings.idempotent(linger_ms=self._linger_ms) | {"error_cb": self._heard})

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._poll(self._producer, POLL_S)
            for producer in list(self._retired):
                self._poll(producer, 0)
                if len(producer) == 0:
                    self._retired.remove(producer)

    def _poll(self, producer: Producer, timeout_s: float) -> None:
        try:
            producer.poll(timeout_s)  # callbacks run inside
        except (KafkaException, SystemError) as error:
            if not self._noted(error):
                raise

    def _noted(self, error: BaseException) -> bool:
        """Take note of an error that was raised while reports were served. False: it is unknown.

        A fatal error is raised once, from whatever is served next; the reports of its records follow, and every later send
        refuses.
        """
        held = error_of(error)
        if held is not None:
            self.denied = self.denied or held.code() in DENIED
        return held is not None or is_lost(error)

    def _flush(self, producer: Producer, deadline: float) -> tuple[int, bool]:
        """Flush until time.monotonic() is at the deadline. Returns how many records are not reported then, and whether the
        producer is broken.
        """
        broken = False
        for _ in range(FLUSHES_MAX):
            try:
                return producer.flush(max(deadline - time.monotonic(), 0)), broken
            except (KafkaException, SystemError) as error:
                self._noted(error)
                broken = True
        return len(producer), broken

    def _renew(self) -> None:
        with self._renewing:
            if self._timed_out and not self.denied:
                self._retired.append(self._producer)
                self._producer = self._client()
                self._timed_out = False

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: HeaderList | None = None,
        *,
        partition: int | None = None,
        on_delivery: Callable[[Delivery], None] | None = None,
        block_s: float = 10.0,
    ) -> None:
        """Hand one record over.

        on_delivery  called once from the poll thread, unless this call raises; it must neither raise nor block
        block_s      how long to wait for room in the queue; 0: not at all

        Raises QueueFull, or SubmitError if the record cannot be sent as it is (too large, no such topic).
        """
        if self._timed_out:
            self._renew()
        producer = self._producer
        report = self._reporter(on_delivery, producer) if on_delivery is not None else None
        more: dict[str, Any] = {"headers": headers, "on_delivery": report}
        self._hand_over(producer, time.monotonic() + block_s, topic, value, key, partition, more)
        if producer is not self._producer:  # replaced meanwhile by another thread, and dropped if it was empty
            with self._renewing:
                if producer not in self._retired:
                    self._retired.append(producer)

    def _hand_over(
        self,
        producer: Producer,
        deadline: float,
        topic: str,
        value: bytes,
        key: bytes | None,
        partition: int | None,
        more: dict[str, Any],
    ) -> None:
        while True:
            try:
                producer.produce(topic, value, key, -1 if partition is None else partition, **more)
                return
            except BufferError:
                if time.monotonic() >= deadline:
                    raise QueueFull(
                        "The producer's queue is full: requests are sent faster than the broker accepts them."
                    ) from None
                # Lingering batches leave and reports are served: both make room.
                self._flush(producer, time.monotonic() + 0.05)
            except KafkaException as error:
                raise SubmitError(f"{topic}: the record was not sent: {_text(error_of(error), error)}") from None

    def _reporter(
        self, on_delivery: Callable[[Delivery], None], producer: Producer
    ) -> Callable[[KafkaError | None, Message], None]:
        def report(error: KafkaError | None, message: Message) -> None:
            topic, partition, offset = message.topic() or "", message.partition(), message.offset()
            place = (topic, -1 if partition is None else partition, -1 if offset is None else offset)
            if error is None:
                on_delivery(Delivery(*place))
                return
            why = ""
            if error.code() == KafkaError._MSG_TIMED_OUT:
                self._timed_out = self._timed_out or producer is self._producer
                why = self._heard.why()
            on_delivery(Delivery(*place, error.str() + why, error.name()))

        return report

    def produce_bulk(
        self,
        topic: str,
        records: Iterable[tuple[bytes | None, bytes, HeaderList | None]],
        *,
        partition: int | None = None,
        timeout_s: float = 60.0,
    ) -> BulkResult:
        """Send (key, value, headers) records in order and wait until each is acknowledged or refused.

        Raises QueueFull or SubmitError at a record that could not be handed over; the records before it are still sent.
        """
        deadline = time.monotonic() + timeout_s
        with self._bulk_lock:  # one call at a time: failures are counted, not distinguished
            producer = self._bulk
            if producer is None:
                settings = self._settings.idempotent(reports=False, linger_ms=max(self._linger_ms, 5))
                producer = self._bulk = Producer(settings | {"on_delivery": self._count_failure})
            result = self._bulk_result = BulkResult()
            number = -1 if partition is None else partition
            produce: Callable[..., None] = producer.produce
            sent = 0
            for key, value, headers in records:
                try:
                    produce(topic, value, key, number, headers=headers)
                except (BufferError, KafkaException):
                    self._hand_over(producer, deadline, topic, value, key, partition, {"headers": headers})
                sent += 1
            result.sent = sent
            result.pending, broken = self._flush(producer, max(deadline, time.monotonic() + 0.05))
            if (TIMED_OUT in result.errors and not result.pending) or broken:
                self._bulk = None  # see the module docstring
            return result

    def _count_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        result, name = self._bulk_result, error.name()
        result.failed += 1
        if name in result.errors or len(result.errors) < ERRORS_KEPT_MAX:
            result.errors[name] = result.errors.get(name, 0) + 1

    def flush(self, timeout_s: float) -> int:
        """Wait until everything sent is reported. Returns how many records are not."""
        deadline = time.monotonic() + timeout_s
        return sum(self._flush(one, deadline)[0] for one in (self._producer, *self._retired))

    def partitions(self, topic: str, timeout_s: float = 10.0) -> int:
        """The number of partitions of the topic. Raises TopicsMissing, NotAllowed, Unreachable."""
        try:
            known = self._producer.list_topics(topic, timeout=timeout_s).topics
        except KafkaException as error:
            raise failed(f"no broker of {self._settings.bootstrap} answered", error, self._heard) from None
        refuse_absent(known, [topic])
        return len(known[topic].partitions)

    def close(self, timeout_s: float = 10.0) -> int:
        """Flush and stop. Returns how many records were not reported by then."""
        left = self.flush(timeout_s)
        if self._bulk is not None:
            left += self._flush(self._bulk, time.monotonic() + (timeout_s if left == 0 else 0))[0]
        self._closing.set()
        self._thread.join(POLL_S * 10)
        return left

    def __enter__(self) -> ClientProducer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _text(held: KafkaError | None, error: BaseException) -> str:
    return f"{held.name()}: {held.str()}" if held is not None else str(error)
