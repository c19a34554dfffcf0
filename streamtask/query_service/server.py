"""One process that follows the topics and serves HTTP: granian inside our own event loop, until SIGTERM or SIGINT.

Order of a shutdown: long polls are answered; streams end (their clients resume elsewhere); the server accepts nothing new
and finishes what it has; the tail thread ends; the store is closed. A second signal ends the process at once. The
process also ends when the view itself fails: a service that no longer follows the topics would go on answering with old
statuses.

Why granian, with measurements: docs/decisions/0005-http-server.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from streamtask.config import Settings
from streamtask.errors import ClusterError, ConfigError
from streamtask.projection.source import KafkaSource, gather, open_past
from streamtask.projection.sqlite import SQLiteStore
from streamtask.projection.view import ViewService
from streamtask.query_service.gate import check_bind
from streamtask.query_service.hosts import Hosts
from streamtask.query_service.http import create_app
from streamtask.query_service.metrics import observed
from streamtask.query_service.redriver import KafkaRedriver
from streamtask.query_service.submit import KafkaSubmitter
from streamtask.schema_registry import Formats

BACKLOG = 1_024
REQUESTS_MAX = 25_000  # at once: long polls (watch.WAITERS_MAX), streams (feed.LISTENERS_MAX), and the rest
FILES_SPARE = 1_000  # open files in addition to those of requests
STOP_S = 10.0
STREAMS_STOP_S = 3.0
SWITCH_S = 0.0005  # how long a thread that waits for the GIL lets another one run; the default is 5 ms
COLLECT_AFTER = (
    50_000,
    20,
    20,
)  # a batch of a restore holds 60,000 objects, none of them in a cycle: collections took a tenth of its time


def run(settings: Settings, *, insecure: bool = False, say: Callable[[str], None] | None = None) -> None:
    """Serve until a signal. `say` is called with the address (twice: listening, then ready); None: print to stdout.

    Raises ConfigError, TopicsMissing, Unreachable, or ClusterError when the view failed.
    """
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    check_bind(settings.host, key, insecure)
    sys.setswitchinterval(SWITCH_S)
    _allow_files()
    with loop_runner() as runner:
        try:
            runner.run(_serve(settings, key, say or _print))
        except BaseExceptionGroup as group:  # from the task groups inside: the caller expects our errors, not groups
            raise _leaf(group) from group


def refuse_bind(settings: Settings, *, insecure: bool = False) -> None:
    """Raise ConfigError when `serve` could not, or should not, listen with these settings. Contacts no broker."""
    check_bind(settings.host, None if settings.api_key is None else settings.api_key.get_secret_value(), insecure)
    Hosts(settings.host, settings.hosts_allowed)
    find_place(settings.host, settings.port)


def loop_runner() -> asyncio.Runner:
    """A runner on uvloop, if that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _allow_files() -> None:
    """Allow as many open files as there may be connections, or as many as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = REQUESTS_MAX + FILES_SPARE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _print(text: str) -> None:
    print(text, flush=True)


async def _serve(settings: Settings, key: str | None, say: Callable[[str], None]) -> None:
    names = settings.topics
    kafka = settings.kafka_for("view")
    place = find_place(settings.host, settings.port)
    with contextlib.ExitStack() as held:
        formats = held.enter_context(contextlib.closing(Formats(settings)))
        facts = await asyncio.to_thread(gather, kafka, names)
        encoder = await asyncio.to_thread(formats.encoder)
        store = held.enter_context(contextlib.closing(SQLiteStore(settings.store)))
        service = ViewService(
            store,
            lambda: KafkaSource(kafka, names, store, service.note),
            names,
            facts.cluster_id,
            locale=settings.locale,
            retention=facts.retention,
            open_past=lambda places, on_gap: open_past(kafka, places, on_gap),
            reader=formats.insisting,
            lenient=formats.waiting,
        )
        async with service.running(), KafkaSubmitter(kafka, names, encoder) as submitter:
            redriver = KafkaRedriver(kafka, names, facts.cluster_id, formats.waiting)
            app = create_app(
                service,
                submitter,
                redriver=redriver,
                api_key=key,
                body_bytes_max=settings.body_bytes_max,
                hosts=Hosts(settings.host, settings.hosts_allowed),
            )
            gc.set_threshold(*COLLECT_AFTER)
            gc.freeze()  # routes and schemas live as long as the process: collections may skip them
            async with serving(observed(app, service), place):
                say(f"streamtask query service: {place.url} (docs: {place.url}/docs)")
                await _until_stopped(service, lambda: say(f"ready: {place.url}"))
                service.stop()  # answers long polls and ends streams, so that the server can finish
                await service.feed.until_empty(STREAMS_STOP_S)  # the server would cut WebSockets off
    if service.failure is not None:
        raise ClusterError(f"The view has failed: {service.failure}")


async def _until_stopped(service: ViewService, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    with _signals(stop):
        async with asyncio.TaskGroup() as waits:
            signalled = waits.create_task(stop.wait(), name="signal")
            failed = waits.create_task(service.ended.wait(), name="view-ended")
            caught_up = waits.create_task(service.caught_up.wait(), name="view-ready")
            caught_up.add_done_callback(lambda task: None if task.cancelled() else ready())
            await asyncio.wait({signalled, failed}, return_when=asyncio.FIRST_COMPLETED)
            for task in (signalled, failed, caught_up):
                task.cancel()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Any:
    """The first SIGTERM or SIGINT sets `stop`; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    # Not removed at the end: a second signal must also end a shutdown that hangs. The loop removes them when it closes.
    yield


class Place(NamedTuple):
    """Where to listen: a numeric address and a port."""

    address: str
    port: int

    @property
    def url(self) -> str:
        """`http://127.0.0.1:8080`."""
        return f"http://[{self.address}]:{self.port}" if ":" in self.address else f"http://{self.address}:{self.port}"


@contextlib.asynccontextmanager
async def serving(app: Any, place: Place) -> AsyncIterator[None]:
    """Serve HTTP at `place` while the block runs, then finish open requests (at most STOP_S)."""
    server = Server(
        app,
        address=place.address,
        port=place.port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.auto,
        websockets=True,
        backlog=BACKLOG,
        backpressure=REQUESTS_MAX,
        log_enabled=False,
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.serve(), name="http")
        try:
            await _until_it_listens(place)
            yield
        finally:
            server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({task}, timeout=STOP_S)
            task.cancel()


async def _until_it_listens(place: Place) -> None:
    # granian binds within serve() and does not report when.
    async with asyncio.timeout(STOP_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(*place)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return


def find_place(host: str, port: int) -> Place:
    """A free port at the address of `host`; port 0: any. Raises ConfigError when listening is not possible.

    Checked before anything else is started. granian binds the port itself, later and with SO_REUSEPORT: without this check
    a second service on the same port would silently share it.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            found = probe.getsockname()
    except OSError as error:
        raise ConfigError(
            f"host={host!r}, port={port}: cannot listen there ({error.strerror}). Choose another --port."
        ) from None
    return Place(found[0], found[1])
