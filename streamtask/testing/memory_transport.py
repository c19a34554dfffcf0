"""The client's connection to the worker in memory: an implementation of Transport without a broker (client/transport.py).

As a broker would, it refuses a request that is larger than Kafka's default limit for a message; nothing else can fail.
Always true: only its client's event loop touches a Track, which gets each event once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from weakref import WeakValueDictionary

from streamtask.client.build import Prepared, Record
from streamtask.client.sending import Delivered
from streamtask.client.tracking import Mark, Track
from streamtask.client.transport import EventWatch, RecordSender
from streamtask.codec.formats import Encoder
from streamtask.config import TopicNames
from streamtask.domain.model import TaskResponse
from streamtask.errors import StreamtaskError
from streamtask.kafka.admin_session import MESSAGE_MAX_BYTES
from streamtask.testing.memory_worker import SHARD, MemoryWorker, Published, call_soon


class MemoryTransport:
    """The Transport of one client."""

    def __init__(self, worker: MemoryWorker, topics: TopicNames) -> None:
        self._worker, self._topics = worker, topics

    @property
    def encoder_ready(self) -> Encoder:
        return self.encoder()

    def encoder(self) -> Encoder:
        return Encoder()

    async def open_sender(self) -> RecordSender:
        return _Sender(self._worker, self._topics)

    def open_watch(self) -> EventWatch:
        return _Watch(self._worker)

    async def find_request(self, task_id: str) -> TaskResponse | None:
        return self._worker.find_request(task_id)

    def now_s(self) -> float:
        return self._worker.now().mono_ms / 1_000

    def wall_s(self) -> float:
        return self._worker.now().wall_ms / 1_000

    def close(self) -> None:
        """There is nothing to close."""


class _Sender:
    def __init__(self, worker: MemoryWorker, topics: TopicNames) -> None:
        self._worker = worker
        self._band_of = {topic: band for band, topic in enumerate(topics.requests)}
        self._load: list[tuple[int, Record]] = []
        self._failed = 0

    async def requests(self, prepared: list[Prepared], topics: TopicNames) -> list[Delivered]:
        fit = [one for one in prepared if _fits(one.value)]
        offsets = iter(self._worker.append([(one.band, one.key, one.value, one.headers) for one in fit]))
        large = Delivered(-1, -1, "MSG_SIZE_TOO_LARGE", too_large=True)
        return [Delivered(SHARD, next(offsets)) if _fits(one.value) else large for one in prepared]

    async def cancel(self, task_id: str, reason: str | None, topics: TopicNames, encoder: Encoder) -> None:
        self._worker.cancel(task_id)

    def load(self, topic: str, record: Record) -> bool:
        self._load.append((self._band_of[topic], record))
        return True

    async def go(self) -> None:
        load, self._load = self._load, []
        fit = [(band, *record) for band, record in load if _fits(record[1])]
        self._failed += len(load) - len(fit)
        self._worker.append(fit)

    async def drain(self, timeout: float | None) -> bool:
        await self.go()
        return True

    def take_failures(self) -> tuple[int, str]:
        failed, self._failed = self._failed, 0
        return failed, f"MSG_SIZE_TOO_LARGE: {failed}"

    async def close(self) -> None:
        """There is nothing to flush: a submit_bulk that was interrupted has already sent its load."""


def _fits(value: bytes) -> bool:
    return len(value) < MESSAGE_MAX_BYTES


class _Track(Track):
    """Its deadlines are on the worker's clock, which may skip while a caller waits."""

    __slots__ = ("_worker",)

    def __init__(self, task_id: str, worker: MemoryWorker) -> None:
        super().__init__(task_id)
        self._worker = worker

    def limit(self, deadline: float | None) -> AbstractAsyncContextManager[object]:
        return self._worker.waiting(self.task_id, self.seen, deadline)


class _Watch:
    """The EventWatch of one client; belongs to the event loop on which it was created."""

    def __init__(self, worker: MemoryWorker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._tracks: WeakValueDictionary[str, _Track] = WeakValueDictionary()
        worker.subscribe(self)

    async def before_submit(self) -> Mark:
        return {SHARD: self._worker.events_end}

    def track(self, task_id: str) -> Track:
        track = self._tracks.get(task_id)
        if track is None:
            track = self._tracks[task_id] = _Track(task_id, self._worker)
        return track

    async def follow(self, task_id: str, since: Mark | None) -> Track:
        track = self.track(task_id)
        start = 0 if since is None else since[SHARD]
        for offset, task in self._worker.events(task_id):
            if offset >= start:
                track.offer(offset, task)
        track.gap = False
        return track

    def leave_behind(self) -> None:
        """Never called: a client in memory does not survive a fork, because its worker has threads too."""

    async def close(self) -> None:
        self._worker.unsubscribe(self)
        self._break_off(StreamtaskError("The client was closed while a call was waiting."))

    def published(self, events: Sequence[Published]) -> None:
        call_soon(self._loop, partial(self._deliver, events))

    def ended(self, error: StreamtaskError) -> None:
        call_soon(self._loop, partial(self._break_off, error))

    def _deliver(self, events: Sequence[Published]) -> None:
        for offset, task in events:
            track = self._tracks.get(task.task_id)
            if track is not None:
                track.offer(offset, task)

    def _break_off(self, error: StreamtaskError) -> None:
        for track in list(self._tracks.values()):
            track.break_off(error)
