"""Runs an App with a worker in this process, under its own prefix, so that you can patch, measure and debug what runs.

Always true: after the block, the App's settings are restored, its clients closed and its topics deleted; the block fails
if the worker failed.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from streamtask.app import App
from streamtask.codec import decode_status
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import HandlerKind, TaskResponse
from streamtask.errors import ConfigError
from streamtask.execution.process_pool.pipe import OVERRIDES_VARIABLE
from streamtask.execution.process_pool.settings import Children
from streamtask.kafka.admin import delete_topics, ensure_topics
from streamtask.kafka.offset_queries import topic_ends
from streamtask.kafka.tail import Tail
from streamtask.worker.worker import Worker

if TYPE_CHECKING:
    from streamtask.audit import Report
    from streamtask.client import Client
    from streamtask.config import Settings

PARTITIONS = 2  # not the default of `topics create`: a test waits until all topics exist and all shards are claimed
READY_S, STOP_SPARE_S = 60.0, 15.0  # an idle machine needs 1 s; the rest is for a loaded one
ANSWER_S = 15.0  # of a broker that was already running
# Shorter than in production, because a test waits for both: an unknown task type, and tasks running at the end.
DEFAULTS: dict[str, Any] = {"unknown_type_grace_s": 2.0, "drain_grace_s": 2.0}


class Running:
    """An App whose worker runs in this process. The submit() and submit_sync() of its tasks work, too.

    app, settings    the App, and the settings that hold while it runs
    bootstrap        address of the broker
    prefix           prefix of the topics
    """

    def __init__(self, app: App, settings: Settings, kafka: KafkaSettings) -> None:
        self.app = app
        self.settings = settings
        self.bootstrap = settings.bootstrap()
        self.prefix = settings.prefix
        self._kafka = kafka

    def __repr__(self) -> str:
        return f"Running({self.app.name!r}, prefix={self.prefix!r}, bootstrap={self.bootstrap!r})"

    @property
    def client(self) -> Client:
        """The app's synchronous client; in `async def` use `app.async_client()`."""
        return self.app.client()

    def history(self, task_id: str) -> list[TaskResponse]:
        """The status events of a task so far, oldest first."""
        from streamtask.schema_registry import Formats

        topic = self.settings.topics.status
        ends = topic_ends(self._kafka, [topic])
        found: list[TaskResponse] = []
        with closing(Formats(self.settings)) as formats, Tail(self._kafka, [topic]) as tail:
            while not tail.caught_up(ends):
                for record in tail.poll(2_000, 0.2):
                    if record.key == task_id.encode() and record.value is not None:
                        found.append(decode_status(record.value, formats.insisting))
        return found

    def audit(self) -> Report:
        """Audit all tasks of the prefix: `assert running.audit().clean`."""
        from streamtask.audit import run_audit

        return run_audit(self._kafka, self.settings.topics)


class RunApp(Protocol):
    """The type of the fixture `streamtask_app`."""

    def __call__(self, app: App, **settings: Any) -> Running:
        """Run a worker of `app` until the test ends. settings: any field of config.Settings."""


@contextmanager
def running(
    app: App, bootstrap: str, *, partitions: int = PARTITIONS, local: bool = True, **settings: Any
) -> Iterator[Running]:
    """Run a worker of `app` in this process while the block runs.

    bootstrap   address of a real Kafka, on which topics with a random prefix are created
    partitions  of each topic, and so the number of shards
    local       the broker uses no TLS or SASL, whatever the app's settings say
    settings    any field of config.Settings

    Raises ConfigError, Unreachable, LifespanError, and at the end the error that stopped the worker, if any.
    """
    if not isinstance(app, App):
        raise ConfigError(f"{app!r} is not an App. Pass the App object, e.g. streamtask_app(app).")
    overrides: dict[str, Any] = {**DEFAULTS, "prefix": f"test.{secrets.token_hex(5)}", "url": "", **settings}
    overrides["bootstrap_servers"] = bootstrap
    if app.settings.metrics_port is not None:
        overrides.setdefault("metrics_port", 0)  # any free port: tests may run side by side
    if local and "kafka" not in settings and app.settings.kafka.get("security.protocol"):
        overrides["kafka"] = {**app.settings.kafka, "security.protocol": "PLAINTEXT"}
    with app.configured(**overrides) as found:
        kafka = found.kafka_for("test")
        ensure_topics(kafka, found.topics, partitions=partitions, timeout_s=READY_S if local else ANSWER_S)
        try:
            with _worker(app, found, overrides):
                yield Running(app, found, kafka)
        finally:
            app.close()
            delete_topics(kafka, found.topics)


@contextmanager
def _worker(app: App, settings: Settings, overrides: dict[str, Any]) -> Iterator[None]:
    """A worker in its own thread, drained at the end."""
    worker = Worker(
        app.name, app.registry, settings, lifespan=app.lifespan, children=_children(app, settings, overrides)
    )
    changed = threading.Event()  # the worker is ready, or has ended
    failed: list[BaseException] = []

    def run() -> None:
        try:
            worker.run(signals=False, ready=changed.set)
        except BaseException as error:  # noqa: BLE001 - the test gets any error
            failed.append(error)
        finally:
            changed.set()

    thread = threading.Thread(target=run, name=f"streamtask-{settings.prefix}", daemon=True)
    thread.start()
    try:
        if not changed.wait(READY_S):
            raise ConfigError(f"The worker of {app.name!r} was not ready within {READY_S:g} s.")
        if failed:
            raise failed.pop()
        yield
    finally:
        worker.stop()
        thread.join(settings.drain_grace_s + STOP_SPARE_S)
        if thread.is_alive():
            worker.stop()
            thread.join(STOP_SPARE_S)
    if failed:
        raise failed.pop()
    assert not thread.is_alive(), f"the worker of {app.name!r} does not end"


def _children(app: App, settings: Settings, overrides: dict[str, Any]) -> Children | None:
    """The children of process handlers. None: the app has none, and no child could import it by a name."""
    wanted = any(handler.kind is HandlerKind.PROCESS for handler in app.registry.values())
    path = path_of(app)
    if path is None:
        if wanted:
            raise ConfigError(
                f"app {app.name!r} has process handlers, so it must be a module-level name that can be imported."
            )
        return None
    return Children(
        path,
        settings.children_max if wanted else 0,
        grace_s=settings.kill_grace_s,
        environment={
            OVERRIDES_VARIABLE: json.dumps(overrides, default=str),
            "PYTHONPATH": os.pathsep.join(one for one in sys.path if one),  # pytest has added to sys.path
        },
    )


def path_of(app: App) -> str | None:
    """`module:name` of an App, if the module of one of its handlers contains it."""
    modules = dict.fromkeys(handler.function.__module__ for handler in app.registry.values())
    for module in modules:
        for name, value in vars(sys.modules.get(module, object)).items():
            if value is app and module != "__main__":
                return f"{module}:{name}"
    return None
