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
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from tests.acceptance.harness import Bench, Running
from tests.chaos.control import Control

APP = "tests.chaos.app:app"
RESTART_S = 0.5
ENVIRONMENT = {
    "STREAMTASK_CONCURRENCY": "40",
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
        self.deaths: dict[int, int] = {}  # pid → ms
        self.disturbed: dict[int, str] = {}  # pid of a worker → what it suffered: see checks.Facts
        self.frozen: set[int] = set()
        self._directory = directory
        self._bootstraps = dict(bootstraps)
        self._old: list[Host] = []

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
                elif now >= host.restart_at:
                    host.restart_at = 0.0
                    host.running.expected = None
                    host.running = self._run(host.network, host.control)
            elif not host.wanted:
                self.hosts.remove(host)
                self._old.append(host)

    def died(self, pid: int) -> None:
        self.deaths.setdefault(pid, time.time_ns() // 1_000_000)

    def wanted(self) -> list[Host]:
        return [host for host in self.hosts if host.wanted]

    def workers(self) -> list[tuple[Host, int]]:
        """Worker processes that live and are not frozen."""
        return [(host, pid) for host in self.wanted() for pid in host.workers() if pid not in self.frozen]

    def supervised(self) -> list[Host]:
        return [host for host in self.wanted() if not host.held and host.alive]

    def guards(self) -> list[int]:
        return self._below("streamtask/children/guard.py")

    def children(self) -> list[int]:
        """Processes that run process handlers."""
        return self._below("streamtask.children.child")

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
        """SIGTERM; it is gone when it is gone."""
        host.wanted = False
        host.running.expected = None
        if host.alive:
            host.running.send(signal.SIGTERM)

    def abandon(self, host: Host) -> None:
        """Kill it at once, and what it has started with it."""
        host.wanted = False
        for pid in host.workers():
            self.died(pid)
        host.running.kill()
        self.died(host.running.pid)

    # --- Processes ----------------------------------------------------------------------------------------------------

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.died(pid)
        for host in self.hosts:
            if pid == host.running.pid:
                host.running.expected = None

    def freeze(self, pid: int) -> bool:
        self.disturbed[pid] = "frozen"
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self.frozen.add(pid)
        return True

    def thaw(self, pid: int) -> None:
        self.frozen.discard(pid)
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
        """Ends of worker processes that their supervisors saw, and who lost a shard unasked."""
        for worker in self.bench.workers:
            pid = worker.pid
            for line in worker.text().splitlines():
                if not line.startswith("{") or '"event"' not in line:
                    continue
                try:
                    told = json.loads(line)
                except ValueError:  # torn by a process that printed between
                    continue
                if told.get("event") == "supervisor_event" and told.get("what") == "child_ended":
                    self.deaths[told["pid"]] = _ms(told["timestamp"])
                elif told.get("event") == "worker_started":
                    pid = int(told["worker"].rsplit(":", 1)[1])
                elif told.get("event") in ("shards_lost", "shard_taken") or told.get("fault") == "fenced":
                    self.disturbed.setdefault(pid, "lost shards")


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1_000)
