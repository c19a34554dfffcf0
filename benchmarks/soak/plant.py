"""What the soak runs: a broker whose segments are small, three hosts with a worker each, the query service, the load.

    steady   a host that nothing is done to: its worker is what must not grow; it gives and takes shards at each rebalance
    struck   a host whose worker process is killed now and then; its supervisor starts another one
    passing  a host that is drained now and then, when its successor has joined

Everything that is started here ends with its `with`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak import queues
from benchmarks.soak.serve import CACHE_KIB
from benchmarks.stand import ROOT, Failed
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.devbroker.cluster import DevBroker
from streamtask.kafka.admin import ensure_topics

APP = "benchmarks.soak.app:app"
CHILDREN = 2  # of each worker: processes that run process handlers
START_S, STOP_S = 180.0, 180.0  # 5 s and 3 s on a quiet machine
TROUBLE = ("Traceback", "AssertionError", "worker_stuck", "poisoned", '"level": "error"')
# What `log.cleaner` looks after is seen within a minute, not after Kafka's 15 s and the topics' hour.
BROKER = {
    "log.cleaner.backoff.ms": "1000",
    "log.retention.check.interval.ms": "5000",
    "log.initial.task.delay.ms": "500",
    "log.segment.delete.delay.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


def status_settings(segment_ms: int) -> dict[str, str]:
    """Of tasks.status: a segment is closed after this time or 1 MiB (Kafka's least), and cleaned soon."""
    return {
        "segment.bytes": str(1 << 20),
        "segment.ms": str(segment_ms),
        "min.cleanable.dirty.ratio": "0.2",
        "delete.retention.ms": str(segment_ms),
    }


class Running:
    """One process that was started here."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self.process, self._log = name, process, log
        self.expected = True  # to live

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def children(self) -> list[int]:
        """Its own, oldest first: of a supervisor the worker, of a worker its children."""
        return children(self.pid)

    def complaints(self) -> list[str]:
        """Lines of its log that should not be there."""
        return [line for line in self.text().splitlines() if any(word in line for word in TROUBLE)]

    def end(self, timeout_s: float = STOP_S) -> int:
        """SIGTERM, then its exit code."""
        self.expected = False
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"{self.name} did not end within {timeout_s:g} s of SIGTERM.") from None


def children(pid: int) -> list[int]:
    """Living children of a process, oldest first."""
    try:
        found = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    alive = []
    for child in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.append(child.pid)
    return alive


class Plant:
    """See the module. open() starts all of it; strike() and pass_on() are the rebalances."""

    def __init__(
        self, kafka: DevBroker, names: TopicNames, directory: Path, *, rate: float, cache_kib: int, queues_ms: int
    ) -> None:
        """cache_kib: of the view's store; 0: as it is."""
        self.kafka, self.names, self.directory, self.rate = kafka, names, directory, rate
        self.queues = directory / "queues"
        self.queues.touch()
        self.all: list[Running] = []
        self._environment = {name: text for name, text in os.environ.items() if not name.startswith("STREAMTASK_")} | {
            "STREAMTASK_BOOTSTRAP_SERVERS": kafka.bootstrap,
            "STREAMTASK_PREFIX": names.prefix,
            "STREAMTASK_CHILDREN": str(CHILDREN),
            "STREAMTASK_METRICS_PORT": "0",
            "PYTHONUNBUFFERED": "1",
            queues.PLACE: str(self.queues),
            queues.EVERY_MS: str(queues_ms),
            **({CACHE_KIB: str(cache_kib)} if cache_kib else {}),
        }

    def open(self) -> None:
        self.steady, self.struck, self.passing = self._host("steady"), self._host("struck"), self._host("passing")
        self.view = self._start(
            "view", "benchmarks.soak.serve", "--port", "0", "--store", str(self.directory / "view.db")
        )
        self.url = _until(
            lambda: re.search(r"ready: (\S+)", self.view.text()), "the query service is ready", self.view
        )[1]
        for host in (self.steady, self.struck, self.passing):
            self._until_it_works(host)
        self.worker = self.steady.children()[0]
        self.load = self._start(
            "load", "benchmarks.soak.load", self.kafka.bootstrap, self.names.prefix, self.url, str(self.rate)
        )
        _until(lambda: "started" in self.load.text(), "the load has started", self.load)

    def roles(self) -> dict[str, int]:
        """The processes that live as long as the soak."""
        return {
            "worker": self.worker,
            "supervisor": self.steady.pid,
            "view": self.view.pid,
            "client": self.load.pid,
        }

    def check(self) -> None:
        """Raises Failed when one of those, or a host, has ended or complained."""
        for one in self.all:
            if one.expected and one.process.poll() is not None:
                raise Failed(f"{one.name} ended with exit code {one.process.returncode}:\n{one.text()[-3_000:]}")
            if lines := one.complaints():
                raise Failed(f"{one.name} complained:\n" + "\n".join(lines[:5]))
        if self.worker not in self.steady.children():
            raise Failed(f"The steady worker has ended:\n{self.steady.text()[-3_000:]}")

    def strike(self) -> None:
        """SIGKILL for a worker process; returns when its supervisor's next one has shards."""
        before = self.struck.text().count('"shards_assigned"')
        (pid,) = _until(self.struck.children, "the struck host has a worker")
        os.kill(pid, signal.SIGKILL)
        self._until_it_works(self.struck, before)

    def pass_on(self) -> None:
        """A new host, and when it has its share the old one is drained."""
        old, self.passing = self.passing, self._host("passing")
        self._until_it_works(self.passing)
        code = old.end()
        if code:
            raise Failed(f"A drained host ended with exit code {code}:\n{old.text()[-3_000:]}")
        self.all.remove(old)

    def stop_load(self) -> dict[str, int]:
        """Returns what it has counted."""
        code = self.load.end()
        if code:
            raise Failed(f"The load ended with exit code {code}:\n{self.load.text()[-3_000:]}")
        counts: dict[str, int] = json.loads(self.load.text().splitlines()[-1])
        return counts

    def stop(self) -> None:
        """The others, in good order. Raises Failed when one complained, or did not end well."""
        for one in self.all:
            if one.expected and (code := one.end()):
                raise Failed(f"{one.name} ended with exit code {code}:\n{one.text()[-3_000:]}")
            if lines := one.complaints():
                raise Failed(f"{one.name} complained:\n" + "\n".join(lines[:5]))

    def close(self) -> None:
        """End what is still there, at once."""
        for one in self.all:
            one.expected = False
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()

    def _host(self, name: str) -> Running:
        return self._start(name, "streamtask", "worker", APP, "--processes", "1")

    def _start(self, name: str, *arguments: str) -> Running:
        log = self.directory / f"{name}-{len(list(self.directory.glob('*.log')))}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=out, stderr=out, cwd=ROOT, env=self._environment
            )
        self.all.append(Running(name, process, log))
        return self.all[-1]

    def _until_it_works(self, host: Running, before: int = 0) -> None:
        _until(lambda: host.text().count('"shards_assigned"') > before, f"{host.name} was given shards", host)


