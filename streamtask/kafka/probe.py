"""Checks whether a partition accepts records, by a transaction that is always aborted, separate from those of the worker.

The partition receives what the worker would send: a record in a transaction, acknowledged by all in-sync replicas. The abort
hides it from every reader. A probe has its own producer, transactional id and thread, because the markers of a transaction on
a sick partition cannot be written: its id is stuck until the partition recovers (measured: abort_transaction and
init_transactions of that id do not return until then).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from streamtask.config import TopicNames
from streamtask.config.kafka import SOCKET_TIMEOUT_MS, KafkaSettings
from streamtask.domain.ports import LETTERS, Place
from streamtask.kafka.faults import error_of
from streamtask.kafka.transaction import new_transactional_id

PROBES_AT_ONCE = 4  # each is a client with its connections; more probes wait
INIT_S, ANSWER_S, ABORT_S = 10.0, 5.0, 1.0  # nothing waits for them
# A transaction that a probe leaves open blocks readers of its partition for at most this long. It must not be below the
# socket timeout: librdkafka refuses that.
TRANSACTION_MS = SOCKET_TIMEOUT_MS
KEY, VALUE = b"streamtask.probe", b"{}"


class Probes:
    """The probes of one worker process. `ask` and `answers` are for its owner thread."""

    def __init__(self, settings: KafkaSettings, names: TopicNames, slot: str | int) -> None:
        self._settings, self._names, self._slot = settings, names, slot
        self._waiting: dict[Place, None] = {}
        self._running: set[Place] = set()
        self._answers: queue.SimpleQueue[tuple[Place, str | None]] = queue.SimpleQueue()  # bounded by _running

    def ask(self, places: Iterable[Place]) -> None:
        """Probe these places; a place that is being probed is not probed twice."""
        self._waiting.update(dict.fromkeys(place for place in places if place not in self._running))
        self._begin()

    def answers(self) -> list[tuple[Place, str | None]]:
        """(place, None if it accepts records, otherwise why not), each once."""
        if not self._running:
            return []
        found = []
        while True:
            try:
                place, why = self._answers.get_nowait()
            except queue.Empty:
                break
            self._running.discard(place)
            found.append((place, why))
        self._begin()
        return found

    def _begin(self) -> None:
        while self._waiting and len(self._running) < PROBES_AT_ONCE:
            place = next(iter(self._waiting))
            del self._waiting[place]
            self._running.add(place)
            threading.Thread(target=self._run, args=(place,), name="probe", daemon=True).start()

    def _run(self, place: Place) -> None:
        clients: list[Producer] = []
        try:
            why = self._probe(place, clients)
        except Exception as error:  # noqa: BLE001 a place without an answer would never be probed again
            why = str(error_of(error) or error)
        self._answers.put((place, why))
        clients.clear()  # only now: closing a client may block for as long as its partition accepts no records

    def _probe(self, place: Place, clients: list[Producer]) -> str | None:
        failed: dict[int, KafkaError] = {}
        settings = self._settings.transactional(new_transactional_id(self._names.group, f"{self._slot}-probe"))
        settings |= {"transaction.timeout.ms": TRANSACTION_MS, "message.timeout.ms": TRANSACTION_MS}
        producer = Producer(settings | {"on_delivery": lambda error, message: _note(failed, error, message)})
        clients.append(producer)
        topic = self._names.dead if place[0] == LETTERS else self._names.status
        producer.init_transactions(INIT_S)
        there = _partitions(producer, topic)
        if not there:
            return f"{topic} does not exist"
        if place[0] == LETTERS and place[1] not in there:
            numbers = (
                there  # all of the topic; or the topic was recreated without this partition, so no letter must avoid it
            )
        else:
            numbers = [place[1]]
        producer.begin_transaction()
        for number in numbers:
            producer.produce(topic, VALUE, KEY, number)
        deadline = time.monotonic() + ANSWER_S
        while producer.flush(0.1) and time.monotonic() < deadline and len(failed) < len(numbers):
            pass
        producer.purge(in_queue=True, in_flight=True, blocking=False)
        producer.flush(0.2)
        if len(failed) < len(numbers):  # all but one may be sick if any of them will do
            self._abort(producer)
            return None
        return _why(producer, topic, place[1]) or str(next(iter(failed.values())).name())

    @staticmethod
    def _abort(producer: Producer) -> None:
        try:
            producer.abort_transaction(ABORT_S)
        except KafkaException:
            pass  # its timeout ends it


def _note(failed: dict[int, KafkaError], error: KafkaError | None, message: Any) -> None:
    if error is not None:
        failed[message.partition()] = error


def _partitions(producer: Producer, topic: str) -> list[int]:
    found = producer.list_topics(topic, timeout=ANSWER_S).topics.get(topic)
    return sorted(found.partitions) if found is not None and found.error is None else []


def _why(producer: Producer, topic: str, number: int) -> str:
    """What the cluster says about the partition, for the operator; "" if it reports no problem."""
    try:
        found = producer.list_topics(topic, timeout=ANSWER_S).topics.get(topic)
    except KafkaException as error:
        return str(error_of(error))
    if found is None or found.error is not None:
        return f"{topic}: {found.error.name() if found is not None else 'unknown'}"
    part = found.partitions.get(number)
    if part is None:
        return "" if number < 0 else f"{topic} has no partition {number}"
    if part.leader < 0:
        return f"no leader; replicas {part.replicas}"
    if len(part.isrs) < len(part.replicas):
        return f"in-sync replicas {part.isrs} of {part.replicas}"
    return part.error.name() if part.error is not None else ""
