"""The client: submit requests, wait for results, read statuses, cancel.

It works with Kafka alone. With a `url`, everything except submitting goes through that query service; with a url and
no broker, submitting does too. It never writes to the status topic.

Always true: a submit returns when all in-sync replicas have the record, or raises; a refused request was not sent; a
client belongs to the event loop that used it first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from streamtask.client import forking
from streamtask.client.build import Prepared, Sources, bulk, prepare, prepare_arguments, spans_end_on_error, traced
from streamtask.client.nearby_ids import NearbyIds
from streamtask.client.receipt import Receipt
from streamtask.client.transport import KafkaTransport, Transport
from streamtask.codec.formats import Encoder
from streamtask.config import Settings, load_settings
from streamtask.domain.identity import Origin, canonical
from streamtask.domain.model import TaskRequest, TaskResponse
from streamtask.domain.options import Headers, SubmitOptions, request_fields
from streamtask.errors import (
    ConfigError,
    NotAllowed,
    RequestRefused,
    StreamtaskError,
    SubmitError,
    UnknownTask,
    WaitTimeout,
)
from streamtask.public import public

if TYPE_CHECKING:
    from streamtask.client.sending import Delivered
    from streamtask.client.service import ServiceLink, Version
    from streamtask.client.tracking import Mark, Track
    from streamtask.client.transport import EventWatch, RecordSender

PIPELINE_MAX = 10_000  # records of one submit_many that are in flight at once
BULK_SLICE = 500  # requests prepared before the event loop gets its turn: 5 ms


@public
class AsyncClient:
    """Submits tasks, waits for results, reads statuses and cancels tasks: everything a service does except running them.

        async with AsyncClient("127.0.0.1:9092") as client:
            receipt = await client.submit("file_census", {"path": "a.py"}, priority=8)
            census = await receipt.result(timeout=60)

    bootstrap, prefix, url  win over `settings`; what is not given comes from STREAMTASK_* variables, then streamtask.toml
    transport               how its records travel; by default through Kafka, at the bootstrap address
    """

    def __init__(
        self,
        bootstrap: str | None = None,
        *,
        prefix: str | None = None,
        url: str | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.settings = _settings(bootstrap, prefix, url, settings)
        self.topics = self.settings.topics
        if transport is None and self.settings.bootstrap_servers:
            transport = KafkaTransport(self.settings)
        if transport is None and not self.settings.url:
            self.settings.bootstrap()  # raises ConfigError, which says what to do
        self._transport = transport  # None: this client only sends and receives JSON over HTTP
        self._sender: RecordSender | None = None
        self._ids = NearbyIds()
        self._sources = self._make_sources()
        self._opening = asyncio.Lock()
        self._watch: EventWatch | None = None
        self._service: ServiceLink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        if transport is None or isinstance(transport, KafkaTransport):
            forking.survives_fork(self)

    def start_anew(self) -> None:
        """Called in a forked child (forking.py): from here on this client has its own connection, and its own event loop."""
        forking.keep(self._sender, self._watch, self._service, self._transport, self._loop)
        if self._watch is not None:
            self._watch.leave_behind()
        if self._transport is not None:
            self._transport = KafkaTransport(self.settings)
        self._ids = NearbyIds()  # a copy would make the parent's ids again
        self._sources = self._make_sources()
        self._opening = asyncio.Lock()
        self._sender = self._watch = self._service = self._loop = None

    def _make_sources(self) -> Sources:
        return Sources(time.time if self._transport is None else self._transport.wall_s, self._ids.new)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is still queued, then close. Can be called twice. Does not raise failures of submit_bulk; call flush."""
        if self._closed:
            return
        self._closed = True
        if self._sender is not None:
            await self._sender.close()
        if self._watch is not None:
            await self._watch.close()
        if self._service is not None:
            await self._service.close()
        if self._transport is not None:
            self._transport.close()

    # --- Submit -------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        task_type: str,
        parameters: Mapping[str, Any] | Any = None,
        **options: Unpack[SubmitOptions],
    ) -> Receipt:
        """Send one request; returns when all in-sync replicas have stored it.

        parameters  a mapping, or a pydantic model
        options     SubmitOptions lists them

        Raises RequestRefused (nothing was sent), SubmitError (it may or may not be stored), Unreachable, TopicsMissing.
        """
        fields = request_fields("submit()", options, SubmitOptions)
        headers = fields.pop("headers", None)
        encoder = await self._encoder()
        prepared = prepare_arguments(
            parameters, self.topics, headers, encoder, self._sources, task_type=task_type, **fields
        )
        return await self._submit(prepared)

    async def submit_request(self, request: TaskRequest | Mapping[str, Any], headers: Headers | None = None) -> Receipt:
        """`submit` a TaskRequest or a mapping of its fields (`timeout_seconds`, not `timeout`)."""
        return await self._submit(prepare(request, self.topics, headers, await self._encoder(), self._sources))

    async def submit_many(self, requests: Iterable[TaskRequest | Mapping[str, Any]]) -> list[Receipt]:
        """Send many requests at once; returns their receipts in order when the broker has stored all of them.

        Each is a TaskRequest or a mapping of its fields (`timeout_seconds`, not `timeout`). All are checked before the
        first one is sent. Raises RequestRefused, or SubmitError whose `task_ids` are the requests that were not
        acknowledged; the others are stored.
        """
        encoder = await self._encoder()
        prepared = [prepare(request, self.topics, None, encoder, self._sources) for request in requests]
        if self._transport is None:
            return [await self._submit_by_service(one) for one in prepared]
        receipts, failure = await self._send(prepared)
        if failure is not None:
            raise failure
        return receipts

    async def submit_bulk(self, requests: Iterable[TaskRequest | Mapping[str, Any]]) -> int:
        """Queue many requests without waiting for the broker; returns their number.

        Call `flush` to learn whether all arrived. Raises RequestRefused at the first invalid request; those before it
        are sent.
        """
        if self._transport is None:
            raise ConfigError(
                "Bulk submission needs a direct connection to Kafka. Set STREAMTASK_BOOTSTRAP_SERVERS or pass bootstrap."
            )
        sender, encoder = await self._request_sender(), await self._encoder()
        topics, load = self.topics.requests, sender.load
        count = 0
        try:
            # At random: a load fills the batches of all partitions anyway.
            for band, record in bulk(requests, self.topics, encoder, Sources(self._sources.clock)):
                light = load(topics[band], record)
                count += 1
                if not light or count % BULK_SLICE == 0:
                    await sender.go()
        finally:
            await sender.go()
        return count

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until all requests of submit_bulk are acknowledged. timeout: seconds.

        Raises SubmitError when requests failed since the last flush, or are not acknowledged after `timeout`.
        """
        if self._sender is None:
            return
        complete = await self._sender.drain(timeout)
        failed, why = self._sender.take_failures()
        if failed:
            raise SubmitError(f"{failed} request(s) were not acknowledged ({why}).")
        if not complete:
            raise SubmitError("Some requests are not acknowledged yet. Call flush again to wait for them.")

    async def _submit(self, one: Prepared) -> Receipt:
        if self._transport is None:
            return await self._submit_by_service(one)
        receipts, failure = await self._send([one])
        if failure is not None:
            raise failure
        return receipts[0]

    async def _send(
        self, prepared: list[Prepared]
    ) -> tuple[list[Receipt], SubmitError | RequestRefused | NotAllowed | None]:
        """Returns the receipts of the acknowledged records, in order, and the error for the others."""
        sender = await self._request_sender()
        mark: Mark | None = None
        watch = None
        if not self.settings.url:
            watch = self._status_watch()
            mark = await watch.before_submit()
        follow = watch if mark is None else None
        bands, ids = self.topics.bands, self._ids
        receipts: list[Receipt] = []
        failed: list[tuple[str, Delivered]] = []
        for start in range(0, len(prepared), PIPELINE_MAX):
            part = prepared[start : start + PIPELINE_MAX]
            tracks = [None if follow is None else follow.track(one.task_id) for one in part]
            places = await sender.requests(part, self.topics)
            for one, track, place in zip(part, tracks, places, strict=True):
                if place.error is not None:
                    failed.append((one.task_id, place))
                else:
                    name = bands[one.band].name
                    if place.partition >= ids.partitions:
                        ids.partitions = place.partition + 1
                    receipts.append(
                        Receipt(self, one.task_id, name, place.partition, place.offset, track=track, since=mark)
                    )
        if not failed:
            return receipts, None
        from streamtask.client.sending import failure_of  # inside the error path: even a repeated import takes 2.7 us

        return receipts, failure_of(failed, len(prepared))

    async def _submit_by_service(self, one: Prepared) -> Receipt:
        """POST /tasks: the query service sends the request to the broker."""
        (one,) = traced([one], self.topics)
        headers = {name: text.decode("latin-1") for name, text in one.headers or ()}
        with spans_end_on_error([one]):
            task, token = await self._query_service().submit(one.value, headers)
        if one.span is not None:
            one.span.end()
        origin = Origin.parse(token) or Origin.parse(task.origin or "")
        if origin is None:
            raise StreamtaskError(f"The query service accepted task {task.task_id} but did not report its position.")
        return Receipt(self, task.task_id, *origin)

    # --- Ask ----------------------------------------------------------------------------------------------------------

    async def wait(self, task_id: str | Receipt, timeout: float | None = None) -> TaskResponse:
        """Wait for the terminal event of a task, whatever its status. timeout: seconds. Raises WaitTimeout, UnknownTask.

        task_id  the id, or the task's Receipt (also in `status` and `events`): the answer is then at least as fresh as that
        """
        known, receipt = _known(task_id)
        if self.settings.url:
            deadline = None if timeout is None else time.monotonic() + timeout
            seen: Version | None = None
            while seen is None or not seen.task.ended:
                seen = await self._query_service().next(known, seen, deadline, token=_token(receipt))
            return seen.task
        deadline = None if timeout is None else self._log().now_s() + timeout
        try:
            async with asyncio.timeout(timeout):
                track = await self._track(known, receipt)
        except TimeoutError:
            raise WaitTimeout(f"Task {known} did not end within the timeout; it continues.") from None
        return await track.end(deadline)

    async def status(self, task_id: str | Receipt) -> TaskResponse:
        """The latest status of a task. Raises UnknownTask. Without a url it reads the topics, which takes longer."""
        known, receipt = _known(task_id)
        if self.settings.url:
            found = await self._query_service().get(known, token=_token(receipt))
            assert found is not None, "without after_version there is always an answer"
            return found.task
        track = await self._track(known, receipt)
        return track.latest if track.latest is not None else await self._created(known)

    def events(self, task_id: str | Receipt) -> AsyncIterator[TaskResponse]:
        """The known status of a task, then each event until the terminal one. Raises UnknownTask.

        With a url it follows the live stream of the query service (http://… by SSE, ws://… by WebSocket), and resumes
        at any replica when the connection breaks."""
        return self._events(*_known(task_id))

    async def cancel(self, task_id: str, reason: str | None = None) -> None:
        """Request the cancellation of a task; returns when the broker has acknowledged the request.

        It has no effect if the task's end was committed first. You can cancel any id, even before its request arrives.
        With a url, raises RequestRefused when the task has already ended."""
        known = _checked(task_id)
        if self.settings.url:
            await self._query_service().cancel(known, reason)
            return
        sender = await self._request_sender()
        await sender.cancel(known, reason, self.topics, await self._encoder())

    # --- Implementation -----------------------------------------------------------------------------------------------

    async def _events(self, task_id: str, receipt: Receipt | None) -> AsyncIterator[TaskResponse]:
        if self.settings.url:
            async with aclosing(self._query_service().events(task_id, token=_token(receipt))) as events:
                async for task in events:
                    yield task
            return
        # Follow first, then look back: past events are offered to the iterator, too.
        track = self._status_watch().track(task_id)
        follower = track.follow()
        await self._track(task_id, receipt)
        async for task in follower:
            yield task

    async def _track(self, task_id: str, receipt: Receipt | None) -> Track:
        """The track of a task that is known to exist. Raises UnknownTask."""
        watch = self._status_watch()
        if receipt is not None:
            return await receipt.followed(watch)
        track = await watch.follow(task_id, None)
        if track.latest is None:
            await self._created(task_id)
        return track

    async def _created(self, task_id: str) -> TaskResponse:
        """CREATED, as the view shows a request that has no event yet. Raises UnknownTask."""
        found = await self._log().find_request(task_id)
        if found is None:
            raise UnknownTask(f"No task {task_id} is known under prefix {self.topics.prefix}.")
        return found

    # --- Created on first use -----------------------------------------------------------------------------------------

    def _log(self) -> Transport:
        """The client's access to the records, for a client that works without a query service."""
        assert self._transport is not None, "a client has a transport or a url"
        return self._transport

    def _use(self) -> None:
        """Check, before every use, that the client is open and on the event loop that it belongs to."""
        if self._closed:
            raise StreamtaskError("This client is closed.")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        assert self._loop is loop, "an AsyncClient belongs to the event loop that used it first"

    async def _request_sender(self) -> RecordSender:
        self._use()
        if self._sender is not None:
            return self._sender
        async with self._opening:
            if self._sender is None:
                self._sender = await self._log().open_sender()
            return self._sender

    async def _encoder(self) -> Encoder:
        """The encoder of this client's records; the first call may have to ask the schema registry."""
        if self._transport is None:
            return Encoder()
        ready = self._transport.encoder_ready
        if ready is None:
            self._use()
            async with self._opening:
                ready = await asyncio.to_thread(self._transport.encoder)
        return ready

    def _status_watch(self) -> EventWatch:
        self._use()
        if self._watch is None:
            self._watch = self._log().open_watch()
        return self._watch

    def _query_service(self) -> ServiceLink:
        self._use()
        if self._service is None:
            from streamtask.client.service import ServiceLink

            self._service = ServiceLink(self.settings)
        return self._service


def _settings(bootstrap: str | None, prefix: str | None, url: str | None, settings: Settings | None) -> Settings:
    if settings is None:
        return load_settings(bootstrap_servers=bootstrap, prefix=prefix, url=url)
    given = {"bootstrap_servers": bootstrap, "prefix": prefix, "url": url}
    return settings.model_copy(update={name: value for name, value in given.items() if value is not None})


def _known(task: str | Receipt) -> tuple[str, Receipt | None]:
    """Returns (the task's id, its receipt if that was passed). Raises ConfigError."""
    return (task.task_id, task) if isinstance(task, Receipt) else (_checked(task), None)


def _checked(task_id: str) -> str:
    """The id in canonical spelling. Raises ConfigError when it is no UUID: no task can have such an id."""
    known = canonical(task_id)
    if known is None:
        raise ConfigError(
            f"task_id={task_id[:80]!r} is not a UUID. Write it like 0193a5b0-0000-7000-8000-000000000001."
        )
    return known


def _token(receipt: Receipt | None) -> str | None:
    """The freshness token for an answer about this task: the position of its request record."""
    return None if receipt is None else receipt.origin
