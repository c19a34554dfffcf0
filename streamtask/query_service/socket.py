"""`/ws`: streams over one WebSocket, each for a task or a filter. Every frame is text: one JSON object.

    in   {"action": "subscribe", "id": "a", "task_id": "…"}             also "last_event_id", "consistency_token", as for SSE
         {"action": "subscribe", "id": "b", "status": "failed", "task_type": "…", "tenant": "…"}
         {"action": "unsubscribe", "id": "a"}    {"action": "ping"}
    out  {"type": "subscribed", "id": "a", "last_event_id": …}           then, for each subscription:
         {"type": "event", "id": "a", "last_event_id": "3:1042", "task": {TaskResponse}}
         {"type": "alive", "id": "a", "last_event_id": …}                after 15 s of silence
         {"type": "gap", "id": "a", "gap": {"partition": …, "wanted": …, "found": …}}
         {"type": "end", "id": "a", "reason": "ended" | "unsubscribed" | "unavailable" | Cut's}
         {"type": "error", "id": "a" or absent, "problem": {RFC 9457}}   an invalid frame, a refusal
         {"type": "pong"}

A subscription is a stream of live.py, without a buffer of its own here: it reads on when its last frame is written. So a
slow client is slow for all its subscriptions. One that reads nothing for SEND_S is disconnected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from streamtask.documents.answers import Asked
from streamtask.projection.feed import Cut
from streamtask.projection.store import Filter
from streamtask.projection.watch import TooManyWaiters
from streamtask.query_service.live import Live, Push
from streamtask.query_service.problems import Problem, invalid, of_error, unknown_names
from streamtask.query_service.route_checks import be_as_fresh, canonical_id
from streamtask.query_service.sse import ENDS_STREAM, SEND_S, STOP_S

FRAME_BYTES_MAX = 4_096
SUBSCRIPTIONS_MAX = 100
IDLE_S = 60.0  # without a subscription and without a frame
PROTOCOL = "streamtask"  # a browser cannot set headers: its key comes as a second protocol (gate.py)

NORMAL, GOING_AWAY, TOO_BIG, TRY_LATER = 1000, 1001, 1009, 1013

log = logging.getLogger("streamtask.query_service")


def add_socket(app: FastAPI, live: Live) -> None:
    """Add the route."""

    @app.websocket("/ws")
    async def talk(websocket: WebSocket) -> None:
        try:
            with live.service.feed.reserved():
                protocols = websocket.scope.get("subprotocols") or ()
                await websocket.accept(PROTOCOL if PROTOCOL in protocols else None)
                await Conversation(websocket, live).run()
        except TooManyWaiters:
            await websocket.close(TRY_LATER)  # closed before it is accepted: the client sees 403


class Conversation:
    """One WebSocket, from its acceptance to its end."""

    def __init__(self, websocket: WebSocket, live: Live) -> None:
        self._websocket = websocket
        self._live = live
        self._writing = asyncio.Lock()
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._code = NORMAL
        self._over = asyncio.Event()
        self._patience: asyncio.Timeout | None = None  # the timeout for the next frame

    async def run(self) -> None:
        """Talk until the client leaves, is too slow or idle, or the service ends."""
        async with asyncio.TaskGroup() as group:
            talk: set[asyncio.Task[Any]] = {
                group.create_task(self._listen(group), name="ws-listen"),
                group.create_task(self._until_stopped(), name="ws-stop"),
                group.create_task(self._over.wait(), name="ws-over"),
            }
            try:
                await asyncio.wait(talk, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (*talk, *self._streams.values()):
                    task.cancel()
        if self._live.service.feed.stopping.is_set():
            self._code = GOING_AWAY
        try:
            async with asyncio.timeout(STOP_S):
                await self._websocket.close(self._code)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            pass  # the client has gone, or does not read

    async def _until_stopped(self) -> None:
        """Returns when the service ends and every subscription has been informed."""
        await self._live.service.feed.stopping.wait()
        if self._streams:
            await asyncio.wait(set(self._streams.values()), timeout=STOP_S)

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        try:
            while True:
                async with asyncio.timeout(None) as self._patience:
                    self._mind()
                    message = await self._websocket.receive()
                self._patience = None  # ended: a stream that ends while this frame is answered must not reschedule it
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                frame = text.encode() if text is not None else message.get("bytes") or b""
                if len(frame) > FRAME_BYTES_MAX:
                    self._code = TOO_BIG
                    return
                await self._answer(frame, text is not None, group)
        except TimeoutError:
            log.info("Closed a WebSocket: no subscriptions and no messages for %g s.", IDLE_S)

    def _mind(self) -> None:
        """Wait for the next frame without a limit while there are subscriptions."""
        if self._patience is not None and not self._patience.expired():
            loop = asyncio.get_running_loop()
            self._patience.reschedule(None if self._streams else loop.time() + IDLE_S)

    async def _answer(self, frame: bytes, is_text: bool, group: asyncio.TaskGroup) -> None:
        named: str | None = None
        try:
            document = _object(frame, is_text)
            if type(document.get("id")) is str:
                named = document["id"][:64]
            asked = _asked(document)
            if asked.action == "ping":
                await self._say({"type": "pong"})
            elif asked.id is None:
                raise invalid("id: a name for this subscription is required", {"id": "required: any name you choose"})
            elif asked.action == "unsubscribe":
                await self._unsubscribe(asked.id)
            else:
                self._subscribe(asked.id, asked, group)
        except Problem as problem:
            await self._say({"type": "error", **({} if named is None else {"id": named}), "problem": problem.document})

    def _subscribe(self, name: str, asked: Asked, group: asyncio.TaskGroup) -> None:
        if name in self._streams:
            raise invalid(f"id: a subscription {name!r} already exists", {"id": "in use"})
        if len(self._streams) >= SUBSCRIPTIONS_MAX:
            raise invalid(f"At most {SUBSCRIPTIONS_MAX} subscriptions at once", {"id": "too many subscriptions"})
        if asked.task_id is None:
            pushes = self._live.matching(
                Filter(asked.status and asked.status.value, asked.task_type, asked.tenant), asked.last_event_id
            )
        else:
            other = [one for one in ("status", "task_type", "tenant") if getattr(asked, one) is not None]
            if other:
                raise invalid(
                    "subscribe by task_id or by filter, not both", dict.fromkeys(other, "not allowed with task_id")
                )
            pushes = self._live.of_task(canonical_id(asked.task_id), asked.last_event_id)
        stream = self._stream(name, pushes, asked.consistency_token)
        self._streams[name] = group.create_task(stream, name=f"ws-{name}")

    async def _unsubscribe(self, name: str) -> None:
        stream = self._streams.pop(name, None)
        if stream is None:
            raise invalid(f"id: no subscription {name!r} exists", {"id": "unknown"})
        stream.cancel()
        await asyncio.wait({stream})
        await self._say({"type": "end", "id": name, "reason": "unsubscribed"})

    async def _stream(self, name: str, pushes: AsyncGenerator[Push], token: str | None) -> None:
        """Run one subscription to its end."""
        head = orjson.dumps(name)
        begun = False
        try:
            if token is not None:
                await be_as_fresh(token, self._live.service, 0.0)
            async for push in pushes:
                if begun:
                    await self._write(_frame(head, push))
                else:
                    begun = True
                    await self._say({"type": "subscribed", "id": name, "last_event_id": push.id})
            await self._say({"type": "end", "id": name, "reason": "ended"})
        except Cut as cut:
            await self._say({"type": "end", "id": name, "reason": str(cut)})
        except ENDS_STREAM as error:
            if begun:
                log.info("Ended a subscription: %s", error)
                await self._say({"type": "end", "id": name, "reason": "unavailable"})
            else:
                await self._say({"type": "error", "id": name, "problem": of_error(error).document})
        finally:
            await pushes.aclose()
            if self._streams.get(name) is asyncio.current_task():
                del self._streams[name]
                self._mind()

    async def _say(self, document: Mapping[str, Any]) -> None:
        await self._write(orjson.dumps(document))

    async def _write(self, frame: bytes) -> None:
        """Write a frame; end the conversation when the client does not read it or has gone."""
        try:
            async with asyncio.timeout(SEND_S), self._writing:
                await self._websocket.send({"type": "websocket.send", "text": frame.decode()})
        except TimeoutError:
            log.info("Closed a WebSocket: its client read nothing for %g s.", SEND_S)
            self._code = TRY_LATER
            self._over.set()
        except (WebSocketDisconnect, RuntimeError):
            self._over.set()


def _object(frame: bytes, is_text: bool) -> dict[str, Any]:
    if not is_text:
        raise Problem(400, "not-text", "A text frame is required", "Send each frame as a JSON object in text form.")
    try:
        document = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "not-json", "The frame is not JSON", str(error)) from None
    if type(document) is not dict:
        raise invalid("an object is required", {"": "must be an object"})
    return document


def _asked(document: dict[str, Any]) -> Asked:
    wrong = unknown_names(document, Asked.model_fields)
    if wrong:
        raise invalid("; ".join(f"{name}: {text}" for name, text in wrong.items()), wrong)
    try:
        return Asked.model_validate(document)
    except ValidationError as error:
        fields = {".".join(map(str, item["loc"])): item["msg"] for item in error.errors()}
        raise invalid("; ".join(f"{path}: {text}" for path, text in fields.items()), fields) from None


def _frame(head: bytes, push: Push) -> bytes:
    """An event, a gap or a heartbeat: the JSON frame around a body that is JSON already."""
    last_id = orjson.dumps(push.id)
    if push.gap is not None:
        return b'{"type":"gap","id":%b,"last_event_id":%b,"gap":%b}' % (head, last_id, orjson.dumps(push.gap._asdict()))
    if push.body is None:
        return b'{"type":"alive","id":%b,"last_event_id":%b}' % (head, last_id)
    return b'{"type":"event","id":%b,"last_event_id":%b,"task":%b}' % (head, last_id, push.body)
