"""How long until ten thousand SSE subscribers of one view process have an event: from its commit to the last of them.

    of a filter   all follow `GET /events?task_type=noop`
    of a task     all follow one task: `GET /tasks/{id}/events`

One client process holds all connections and reads bytes; it shares the two cores with the service, so that what it takes to
see an event ten thousand times is in the figures. An event is committed when everybody has the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from benchmarks.latency import quantile
from benchmarks.stand import Failed, query_service, topics
from benchmarks.written import Task, Writer, event
from streamtask.domain.identity import Origin, new_task_id
from streamtask.query_service.server import loop_runner

UPDATES = 20
WARM_UP = 3
AT_ONCE = 100  # connections that are being opened
OPENED_S = 120.0
SEEN_S = 30.0
COMMIT_S = 30.0


class _Subscriber(asyncio.Protocol):
    """One connection; `told` of every event, and once of the stream's first bytes."""

    def __init__(self, request: bytes, told: Callable[[float], None]) -> None:
        self._request, self._told = request, told
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            if b"data: {" in data:
                self._told(time.monotonic())
        elif not data.startswith(b"HTTP/1.1 200"):
            self.opened.set_exception(Failed(f"A subscriber was refused: {data[:300]!r}"))
        elif b"retry: " in data or b"\r\n\r\n" in data:
            self.opened.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(Failed(f"A connection was lost: {error}"))


class Crowd:
    """So many subscribers, and when each of them has the next event."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._seen: list[float] = []
        self._all = asyncio.Event()

    def told(self, at_s: float) -> None:
        self._seen.append(at_s)
        if len(self._seen) == self.count:
            self._all.set()

    async def times(self) -> list[float]:
        """When each had it, on the monotonic clock. Raises Failed."""
        try:
            async with asyncio.timeout(SEEN_S):
                await self._all.wait()
        except TimeoutError:
            raise Failed(f"{len(self._seen)} of {self.count} subscribers have the event after {SEEN_S:g} s.") from None
        seen, self._seen = self._seen, []
        self._all.clear()
        return seen


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. tasks: subscribers. concurrency is of no use here."""
    open_files(tasks + 1_000)
    found: dict[str, Any] = {}
    with topics(bootstrap, "bench", partitions) as names, query_service(bootstrap, names.prefix) as view:
        view.until_ready()
        writer = Writer(bootstrap, names.status, f"{names.prefix}.{secrets.token_hex(4)}")
        task = Task(new_task_id(), 0, str(Origin("high", 0, 0)), 9, time.time_ns() // 1_000_000)
        _commit(writer, task)
        for kind, path in (("filter", "/events?task_type=noop"), ("task", f"/tasks/{task.task_id}/events")):
            with loop_runner() as runner:
                found[kind] = runner.run(_follow(view.url, path, tasks, lambda: _commit(writer, task)))
                found[kind]["view_rss_mb"] = _rss_mb(view.process.pid)
    return {"p50_ms": found["filter"]["last_p50_ms"], "p99_ms": found["filter"]["last_p99_ms"], **found} | {
        "updates": UPDATES,
        "tasks": tasks,
        "partitions": partitions,
    }


def open_files(count: int) -> None:
    """Let this process have so many. Raises Failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Failed(
            f"{count} files are needed, and this process may open {hard}: ask for fewer, or raise `ulimit -Hn`."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


def _commit(writer: Writer, task: Task) -> float:
    """One more event of the task; when it was committed, on the monotonic clock."""
    writer.producer.begin_transaction()
    writer.write(task.task_id, event(task, "running"), task.partition)
    writer.producer.commit_transaction(COMMIT_S)
    return time.monotonic()


async def _follow(url: str, path: str, count: int, commit: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds from the commit: to the last subscriber over the updates, and to each of all."""
    last: list[float] = []
    each: list[float] = []
    began_s = time.monotonic()
    async with _opened(url, path, count) as crowd:
        opened_s = time.monotonic() - began_s
        for number in range(WARM_UP + UPDATES):
            at_s = await asyncio.to_thread(commit)
            took = [(seen_s - at_s) * 1_000 for seen_s in await crowd.times()]
            if number >= WARM_UP:
                last.append(max(took))
                each += took
    return {
        "last_p50_ms": round(quantile(last, 0.5), 1),
        "last_p99_ms": round(quantile(last, 0.99), 1),
        "each_p50_ms": round(quantile(each, 0.5), 1),
        "each_p99_ms": round(quantile(each, 0.99), 1),
        "opened_per_s": round(count / opened_s),
    }


@contextlib.asynccontextmanager
async def _opened(url: str, path: str, count: int) -> AsyncIterator[Crowd]:
    place, loop, crowd = urlsplit(url), asyncio.get_running_loop(), Crowd(count)
    request = f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode()
    them: list[_Subscriber] = []
    turn = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with turn:
            _, made = await loop.create_connection(
                lambda: _Subscriber(request, crowd.told), place.hostname or "", place.port or 80
            )
            them.append(made)
            await made.opened

    try:
        async with asyncio.timeout(OPENED_S), asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one(), name="subscriber")
        yield crowd
    finally:
        for made in them:
            if made.transport is not None:
                made.transport.abort()


def _rss_mb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1_024
    return 0