def _until(happened: Callable[[], Any], what: str, of: Running | None = None) -> Any:
    """What it returns, once that is true."""
    deadline = time.monotonic() + START_S
    while not (found := happened()):
        if time.monotonic() > deadline:
            raise Failed(f"Not within {START_S:g} s: {what}.{'' if of is None else f' Its log: {of.text()[-2_000:]}'}")
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def plant(
    directory: Path, *, partitions: int, segment_ms: int, environment: Mapping[str, str] | None = None, **more: Any
) -> Iterator[Plant]:
    """A broker and all that runs on it. environment: more of it for the processes."""
    names = TopicNames("soak")
    with DevBroker(config=BROKER, directory=directory / "kafka", heap="320m") as kafka:
        settings = KafkaSettings(kafka.bootstrap, client_id="soak")
        ensure_topics(settings, names, partitions=partitions)
        set_topic(settings, names.status, status_settings(segment_ms))
        one = Plant(kafka, names, directory, **more)
        one._environment.update(environment or {})
        try:
            one.open()
            yield one
        finally:
            one.close()


def set_topic(settings: KafkaSettings, topic: str, values: Mapping[str, str]) -> None:
    """Set some settings of a topic, and leave the others as they are."""
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()]
    admin = AdminClient(settings.admin())
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)
