"""Server-Sent Events: `GET /tasks/{id}/events` and `GET /events`.

A refusal is a problem document, as on all routes: a stream begins only when it is certain that there will be one
(live.py). What ends a stream later (a slow client, a view that starts again, the end of the service) ends the response;
EventSource then reconnects by itself, with the id of the last event that it received.

A client that reads nothing for SEND_S is disconnected: its buffers here are freed; the socket lives on until it closes it.

Decision 0018 says why this is not sse-starlette.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Header, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from streamtask.documents import examples
from streamtask.domain.model import TaskStatus
from streamtask.errors import ClusterError
from streamtask.projection.feed import Cut
from streamtask.projection.store import Filter
from streamtask.projection.watch import TooManyWaiters
from streamtask.query_service.live import Live, Push
from streamtask.query_service.problems import Problem, invalid, responses, unknown_names
from streamtask.query_service.route_checks import be_fresh, canonical_id, task_id_in_path

SEND_S = 20.0
STOP_S = 1.0  # for what is being written when the service ends
RETRY_MS = 2_000  # after which EventSource reconnects
MEDIA_TYPE = "text/event-stream"
ENDS_STREAM = (Cut, Problem, ClusterError, TooManyWaiters)  # the client resumes

_NAMES = ("status", "task_type", "tenant", "last_event_id")
_LINE = re.compile(rb"\r\n|\n|\r")
_HEADERS = {
    "Content-Type": f"{MEDIA_TYPE}; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx would hold events back
}

log = logging.getLogger("streamtask.query_service")

LastId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that you received: resume after it")
]
LastIdQuery = Annotated[
    str | None,
    Query(
        alias="last_event_id",
        description="The same for clients that cannot send headers; the header wins",
        max_length=200_000,
    ),
]


def add_streams(app: FastAPI, live: Live) -> None:
    """Add the two routes."""
    stream: dict[int | str, dict[str, Any]] = {
        200: examples.answer(
            None,
            "A stream of events. `data` is a TaskResponse (of `event: gap` a Gap); `id` is for Last-Event-ID.",
            media_type=MEDIA_TYPE,
            example=examples.STREAM,
        )
    }

    @app.get(
        "/tasks/{task_id}/events",
        tags=["live"],
        summary="Follow a task to its end (Server-Sent Events)",
        response_class=Response,
        responses={
            **stream,
            204: {"description": "The task had ended with the event that Last-Event-ID names: do not connect again"},
            **responses(400, 404, 422, 503),
        },
    )
    async def follow(
        request: Request,
        task_id: Annotated[str, task_id_in_path()],
        last_event_id: LastId = None,
        last_event_id_query: LastIdQuery = None,
    ) -> Response:
        """The task's current status, then each status event until the terminal one. The id is `<partition>:<offset>` of the
        event in the status topic. With `Last-Event-ID`, on any replica, you get the events after it, without gap or repeat. A
        slow client gets only the latest event in place of several."""
        known_id = canonical_id(task_id)
        await be_fresh(request.headers, live.service, 0.0)
        return await _answer(live.of_task(known_id, last_event_id or last_event_id_query), live)

    @app.get(
        "/events",
        tags=["live"],
        summary="Follow all tasks that match (Server-Sent Events)",
        response_class=Response,
        responses={**stream, **responses(400, 410, 422, 503)},
    )
    async def follow_many(
        request: Request,
        status: Annotated[TaskStatus | None, Query()] = None,
        task_type: Annotated[str | None, Query(max_length=255)] = None,
        tenant: Annotated[str | None, Query(max_length=255)] = None,
        last_event_id: LastId = None,
        last_event_id_query: LastIdQuery = None,
    ) -> Response:
        """Every matching status event from now on. The id names every partition, as in `0:17,1:1042`. With `Last-Event-ID`,
        on any replica, the stream continues after it, without gap or repeat. A slow client is disconnected and resumes.
        `event: gap` says that the topic no longer holds a part of the events that were asked for."""
        wrong = unknown_names(request.query_params, _NAMES)
        if wrong:
            raise invalid("; ".join(f"{name}: {text}" for name, text in wrong.items()), wrong)
        wanted = Filter(status and status.value, task_type, tenant)
        return await _answer(live.matching(wanted, last_event_id or last_event_id_query), live)


async def _answer(pushes: AsyncGenerator[Push], live: Live) -> Response:
    first = await anext(pushes, None)
    return Response(status_code=204) if first is None else EventStream(first, pushes, live.service.feed.stopping)


class EventStream(Response):
    """Writes pushes until they end, the client has gone, or the service ends."""

    def __init__(self, first: Push, pushes: AsyncGenerator[Push], stopping: asyncio.Event) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._first = first
        self._pushes = pushes
        self._stopping = stopping
        self._due: float | None = None  # the loop's time by which the current write must have ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stuck = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            tasks = {
                group.create_task(self._write(send), name="sse"),
                group.create_task(until_gone(receive), name="sse-gone"),
                group.create_task(until_stopped(self._stopping), name="sse-stop"),
            }
            with self._watched(stuck):
                try:
                    await asyncio.wait({*tasks, stuck}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()
        if stuck.done():
            log.info("Closed a stream: its client read nothing for %g s.", SEND_S)

    @contextmanager
    def _watched(self, stuck: asyncio.Future[None]) -> Iterator[None]:
        """`stuck` is done once a write has taken SEND_S. There is one timer per stream, not one per write: asyncio.timeout
        took a third of the time of sending an event to each of ten thousand clients."""
        loop = asyncio.get_running_loop()
        alarm: asyncio.TimerHandle

        def look() -> None:
            nonlocal alarm
            now = loop.time()
            if self._due is not None and self._due <= now:
                if not stuck.done():
                    stuck.set_result(None)
            else:
                alarm = loop.call_at(self._due or now + SEND_S, look)

        alarm = loop.call_later(SEND_S, look)
        try:
            yield
        finally:
            alarm.cancel()

    async def _write(self, send: Send) -> None:
        try:
            self._due = asyncio.get_running_loop().time() + SEND_S
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send, b"retry: %d\n" % RETRY_MS + block(self._first))
            try:
                async for push in self._pushes:
                    await self._send(send, block(push))
            except ENDS_STREAM as error:
                log.info("Closed a stream: %s", error)
            await self._send(send, b"", more=False)
        finally:
            await self._pushes.aclose()

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._due = asyncio.get_running_loop().time() + SEND_S
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._due = None


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_stopped(stopping: asyncio.Event) -> None:
    """Returns when the service ends, after some time for what was being written."""
    await stopping.wait()
    await asyncio.sleep(STOP_S)


def block(push: Push) -> bytes:
    """One push in wire format. Without data it is not an event for the client, but its id counts."""
    text = b"" if push.id is None else b"id: %b\n" % push.id.encode()
    if push.gap is not None:
        return text + b"event: gap\ndata: %b\n\n" % orjson.dumps(push.gap._asdict())
    body = push.body
    if body is None:
        return (text or b": alive\n") + b"\n"
    if b"\n" in body or b"\r" in body:  # JSON has line breaks only between tokens, where they have no meaning
        body = b"\ndata: ".join(_LINE.split(body))
    return text + b"data: %b\n\n" % body
