"""The workers of a chaos run: hosts that are started, scaled, drained, frozen and killed, and what is known of their ends.

A host is a supervisor with one worker process (`streamtask worker`), or a worker without a parent whose steps can be held
(tests.chaos.held_worker), which the fleet starts again when it dies, as a supervisor would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.acceptance.harness import Bench, Running
from tests.chaos.checks import Trouble
from tests.chaos.control import Control

APP = "tests.chaos.app:app"
RESTART_S = 0.5
FOREVER_MS = 1 << 62
# A worker whose session is over hears it from a coordinator that answers; the longest outage of a run is shorter than this.
UNHEARD_MS = 45_000
EXIT_CONFIG = 2
UNREACHED = "broker answered"  # of a supervisor that starts while its brokers are away: 2, as documented
# 0 drained; 1 failed, or a second SIGTERM; 3 is that of async_exits; killed; ended by a signal before it could hear it.
WORKER_CODES = frozenset({0, 1, 3, -signal.SIGKILL, -signal.SIGTERM})
WATCHED = frozenset(
    {"position_unknown", "position_recovered", "records_lost", "record_refused", "shard_refused", "worker_stuck"}
)
ENVIRONMENT = {
    "STREAMTASK_CONCURRENCY": "200",
    "STREAMTASK_THREADS": "8",
    "STREAMTASK_CHILDREN": "2",
    "STREAMTASK_DRAIN_GRACE_S": "3",
    "STREAMTASK_UNKNOWN_TYPE_GRACE_S": "2",
    # librdkafka looks for new partitions every five minutes; a run does not wait for that
    "STREAMTASK_KAFKA": json.dumps({"topic.metadata.refresh.interval.ms": 5_000}),
}


@dataclass
class Host:
    """One supervisor, or one worker that can be held. wanted: it is to be there."""

    number: int
    running: Running
    control: Control | None = None
    network: str = ""
    wanted: bool = True
    restart_at: float = field(default=0.0)

    @property
    def held(self) -> bool:
        return self.control is not None

    @property
    def alive(self) -> bool:
        return self.running.process.poll() is None

    def workers(self) -> list[int]:
        if not self.alive:
            return []
        return [self.running.pid] if self.held else self.running.children()


class Fleet:
    """bootstraps: by the name of a network, what its hosts connect to; they take turns."""

    def __init__(self, bench: Bench, directory: Path, bootstraps: Mapping[str, str]) -> None:
        self.bench = bench
        self.hosts: list[Host] = []
        self.deaths: defaultdict[int, list[int]] = defaultdict(list)  # pid → ms; a pid comes again
        self.troubles: dict[int, list[Trouble]] = defaultdict(list)  # see checks.Facts
        self.moves: dict[int, list[int]] = defaultdict(list)  # likewise
        self.told: list[
            tuple[str, dict[str, Any]]
        ] = []  # what the logs say of positions and records, with the log's name
        self.codes: dict[int, int] = {}  # of worker processes that their supervisors saw end
        self.missing: set[str] = set()  # topics that were not there for a moment
        self.surprises: list[str] = []  # hosts that ended though nobody wanted it
        self.frozen: set[int] = set()
        self._directory = directory
        self._bootstraps = dict(bootstraps)
        self._old: list[Host] = []
        self._killed: set[int] = set()

    # --- Hosts --------------------------------------------------------------------------------------------------------

    def start(self, *, held: bool = False) -> Host:
        number = len(self.hosts) + len(self._old) + 1
        networks = sorted(self._bootstraps)
        network = networks[number % len(networks)]
        control = Control.create(self._directory / f"control-{number}") if held else None
        host = Host(number, self._run(network, control), control, network)
        self.hosts.append(host)
        return host

    def _run(self, network: str, control: Control | None) -> Running:
        environment = ENVIRONMENT | {"STREAMTASK_BOOTSTRAP_SERVERS": self._bootstraps[network]}
        if control is None:
            return self.bench.supervised(1, app=APP, **environment)
        argv = [sys.executable, "-m", "tests.chaos.held_worker", APP, str(len(self.bench.workers))]
        return self.bench._start(argv, environment | {"CHAOS_CONTROL": str(control.path)})

    def tend(self) -> None:
        """Start again, as an orchestrator would, what has no supervisor, and supervisors that found no broker when they
        started; forget hosts that have ended."""
        now = time.monotonic()
        for host in list(self.hosts):
            if host.alive:
                continue
            self.died(host.running.pid)
            if host.wanted:
                if not host.restart_at:
                    host.restart_at = now + RESTART_S
                    self._ended(host)
                elif now >= host.restart_at:
                    host.restart_at = 0.0
                    host.running.expected = None
                    host.running = self._run(host.network, host.control)
            elif not host.wanted:
                self.hosts.remove(host)
                self._old.append(host)

    def _ended(self, host: Host) -> None:
        """By itself, or because a fault killed it: what it may end with. docs/operations.md, exit codes."""
        code, text = host.running.process.returncode, host.running.text()
        if host.running.pid in self._killed or self.excused(host.running):
            return
        if host.held and code in WORKER_CODES:
            return
        self.surprises.append(f"host {host.number} ended by itself with exit code {code}: {text[-500:]}")

    def excused(self, running: Running) -> bool:
        """Exit code 2, because no broker answered or a topic was missing when it started."""
        text = running.text()
        why = UNREACHED in text or any(topic in text for topic in self.missing)
        return running.process.returncode == EXIT_CONFIG and why

    def died(self, pid: int) -> None:
        self.deaths[pid].append(now_ms())

    def wanted(self) -> list[Host]:
        return [host for host in self.hosts if host.wanted]

    def workers(self) -> list[tuple[Host, int]]:
        """Worker processes that live and are not frozen."""
        return [(host, pid) for host in self.wanted() for pid in host.workers() if pid not in self.frozen]

    def supervised(self) -> list[Host]:
        return [host for host in self.wanted() if not host.held and host.alive]

    def guards(self) -> list[int]:
        return self._below("streamtask/execution/process_pool/reaper.py")

    def children(self) -> list[int]:
        """Processes that run process handlers."""
        return self._below("streamtask.execution.process_pool.child")

    def _below(self, name: str) -> list[int]:
        found = []
        for _, pid in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(pid).children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if any(part.endswith(name) for part in child.cmdline()):
                            found.append(child.pid)
        return sorted(found)

    def drain(self, host: Host) -> None:
        """SIGTERM; it is gone when it is gone. One that still starts ends by the signal itself, and holds nothing."""
        host.wanted = False
        host.running.expected = None
        host.running.process.send_signal(signal.SIGTERM)

    def abandon(self, host: Host) -> None:
        """Kill it at once, and what it has started with it."""
        host.wanted = False
        self._killed.add(host.running.pid)
        for pid in host.workers():
            self.died(pid)
        host.running.kill()
        self.died(host.running.pid)

    # --- Processes ----------------------------------------------------------------------------------------------------

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.died(pid)
        self._killed.add(pid)
        for host in self.hosts:
            if pid == host.running.pid:
                host.running.expected = None

    def freeze(self, pid: int) -> bool:
        self.suffers(pid, "frozen")
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self.frozen.add(pid)
        return True

    def suffers(self, pid: int, why: str, clock_ms: int = 0) -> None:
        """From now on, until it is over."""
        self.troubles[pid].append(Trouble(why, now_ms(), FOREVER_MS, clock_ms))

    def over(self, pid: int, why: str) -> None:
        """Of all that began and is not over yet."""
        self.troubles[pid] = [
            replace(one, until_ms=now_ms()) if one.why == why and one.until_ms == FOREVER_MS else one
            for one in self.troubles[pid]
        ]

    def thaw(self, pid: int) -> None:
        self.frozen.discard(pid)
        self.over(pid, "frozen")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def thaw_all(self) -> None:
        for pid in list(self.frozen):
            self.thaw(pid)

    @staticmethod
    def stands(pid: int) -> bool:
        """It is stopped."""
        try:
            return psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    # --- What the logs say --------------------------------------------------------------------------------------------

    def read_logs(self) -> None:
        """Ends of worker processes that their supervisors saw; who lost or gave back shards; what was told of positions."""
        for worker in self.bench.workers:
            pid = worker.pid
            for line in worker.text().splitlines():
                if not line.startswith("{") or '"event"' not in line:
                    continue
                try:
                    told = json.loads(line)
                except ValueError:  # torn by a process that printed between
                    continue
                name = told.get("event")
                if name == "worker_started":
                    pid = int(told["worker"].rsplit(":", 1)[1])
                elif name == "supervisor_event" and told.get("what") == "child_ended":
                    self.deaths[told["pid"]].append(at_ms(told))
                    self.codes[told["pid"]] = told["code"]
                elif name in ("shards_lost", "shard_taken") or told.get("fault") == "fenced":
                    self.troubles[pid].append(Trouble("lost shards", at_ms(told) - UNHEARD_MS, at_ms(told)))
                elif name in ("shards_revoked", "worker_draining"):
                    self.moves[pid].append(at_ms(told))
                elif name in WATCHED:
                    self.told.append((worker.log.name, told))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def at_ms(told: Mapping[str, Any]) -> int:
    """When a line of a log was written."""
    return int(datetime.fromisoformat(told["timestamp"].replace("Z", "+00:00")).timestamp() * 1_000)
