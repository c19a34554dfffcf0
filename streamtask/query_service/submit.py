"""POST on its way to Kafka: one request or one cancel, acknowledged by all in-sync replicas or refused in time.

The client's own `prepare` and `Sender` make and send the record, so a request looks the same in the topic whether it
came over HTTP or from a client. This module adds the time limit after which the caller gets an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self

from streamtask.client.build import prepare
from streamtask.client.sending import LOOK_FIRST, Sender, failure_of
from streamtask.codec.formats import Encoder
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import TaskRequest
from streamtask.errors import SubmitError

ACKNOWLEDGED_S = 10.0  # a broker fails over within seconds; an HTTP caller should get an error rather than wait longer


class Placed(NamedTuple):
    """The position of a submitted request."""

    task_id: str
    band: str
    partition: int
    offset: int


class KafkaSubmitter:
    """http.Submitter on a real cluster. Enter it in the event loop that uses it."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, encoder: Encoder | None = None) -> None:
        self._encoder = encoder or Encoder()
        self._kafka = kafka
        self._names = names
        self._sender: Sender | None = None

    async def __aenter__(self) -> Self:
        self._sender = Sender(self._kafka)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._sender is not None, "__aenter__ made it"
        await self._sender.close()

    async def submit(self, request: TaskRequest, headers: dict[str, str]) -> Placed:
        """Raises RequestRefused (nothing was sent) or SubmitError (it may or may not be stored)."""
        made = prepare(request, self._names, headers, self._encoder)
        again = f"It is task {made.task_id}. {LOOK_FIRST}"
        async with self._in_time(f"The request of task {made.task_id}", again) as sender:
            (place,) = await sender.requests([made], self._names, from_http=True)
        failure = failure_of([(made.task_id, place)] if place.error is not None else [], 1)
        if failure is not None:
            raise failure
        return Placed(made.task_id, self._names.bands[made.band].name, place.partition, place.offset)

    async def cancel(self, task_id: str, reason: str | None) -> None:
        """Raises SubmitError."""
        async with self._in_time(f"The cancel request for task {task_id}", "Ask again.") as sender:
            await sender.cancel(task_id, reason, self._names, self._encoder)

    @asynccontextmanager
    async def _in_time(self, what: str, advice: str) -> AsyncIterator[Sender]:
        """Raises SubmitError when the block takes longer than ACKNOWLEDGED_S."""
        assert self._sender is not None, "used outside of its block"
        try:
            async with asyncio.timeout(ACKNOWLEDGED_S):
                yield self._sender
        except TimeoutError:
            raise SubmitError(
                f"{what} was not acknowledged within {ACKNOWLEDGED_S:g} s; it may still arrive. {advice}"
            ) from None
