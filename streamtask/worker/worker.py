"""One worker process of an app: its life from the first look at the cluster to the last event.

The owner thread (the main thread of the process) runs the loop of worker/loop.py. The first SIGTERM or SIGINT drains (start
nothing, let tasks end within the grace, hand over, leave). The second exits at once.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType

from streamtask.config import EngineConfig, Settings
from streamtask.domain.model import HandlerKind
from streamtask.errors import ConfigError
from streamtask.execution.executor import Executor
from streamtask.execution.process_pool.settings import Children
from streamtask.handlers.registry import Handler, Lifespan
from streamtask.kafka import admin, permissions
from streamtask.kafka.acls import Role
from streamtask.observability import event_log
from streamtask.observability.tracing import Attempts
from streamtask.schema_registry import Formats
from streamtask.worker.loop import Owner, StopRequests
from streamtask.worker.memory_budget import budget_of
from streamtask.worker.metrics import Observer
from streamtask.worker.result_size import EventSize
from streamtask.worker.watchdog import Watchdog

TASKS_NAMED_MAX = 50  # task types in the line that says what the worker runs


class Worker:
    """One worker process of an app. `run` returns its exit code.

    handlers, lifespan  the app's tasks and its lifespan
    slot                number of this process among the supervisor's children: part of its transactional ids
    children            runs process handlers, and tasks under which two processes died; required for process handlers
    on_beat             called once a second to show that this process can still run Python
    on_member           called with the group's id of this worker whenever it changes; "" while it is not a member
    """

    def __init__(
        self,
        name: str,
        handlers: Mapping[str, Handler],
        settings: Settings,
        *,
        lifespan: Lifespan | None,
        slot: int = 0,
        children: Children | None = None,
        on_member: Callable[[str], None] = lambda _member: None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.started = self.stopped = False
        self.settings = settings
        self.names = settings.topics
        self.budget = budget_of(settings.memory_mb)
        host = socket.gethostname()
        self.identity = f"{name}@{host}:{os.getpid()}"
        self.kafka = replace(
            settings.kafka_for("worker", process=f"{name}@{host}-{os.getpid()}"),
            fetch_kbytes=self.budget.fetch_kbytes,
            tail_kbytes=self.budget.tail_kbytes,
        )
        self.formats = Formats(settings)
        self.handlers = handlers
        self.executor = Executor(
            handlers,
            threads=settings.threads,
            coroutines=settings.concurrency,
            lifespan=lifespan,
            bands=self.names.bands,
            on_event=lambda name, fields: event_log.emit("app_event", {"what": name, **fields}),
            children=children,
            attempts=Attempts(self.names),
        )
        self.slot = slot
        self.watchdog = Watchdog(on_beat)
        self._children, self._on_member = children, on_member
        self._stops = StopRequests()
        sized = (self.names.status, self.names.dead)
        self._size = EventSize(lambda within: admin.smallest_max_message_bytes(self.kafka, sized, timeout_s=within))
        self.observer: Observer | None = None  # of a worker that has a metrics_port
        if settings.metrics_port is not None:
            bands = (band.name for band in self.names.bands)
            self.observer = Observer(handlers, bands, stalled_s=settings.health_stalled_s)

    def run(self, *, signals: bool = True, ready: Callable[[], None] | None = None) -> int:
        """Work until stopped. Raises TopicsMissing, Unreachable, ConfigError or LifespanError before any task runs."""
        if self.started:
            raise RuntimeError(f"Worker {self.name!r} runs once. Make another one.")
        self.started = True
        try:
            return self._run(signals, ready)
        finally:
            self.stopped = True

    def _run(self, signals: bool, ready: Callable[[], None] | None) -> int:
        started_s = time.monotonic()
        partitions = self._look()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
        self.executor.start()
        try:
            owner = self._owner(partitions)
        except BaseException:
            self.executor.stop(1.0)
            raise
        self.watchdog.start()
        fields = {"app": self.name, "prefix": self.names.prefix, "group": self.names.group, "worker": self.identity}
        what = {"bootstrap": self.settings.bootstrap(), "tasks": self._tasks(), **self.budget.log_fields()}
        event_log.emit("worker_started", {**fields, **what})
        close_endpoint: Callable[[], None] = lambda: None  # noqa: E731
        try:
            close_endpoint = self._open_endpoint()
            owner.run(ready)
        finally:
            self.watchdog.stop()
            close_endpoint()
            self.executor.stop(1.0)
            owner.close()
            self.formats.close()
            event_log.emit("worker_stopped", {"seconds": round(time.monotonic() - started_s, 1)})
        return 0

    def stop(self) -> None:
        """Drain, as SIGTERM does; a second call aborts. May be called from any thread."""
        self._stops.ask()
        self.executor.wake()

    def _tasks(self) -> list[str]:
        """What it runs, for people who read the log."""
        said = [str(handler) for _, handler in sorted(self.handlers.items())]
        more = len(said) - TASKS_NAMED_MAX
        return said if more <= 0 else [*said[:TASKS_NAMED_MAX], f"and {more} more"]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stops.ask()
        if self._stops.asked > 1:
            os._exit(1)  # safe because of the fence and the ledger: the next owner continues from what is committed
        self.executor.wake()

    def _look(self) -> int:
        """Refuse to start if the app or the cluster lacks what is needed. Returns the number of partitions."""
        if not __debug__:
            raise ConfigError("python -O removes the worker's invariant checks. Run the worker without -O.")
        if not self.handlers:
            raise ConfigError(f"app {self.name!r} has no tasks. Decorate a function with @app.task.")
        if self._children is None and any(one.kind is HandlerKind.PROCESS for one in self.handlers.values()):
            raise ConfigError(f"app {self.name!r} has process handlers. Run it with `streamtask worker MODULE:app`.")
        partitions = permissions.partition_count(self.kafka, self.names, Role.WORKER)
        self._size.look(admin.TIMEOUT_S)
        return partitions

    def _owner(self, partitions: int) -> Owner:
        return Owner(
            self.settings,
            self.kafka,
            self._engine_config(),
            slot=self.slot,
            partitions=partitions,
            formats=self.formats,
            executor=self.executor,
            size=self._size,
            watchdog=self.watchdog,
            observer=self.observer,
            stops=self._stops,
            on_member=self._on_member,
        )

    def _open_endpoint(self) -> Callable[[], None]:
        """/metrics, /health and /ready, if wanted; returns what ends them. Raises ConfigError."""
        if self.observer is None or self.settings.metrics_port is None:
            return lambda: None
        from streamtask.worker.endpoint import open_endpoint

        port = self.settings.metrics_port and self.settings.metrics_port + self.slot
        host = self.settings.metrics_host
        url, close = open_endpoint(self.observer, self.kafka, self.names, self.watchdog.silent_s, host=host, port=port)
        event_log.emit("metrics_listening", {"url": url})
        return close

    def _engine_config(self) -> EngineConfig:
        slots = {HandlerKind.ASYNC: self.settings.concurrency, HandlerKind.THREAD: self.settings.threads}
        slots[HandlerKind.PROCESS] = self.settings.children_max if self._children is not None else 0
        return EngineConfig(
            bands=self.names.bands,
            policies={name: handler.policy() for name, handler in self.handlers.items()},
            slots=slots,
            worker=self.identity,
            **self.budget.limits(),
            unknown_type_grace_ms=int(self.settings.unknown_type_grace_s * 1_000),
        )
