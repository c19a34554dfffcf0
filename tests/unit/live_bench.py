"""Readers of live streams: a real server on a real socket over the view of view_bench, SSE and WebSocket clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect

from streamtask.query_service.server import find_place, serving
from tests.unit.view_bench import Bench, Log, bench

WAIT_S = 60.0


class Block(NamedTuple):
    """One block of an event stream."""

    id: str | None
    event: str
    data: bytes | None

    @property
    def document(self) -> dict[str, Any]:
        assert self.data is not None
        return dict(orjson.loads(self.data))

    @property
    def said(self) -> str:
        """`running 0.5`"""
        progress = self.document.get("progress")
        return f"{self.document['status']}" + ("" if progress is None else f" {progress:g}")


class Reader:
    """What an SSE response says, block by block."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._parts = response.aiter_bytes()
        self._buffer = b""
        self.last_id: str | None = None

    async def block(self) -> Block | None:
        """The next one; None: the response has ended, or was cut."""
        async with asyncio.timeout(WAIT_S):
            while b"\n\n" not in self._buffer:
                try:
                    self._buffer += await anext(self._parts)
                except StopAsyncIteration:
                    return None
        text, _, self._buffer = self._buffer.partition(b"\n\n")
        held: dict[bytes, list[bytes]] = {}
        for line in text.split(b"\n"):
            name, _, value = line.partition(b":")
            held.setdefault(name, []).append(value.removeprefix(b" "))
        found = held[b"id"][0].decode() if b"id" in held else None
        self.last_id = found or self.last_id
        data = b"\n".join(held[b"data"]) if b"data" in held else None
        return Block(found, held.get(b"event", [b"message"])[0].decode(), data)

    async def next(self) -> Block:
        """The next block that is an event."""
        while (block := await self.block()) is not None:
            if block.data is not None:
                return block
        raise AssertionError("the stream has ended")

    async def rest(self) -> list[Block]:
        """All events until it ends."""
        out = []
        while (block := await self.block()) is not None:
            if block.data is not None:
                out.append(block)
        return out


class Talk:
    """A WebSocket and the frames that come."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, **frame: Any) -> None:
        await self.socket.send(orjson.dumps(frame).decode())

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            return dict(orjson.loads(await self.socket.recv()))

    async def ask(self, **frame: Any) -> dict[str, Any]:
        await self.say(**frame)
        return await self.next()

    async def closed(self) -> int | None:
        """The code that the service closed it with."""
        async with asyncio.timeout(WAIT_S):
            await self.socket.wait_closed()
        return self.socket.close_code


class Live(NamedTuple):
    view: Bench
    url: str

    @property
    def log(self) -> Log:
        return self.view.log

    @asynccontextmanager
    async def stream(self, path: str, last_id: str | None = None, **headers: str) -> AsyncIterator[Reader]:
        """An SSE stream that is open."""
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=WAIT_S) as http,
            http.stream("GET", path, headers=headers) as response,
        ):
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            yield Reader(response)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """A whole answer: a refusal, or a stream that ends by itself."""
        async with httpx.AsyncClient(base_url=self.url, timeout=WAIT_S) as http:
            return await http.get(path, headers=headers)

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[Talk]:
        async with connect(f"ws{self.url.removeprefix('http')}/ws", **options) as socket:
            yield Talk(socket)


@asynccontextmanager
async def live_bench(log: Log | None = None, **options: Any) -> AsyncIterator[Live]:
    """A view that is ready, served on a port of its own."""
    async with bench(log, **options) as view:
        await view.until_ready()
        place = find_place("127.0.0.1", 0)
        async with serving(view.app, place):
            try:
                yield Live(view, place.url)
            finally:
                view.service.stop()
