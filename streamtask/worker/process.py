"""The process of one worker, and the parent of several: what `streamtask worker APP` starts.

    supervise(app, overrides)                      the parent: N children that run this module
    python -m streamtask.worker.process APP SLOT   one child; its command-line options come through a pipe (child_start.py)

Exit codes of a child: 0 drained, 1 failed (it is restarted), 2 its settings or the cluster cannot work (it is not restarted),
70 the watchdog ended it.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from streamtask.app import App, load_app
from streamtask.config.container import cores
from streamtask.domain.model import HandlerKind
from streamtask.errors import ConfigError, NotAllowed, StreamtaskError, TopicsMissing
from streamtask.execution.parent_watch import die_with_parent
from streamtask.execution.process_pool.pipe import OVERRIDES_VARIABLE as CHILD_OVERRIDES_VARIABLE
from streamtask.execution.process_pool.settings import Children
from streamtask.kafka import permissions
from streamtask.kafka.acls import Role
from streamtask.observability import event_log
from streamtask.worker.child_start import EarlyChildren, SettingsPipe, command_of
from streamtask.worker.core_share import share_of
from streamtask.worker.failover import Failover
from streamtask.worker.free_memory import FreeMemory
from streamtask.worker.heartbeat import Note
from streamtask.worker.memory_budget import budget_of
from streamtask.worker.supervisor import Supervisor

EXIT_FAILED, EXIT_CONFIG = 1, 2
STAYS_WRONG = (ConfigError, TopicsMissing, NotAllowed)  # until a person changes something
COLLECT_AFTER = (50_000, 20, 20)  # new objects; young collections before a middle one; middle ones before a full one
GRACE_SPARE_S = 10.0  # beyond the drain's own grace: for handing over and leaving
FAILOVER_S = 4.0  # at the end, to remove the members of children that were killed


def supervise(app: str, overrides: Mapping[str, Any], early: EarlyChildren | None = None) -> int:
    """Run the worker processes of the app until stopped. Returns the exit code.

    overrides  settings from the command line (None: not given); they win over those of the app and of the environment
    early      children of this app that wait for their settings

    Raises ConfigError, TopicsMissing or Unreachable before any process gets its settings.
    """
    event_log.configure()
    settings = load_app(app).configure(**overrides)
    kafka = settings.kafka_for("supervisor")
    permissions.partition_count(kafka, settings.topics, Role.WORKER)  # what the children need: reported here, once
    # All of them live in one container, and only this process knows how many share its memory and its cores.
    share = share_of(settings.processes, settings.children, cores())
    budget = budget_of(settings.memory_mb, share.processes)
    overrides = {**overrides, "processes": share.processes, "children": share.children}
    if budget.source == "cgroup":
        overrides["memory_mb"] = budget.memory_mb
    if early is not None:
        early.keep(share.processes)
    _log_event("starting", share.log_fields())
    failover = Failover(kafka, settings.topics.group, window_s=settings.session_timeout_ms / 1_000)
    supervisor = Supervisor(
        lambda slot: command_of(app, slot),
        share.processes,
        grace_s=settings.drain_grace_s + GRACE_SPARE_S,
        silent_s=settings.silent_s,
        settings=json.dumps(dict(overrides), default=str),
        early=early.take if early is not None else lambda _slot: None,
        on_event=_log_event,
        on_death=failover.died,
    )
    try:
        return supervisor.run()
    finally:
        failover.close(FAILOVER_S)


def _log_event(name: str, fields: Mapping[str, Any]) -> None:
    event_log.emit("supervisor_event", {"what": name, **fields})


def run_worker(app_path: str, app: App, overrides: Mapping[str, Any], slot: int) -> int:
    """Run one worker in this process until it is stopped."""
    from streamtask.worker.worker import Worker

    settings = app.configure(**overrides)
    tame_collector()
    note, free = Note(), FreeMemory()

    def beat() -> None:
        note.beat()
        free.give_back()

    children = _children(app_path, app, overrides)
    worker = Worker(
        app.name,
        app.registry,
        settings,
        lifespan=app.lifespan,
        slot=slot,
        children=children,
        on_member=note.member,
        on_beat=beat,
    )
    return worker.run()


def _children(app_path: str, app: App, overrides: Mapping[str, Any]) -> Children:
    """The child processes for its process handlers. Without such handlers they run only quarantined tasks, on demand."""
    wanted = any(handler.kind is HandlerKind.PROCESS for handler in app.registry.values())
    return Children(
        app_path,
        app.settings.children_max if wanted else 0,
        grace_s=app.settings.kill_grace_s,
        environment={CHILD_OVERRIDES_VARIABLE: json.dumps(dict(overrides), default=str)},
        on_event=lambda name, fields: event_log.emit("app_event", {"what": name, **fields}),
    )


def tame_collector() -> None:
    """Collect cyclic garbage less often.

    Thousands of open claims hold hundreds of thousands of objects, none of them in a cycle. By default every 700 new
    objects make the collector walk some of them, which takes a third of a worker's time.
    """
    gc.collect()
    gc.freeze()  # imported objects stay
    gc.set_threshold(*COLLECT_AFTER)


def main(argv: list[str]) -> int:
    """The entry point of a child."""
    die_with_parent()
    pipe = SettingsPipe()
    event_log.configure()
    app_path, slot = argv
    # While the parent does the same. It does not need the worker, which takes a fifth of the time.
    importlib.import_module("streamtask.worker.worker")
    app: App | ConfigError
    try:
        app = load_app(app_path)
    except ConfigError as error:
        app = error
    overrides = pipe.read()
    if overrides is None:
        return 0  # the parent has reported why
    try:
        if isinstance(app, ConfigError):
            raise app
        return run_worker(app_path, app, overrides, int(slot))
    except StreamtaskError as error:
        sys.stderr.write(f"streamtask worker: {error}\n")
        # Any other error may pass, so the parent restarts this process.
        return EXIT_CONFIG if isinstance(error, STAYS_WRONG) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
