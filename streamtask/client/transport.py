"""How the records of a client travel: the protocol that AsyncClient is written against, and its Kafka implementation.

The other implementation is in memory (streamtask/testing/memory_transport.py), for tests without a broker. What a
request must look like, what an error says and what a wait means is decided above this border, once for both.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from streamtask.codec.formats import Encoder
from streamtask.schema_registry import Formats

if TYPE_CHECKING:
    from streamtask.client.build import Prepared, Record
    from streamtask.client.sending import Delivered
    from streamtask.client.tracking import Mark, Track
    from streamtask.config import Settings, TopicNames
    from streamtask.domain.model import TaskResponse


class RecordSender(Protocol):
    """Sends the records of one client. sending.py documents what each method guarantees."""

    async def requests(self, prepared: list[Prepared], topics: TopicNames) -> list[Delivered]: ...

    async def cancel(self, task_id: str, reason: str | None, topics: TopicNames, encoder: Encoder) -> None: ...

    def load(self, topic: str, record: Record) -> bool: ...

    async def go(self) -> None: ...

    async def drain(self, timeout: float | None) -> bool: ...

    def take_failures(self) -> tuple[int, str]: ...

    async def close(self) -> None: ...


class EventWatch(Protocol):
    """Follows the status events of tasks for one client. watching.py documents what each method guarantees."""

    async def before_submit(self) -> Mark | None: ...

    def track(self, task_id: str) -> Track: ...

    async def follow(self, task_id: str, since: Mark | None) -> Track: ...

    def leave_behind(self) -> None: ...

    async def close(self) -> None: ...


class Transport(Protocol):
    """Opens what one client needs, on its event loop."""

    @property
    def encoder_ready(self) -> Encoder | None:
        """The encoder of the records, if it is known without asking a schema registry."""

    def encoder(self) -> Encoder:
        """`encoder_ready`, or else an encoder with the schema ids of the registry; blocks. Raises ClusterError."""

    async def open_sender(self) -> RecordSender:
        """Raises TopicsMissing, NotAllowed or Unreachable when requests could not be sent."""

    def open_watch(self) -> EventWatch: ...

    async def find_request(self, task_id: str) -> TaskResponse | None:
        """The task as CREATED, if a request with this (canonical) id exists."""

    def now_s(self) -> float:
        """The clock of the timeouts of waits, in seconds."""

    def wall_s(self) -> float:
        """The clock of the times in requests, in seconds since 1970."""

    def close(self) -> None: ...


class KafkaTransport:
    """Sends to and reads from the topics of `settings`, on its broker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._formats = Formats(settings)

    @property
    def encoder_ready(self) -> Encoder | None:
        return self._formats.encoder_ready

    def encoder(self) -> Encoder:
        return self._formats.encoder()

    async def open_sender(self) -> RecordSender:
        from streamtask.client.sending import Sender

        sender = Sender(self._settings.kafka_for("client"))
        try:
            await sender.check(self._settings.topics.requests[0])
        except BaseException:
            await sender.close()
            raise
        return sender

    def open_watch(self) -> EventWatch:
        from streamtask.client.watching import StatusWatch

        return StatusWatch(self._settings.kafka_for("client"), self._settings.topics.status, self._formats.insisting)

    async def find_request(self, task_id: str) -> TaskResponse | None:
        from streamtask.projection.topic_scan import find_request

        return await asyncio.to_thread(find_request, self._settings, task_id)

    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def close(self) -> None:
        self._formats.close()
