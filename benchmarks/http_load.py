"""An HTTP/1.1 client that asks as fast as one Python process can: fixed bytes out, answers counted as they come.

A general client costs ten times what the service does, so it would be the client that is measured. This one keeps its
connections, knows only answers with a Content-Length, and takes any status but the wanted one for an error.

    closed loop   each connection asks again when its answer is there: as many as the service gives
    open loop     asked at a steady rate, whatever the answers do; timed from the moment when it was due
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit

from benchmarks.stand import Failed

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TICK_S = 0.001  # of the open loop: what is asked late counts as waiting
ANSWERS_S = 60.0  # for those under way at its end


def length_of(head: bytes) -> int | None:
    """The Content-Length in the head of an answer."""
    found = _LENGTH.search(head)
    return None if found is None else int(found[1])


class _Connection(asyncio.Protocol):
    """Sends requests one after the other; `due` are the times of those under way."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._held = b""
        self.due: deque[float] = deque()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, due_s: float) -> None:
        assert self.transport is not None, "connected before it asks"
        self.due.append(due_s)
        self.transport.write(next(self._load.requests))

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end]
            length = length_of(head)
            if length is None or not head.startswith(b"HTTP/1.1 200"):
                self._load.fail(f"an answer that was not wanted: {head[:200]!r}")
                return
            whole = end + 4 + length
            if len(self._held) < whole:
                return
            self._held = self._held[whole:]
            self._load.answered(self, self.due.popleft())

    def connection_lost(self, error: Exception | None) -> None:
        self._load.fail(f"a connection was lost: {error}")


class _Load:
    """One run over some connections."""

    def __init__(self, requests: Iterator[bytes], again: bool) -> None:
        self.requests = requests
        self.took: list[float] = []  # seconds
        self.wanted = -1  # answers after which it is over; -1: not known yet
        self.failure = ""
        self.again = again
        self.over = asyncio.Event()

    def answered(self, connection: _Connection, due_s: float) -> None:
        now = time.monotonic()
        self.took.append(now - due_s)
        if self.again:
            connection.ask(now)
        elif len(self.took) == self.wanted:
            self.over.set()

    def fail(self, why: str) -> None:
        if not self.over.is_set():
            self.failure = self.failure or why
            self.over.set()


def requests_for(url: str, paths: Sequence[str]) -> Iterator[bytes]:
    """GETs of these paths, in turn, without end."""
    host = urlsplit(url).netloc
    return itertools.cycle([f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for path in paths])


async def closed_loop(url: str, paths: Sequence[str], *, connections: int, seconds: float) -> float:
    """Answers a second. Raises Failed."""
    load = _Load(requests_for(url, paths), again=True)
    async with _connected(url, load, connections) as them:
        began_s = time.monotonic()
        for one in them:
            one.ask(began_s)
        await _sit(load, seconds)
        return len(load.took) / (time.monotonic() - began_s)


async def open_loop(url: str, paths: Sequence[str], *, connections: int, rate: float, seconds: float) -> list[float]:
    """Milliseconds of each request, from the moment when it was due. Raises Failed."""
    load = _Load(requests_for(url, paths), again=False)
    async with _connected(url, load, connections) as them:
        turns, asked, began_s = itertools.cycle(them), 0, time.monotonic()
        while (now := time.monotonic()) < began_s + seconds and not load.failure:
            while began_s + asked / rate <= now:
                next(turns).ask(began_s + asked / rate)
                asked += 1
            await asyncio.sleep(TICK_S)
        load.wanted = asked
        if len(load.took) < asked:
            await _sit(load, ANSWERS_S)
        if len(load.took) < asked:
            raise Failed(f"{asked - len(load.took)} of {asked} requests were not answered within {ANSWERS_S:g} s.")
    return [took * 1_000 for took in load.took]


def _itself(one: _Connection) -> _Connection:
    return one


@contextlib.asynccontextmanager
async def _connected(url: str, load: _Load, count: int) -> AsyncIterator[list[_Connection]]:
    place, loop = urlsplit(url), asyncio.get_running_loop()
    them = [_Connection(load) for _ in range(count)]
    try:
        for one in them:
            await loop.create_connection(partial(_itself, one), place.hostname or "", place.port or 80)
        yield them
    finally:
        load.again = False
        load.over.set()
        for one in them:
            if one.transport is not None:
                one.transport.abort()


async def _sit(load: _Load, seconds: float) -> None:
    """Until the time is over, or it failed."""
    try:
        async with asyncio.timeout(seconds):
            await load.over.wait()
    except TimeoutError:
        pass
    if load.failure:
        raise Failed(f"The HTTP load ended: {load.failure}")
