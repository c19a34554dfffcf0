"""What benchmarks stand on: a broker of their own, topics, real processes of worker and query service, and who measured it.

Everything that is started here ends with its `with`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka

import streamtask
from streamtask.codec import peek_status
from streamtask.codec.avro import RESPONSE
from streamtask.codec.reader import PLAIN
from streamtask.config import PARTITIONS_DEFAULT, TopicNames
from streamtask.config.container import cores
from streamtask.config.kafka import KafkaSettings
from streamtask.devbroker.cluster import DevBroker
from streamtask.devbroker.jars import KAFKA_VERSION
from streamtask.errors import StreamtaskError
from streamtask.kafka.admin import delete_topics, ensure_topics
from streamtask.kafka.tail import Tail, TailRecord

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = PARTITIONS_DEFAULT
STOP_S = 40.0
READY_S = 300.0
APP = "benchmarks.app:app"
LOOK_S = 0.01
SWITCH_S = 0.0005


class Failed(StreamtaskError):
    """The benchmark could not measure what it is about."""


@contextlib.contextmanager
def broker(bootstrap: str | None) -> Iterator[str]:
    """The address of the given broker, else of one that is started for this run."""
    if bootstrap:
        yield bootstrap
        return
    with DevBroker() as kafka:
        yield kafka.bootstrap


@contextlib.contextmanager
def fair_threads() -> Iterator[None]:
    """For a benchmark that writes in one thread and times answers in another: by default a thread goes on for 5 ms while the
    other one has its answer already."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def topics(bootstrap: str, prefix: str, partitions: int) -> Iterator[TopicNames]:
    """The topics of a prefix that is this run's alone; deleted at the end."""
    names = TopicNames(f"{prefix}{secrets.token_hex(3)}")
    ensure_topics(kafka(bootstrap), names, partitions=partitions)
    try:
        yield names
    finally:
        delete_topics(kafka(bootstrap), names)


def kafka(bootstrap: str) -> KafkaSettings:
    return KafkaSettings(bootstrap, client_id="benchmarks")


class OtherProcess:
    """A process that was started here, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises Failed when it has ended."""
        if self.process.poll() is not None:
            text = self._log.read_text(errors="replace")[-3_000:]
            raise Failed(f"{self.process.args!r} ended with exit code {self.process.returncode}:\n{text}")

    def said(self) -> str:
        """All that it has written."""
        return self._log.read_text(errors="replace")

    def troubles(self) -> list[str]:
        """What it warned of, by event name."""
        return [line for line in self.said().splitlines() if '"level": "warning"' in line]


def worker(
    bootstrap: str, prefix: str, concurrency: int, *, app: str = APP, **settings: str
) -> contextlib.AbstractContextManager[OtherProcess]:
    """A real worker process with benchmarks.app, as `streamtask worker` starts it; drained at the end. settings: more of
    them, by their names."""
    given = {"BOOTSTRAP_SERVERS": bootstrap, "PREFIX": prefix, "CONCURRENCY": str(concurrency), **settings}
    return _process(["streamtask.worker.process", app, "0"], given)


def command_worker(bootstrap: str, prefix: str, concurrency: int) -> contextlib.AbstractContextManager[OtherProcess]:
    """`streamtask worker` itself with benchmarks.app: the parent of one worker process."""
    return supervisor(bootstrap, prefix, concurrency, 1)


def default_worker(bootstrap: str, prefix: str) -> contextlib.AbstractContextManager[OtherProcess]:
    """`streamtask worker` with benchmarks.app and all its defaults: only the broker and the topics are named."""
    return _process(["streamtask", "worker", APP], {"BOOTSTRAP_SERVERS": bootstrap, "PREFIX": prefix})


def supervisor(
    bootstrap: str, prefix: str, concurrency: int, processes: int
) -> contextlib.AbstractContextManager[OtherProcess]:
    """`streamtask worker --processes N`: the parent of N worker processes, with the settings that a user has."""
    given = {"BOOTSTRAP_SERVERS": bootstrap, "PREFIX": prefix, "CONCURRENCY": str(concurrency)}
    return _process(["streamtask", "worker", APP, "--processes", str(processes)], given)


