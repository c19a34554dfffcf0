"""Finds dead letters on a real cluster for POST /tasks/{id}/redrive, and sends them again as new requests."""

from __future__ import annotations

import asyncio

from streamtask.codec.reader import PLAIN, Reader
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import RequestRecord, now_ms
from streamtask.errors import RequestRefused, SubmitError
from streamtask.kafka.admin import partition_count
from streamtask.redrive import Builder, Redrive, Refusal
from streamtask.redrive.run import find_letter, send, too_large


class KafkaRedriver:
    """redrive.Redriver on a real cluster. Every call opens its own clients, because redrives by hand are rare."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, cluster: str, reader: Reader = PLAIN) -> None:
        self._kafka = kafka
        self._names = names
        self._cluster = cluster
        self._reader = reader

    async def find(self, task_id: str, origin: str) -> Redrive | Refusal | None:
        return await asyncio.to_thread(self._find, task_id, origin)

    def _find(self, task_id: str, origin: str) -> Redrive | Refusal | None:
        letter = find_letter(self._kafka, self._names, task_id, origin)
        return None if letter is None else self._builder().build(letter, now_ms())

    async def send(self, item: Redrive) -> RequestRecord:
        return await asyncio.to_thread(self._send, item)

    def _send(self, item: Redrive) -> RequestRecord:
        ((_, delivery),) = send(self._kafka, [item])
        if delivery.error is None:
            return self._builder().record(item, delivery.offset, now_ms())
        if too_large(delivery):
            raise RequestRefused(f"The request is larger than the broker accepts: {delivery.error}.")
        raise SubmitError(
            f"Kafka did not accept task {item.task_id}: {delivery.error}. Try again: it will not run twice."
        )

    def _builder(self) -> Builder:
        return Builder(self._names, self._cluster, partition_count(self._kafka, self._names), self._reader)