class QueryService(NamedTuple):
    """A process of `streamtask serve`, and where it answers."""

    process: OtherProcess
    url: str

    def until_ready(self, timeout_s: float = READY_S) -> None:
        """Everything that lay in the topics is in the view."""
        until_said(self.process, r"^ready: ", timeout_s)


@contextlib.contextmanager
def query_service(bootstrap: str, prefix: str) -> Iterator[QueryService]:
    """`streamtask serve` on a temporary SQLite file, once it listens."""
    settings = {"BOOTSTRAP_SERVERS": bootstrap, "PREFIX": prefix}
    with _process(["streamtask", "serve", "--port", "0"], settings) as process:
        yield QueryService(process, until_said(process, r"query service: (\S+)", READY_S)[1])


@contextlib.contextmanager
def bare_server(body_bytes: int) -> Iterator[str]:
    """The address of benchmarks.bare."""
    with _process(["benchmarks.bare", str(body_bytes)], {}) as process:
        yield until_said(process, r"listening: (\S+)", READY_S)[1]


def until_said(process: OtherProcess, pattern: str, timeout_s: float) -> re.Match[str]:
    """What the pattern finds in its log, once it does. Raises Failed."""
    deadline = time.monotonic() + timeout_s
    while not (found := re.search(pattern, process.said(), re.MULTILINE)):
        process.check()
        if time.monotonic() > deadline:
            raise Failed(f"{process.process.args!r} did not say {pattern!r} within {timeout_s:g} s:\n{process.said()}")
        time.sleep(LOOK_S)
    return found


@contextlib.contextmanager
def _process(arguments: list[str], settings: dict[str, str]) -> Iterator[OtherProcess]:
    """`python -m …` with these settings and no others; SIGTERM at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")}
    environment |= {f"STREAMTASK_{name}": value for name, value in settings.items()} | {"PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="streamtask-bench-") as directory:
        log = Path(directory) / "log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            yield OtherProcess(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def status_records(bootstrap: str, names: TopicNames) -> Iterator[list[TailRecord]]:
    """Everything that is committed in tasks.status now."""
    return records_of(bootstrap, [names.status])


def records_of(bootstrap: str, topics: Sequence[str], *, with_headers: bool = False) -> Iterator[list[TailRecord]]:
    """Everything that is committed in these topics now."""
    with Tail(kafka(bootstrap), topics, with_headers=with_headers) as tail:
        ends = tail.ends(read_committed=True)
        while not tail.caught_up(ends):
            yield tail.poll(10_000, 0.1)


def check_histories(counts: Counter[str], tasks: int) -> None:
    """Every task has its CREATED, RUNNING and COMPLETED, once."""
    wanted = {"created": tasks, "running": tasks, "completed": tasks}
    if counts != wanted:
        raise Failed(f"{tasks} tasks should have left {wanted}, but there are {dict(counts)}: nothing was measured.")


def status_counts(bootstrap: str, names: TopicNames) -> Counter[str]:
    """How many events of each status are committed now."""
    return Counter(status_of(record) for records in status_records(bootstrap, names) for record in records)


def status_of(record: TailRecord) -> str:
    return str(peek_status(PLAIN.json(RESPONSE, record.value or b""))["status"])


# --- Who measured -----------------------------------------------------------------------------------------------------


def circumstances() -> dict[str, Any]:
    """Machine, versions and commit, as they stand beside every figure."""
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "cpu": _cpu(),
            "cores": cores().count,
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        },
        "versions": {
            "streamtask": streamtask.__version__,
            "python": platform.python_version(),
            "confluent_kafka": confluent_kafka.__version__,
            "librdkafka": confluent_kafka.libversion()[0],
            "kafka": KAFKA_VERSION,
        },
        "commit": _commit(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The short id, with `+` when the package differs from it; "" outside a checkout."""
    try:
        said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "streamtask"], cwd=ROOT, capture_output=True)
    except OSError:
        return ""
    return said.stdout.strip() + ("+" if changed.stdout.strip() else "") if said.returncode == 0 else ""
