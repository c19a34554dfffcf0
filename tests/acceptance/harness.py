"""Real worker processes on a real Kafka: start, stop, kill, freeze, and what can be seen of them from outside.

A Bench is one prefix with its workers. `finish()` ends a test: every worker drains cleanly, the audit says `finished`,
every execution has its own attempt, written ahead, and none began after the end of its task. Waiting is for events,
with deadlines; nothing sleeps for a guessed time.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from streamtask.audit import Report, run_audit
from streamtask.client import Client, SyncReceipt
from streamtask.codec import DeadRecord, decode_dead, decode_status
from streamtask.codec.reader import PLAIN
from streamtask.config import TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import TaskResponse
from streamtask.kafka.tail import Tail
from tests.acceptance import limits

ROOT = Path(__file__).parents[2]
APP = "tests.acceptance.apps:app"
SESSION_MS = 3_000  # the shortest that KafkaSettings takes
# For workers whose attempts are counted: a machine that is busy for 3 s would put them out of the group, and the tasks that
# they run would be tried once more. It costs no time where no session has to end.
PATIENT = {"STREAMTASK_SESSION_TIMEOUT_MS": "20000"}
# Only what has failed takes this long. A process that starts in 1 s takes 15 s on a machine with twenty others at work.
WAIT_S = 60.0
T = TypeVar("T")
TROUBLE = ("Traceback", "AssertionError", "worker_stuck", "poisoned")


def whole_lines(text: str) -> list[str]:
    """Without the last one, if it has no end: whoever appends it, in two pages, is not done (seen once)."""
    return text[: text.rfind("\n") + 1].splitlines()


def until(happened: Callable[[], T | None], what: str | Callable[[], str], timeout_s: float = WAIT_S) -> T:
    """What `happened` returns, as soon as it is true. Fails at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (found := happened()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Execution:
    """One line of the record. ms: wall clock of this machine; parent: of pid."""

    id: str
    origin: str
    attempt: int
    what: str
    pid: int
    type: str
    ms: int
    parent: int = 0


@dataclass(frozen=True)
class Seen:
    """A status event with its place and the time when its producer wrote it."""

    event: TaskResponse
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes

    @property
    def status(self) -> str:
        return self.event.status.value

    @property
    def code(self) -> str | None:
        return self.event.error_details.code if self.event.error_details is not None else None


class Running:
    """One process that a test started, and its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.expected: int | None = 0  # exit code; None: whatever it was

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> list[str]:
        """Of its log; one that is being written is not there yet."""
        return whole_lines(self.text())

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it told the operator under this name."""
        lines = (line for line in self.lines() if line.startswith("{") and f'"{name}"' in line)
        return [told for told in map(json.loads, lines) if told["event"] == name]

    def children(self) -> list[int]:
        """The worker processes under a supervisor, oldest first."""
        try:
            found = psutil.Process(self.pid).children()
            return [child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def send(self, number: signal.Signals) -> None:
        """Not before it could hear it: a process that is a moment old ends by any signal."""
        until(lambda: self.process.poll() is not None or self._began(), lambda: f"{self.log.name} has begun")
        self.process.send_signal(number)

    def _began(self) -> bool:
        """It has told of its start (supervisor, worker, query service), and so has its handlers for signals."""
        text = self.text()
        return any(mark in text for mark in ('"child_started"', '"worker_started"', "ready: http"))

    def kill(self) -> None:
        self.expected = None
        self.process.kill()
        self.process.wait()

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return self.process.wait(timeout_s)

    def drain(self, timeout_s: float = WAIT_S) -> int:
        """SIGTERM once, then its exit code."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        return self.wait(timeout_s)


class Bench:
    """One prefix on the broker, its worker processes, its client, and what can be seen of it."""

    def __init__(self, bootstrap: str, names: TopicNames, directory: Path, *, quiet: bool = False) -> None:
        """quiet: its own clients do not complain on stderr of brokers that are away."""
        extra = {"log_level": 0, "topic.metadata.refresh.interval.ms": 5_000} if quiet else {}
        self.names = names
        self.kafka = KafkaSettings(bootstrap, client_id="acceptance", extra=extra)
        self.directory = directory
        self.workers: list[Running] = []
        self._groups: list[limits.Group] = []  # of workers that have a memory limit
        self.reader = PLAIN  # of status events, and of the audit
        self.tolerated: tuple[str, ...] = ()
        self._record = directory / "record"
        self._record.touch()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")},
            "STREAMTASK_BOOTSTRAP_SERVERS": bootstrap,
            "STREAMTASK_PREFIX": names.prefix,
            "STREAMTASK_SESSION_TIMEOUT_MS": str(SESSION_MS),
            "ACCEPTANCE_RECORD": str(self._record),
            "PYTHONUNBUFFERED": "1",
        }
        self.settings = load_settings(bootstrap_servers=bootstrap, prefix=names.prefix, kafka=extra)
        self.client = Client(settings=self.settings)
        self._tail = Tail(self.kafka, [names.status, names.dead], with_headers=True)
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "message.max.bytes": 8_000_000, "linger.ms": 0, **extra}
        )
        self._history: dict[str, list[Seen]] = defaultdict(list)
        self._letters: list[DeadRecord] = []
        self.known_origins: set[str] = set()  # with a status event
        self.ended: set[str] = set()  # origins with a terminal event, and those of dead letters
        self._letter_ms: dict[str, int] = {}  # when the last dead letter of an origin was written

    # --- Processes ----------------------------------------------------------------------------------------------------

    def _start(self, argv: list[str], environment: Mapping[str, str]) -> Running:
        log = self.directory / f"worker-{len(self.workers)}.log"
        group = limits.group()
        if group is not None:
            self._groups.append(group)
            argv = group.within(argv)
        with log.open("wb") as out:
            process = subprocess.Popen(
                argv, stdout=out, stderr=out, cwd=ROOT, env={**self._environment, **environment}, process_group=0
            )
        worker = Running(process, log)
        self.workers.append(worker)
        return worker

    def supervised(
        self, processes: int = 1, environment: Mapping[str, str] | None = None, /, *, app: str = APP, **more: str
    ) -> Running:
        """`streamtask worker`: a supervisor and its children. environment, more: variables of its environment."""
        argv = [sys.executable, "-m", "streamtask", "worker", app, "--processes", str(processes)]
        return self._start(argv, {**(environment or {}), **more})

    def worker(
        self,
        environment: Mapping[str, str] | None = None,
        /,
        *,
        app: str = APP,
        engine: Mapping[str, Any] | None = None,
        **more: str,
    ) -> Running:
        """One worker process without a parent. engine: fields of EngineConfig that are shorter here. environment, more:
        variables of its environment."""
        environment = {**(environment or {}), **more}
        module = "streamtask.worker.process"
        if engine is not None:
            module = "tests.acceptance.short"
            environment["ACCEPTANCE_ENGINE"] = json.dumps(engine)
        return self._start([sys.executable, "-m", module, app, str(len(self.workers))], environment)

    def owned_by(self, worker: Running) -> set[int]:
        """Shards that a single worker says it has (it told of every assignment and revoke)."""
        owned: set[int] = set()
        for line in worker.lines():
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") == "shards_assigned":
                owned |= set(told["shards"])
            elif told.get("event") in ("shards_revoked", "shards_lost"):
                owned -= set(told["shards"])
        return owned

    def until_owning(self, worker: Running, count: int) -> None:
        until(lambda: len(self.owned_by(worker)) == count, f"worker {worker.pid} owns {count} shards")

    # --- What can be seen ---------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read what is new in status and dead letters (read committed)."""
        while records := self._tail.poll(2_000, 0.05):
            for topic, partition, offset, timestamp_ms, key, value, headers in records:
                if topic == self.names.dead:
                    self._letters.append(decode_dead(partition, offset, timestamp_ms, key, value, headers))
                    self.ended.add(self._letters[-1].origin)
                    self._letter_ms[self._letters[-1].origin] = timestamp_ms
                elif value is not None:
                    event = decode_status(value, self.reader)
                    self._history[event.task_id].append(Seen(event, partition, offset, timestamp_ms, value))
                    self.known_origins.add(event.origin or "")
                    if event.ended:
                        self.ended.add(event.origin or "")
                    elif timestamp_ms > self._letter_ms.get(event.origin or "", timestamp_ms):
                        # A duplicate that was refused, before the offsets were lost (decision 0007): it is a task now.
                        self.ended.discard(event.origin or "")

    def find_partitions(self) -> None:
        """Also look at partitions that were added since."""
        self._tail._admin = None  # what a client knows of a topic's partitions is as old as its first question
        self._tail.refresh()

    def read_anew(self, topic: str) -> None:
        """It was deleted and made anew: from its beginning, beside what was read before. By a new client, since the old
        one may stay with the leaders of the topic that is gone (Tail.renew)."""
        self._tail.drop([place for place in self._tail.positions() if place[0] == topic])
        self._tail.renew()
        self.find_partitions()

    def history(self, task_id: str) -> list[Seen]:
        self.look()
        return list(self._history.get(task_id, ()))

    def histories(self) -> dict[str, list[Seen]]:
        self.look()
        return {task_id: list(events) for task_id, events in self._history.items()}

    def unread(self) -> str:
        """What its own reader has not read, though it could; "" when there is nothing."""
        read = self._tail.positions()
        behind = {place: (read.get(place), end) for place, end in self._tail.ends().items() if read.get(place, 0) < end}
        return f"; and the harness has not read (read, end) {behind}" if behind else ""

    def known(self) -> dict[str, list[Seen]]:
        """What was read so far; asks no broker."""
        return dict(self._history)

    def letters(self) -> list[DeadRecord]:
        self.look()
        return list(self._letters)

    def statuses(self, task_id: str) -> list[str]:
        return [seen.status for seen in self.history(task_id)]

    def end(self, task_id: str, timeout_s: float = WAIT_S) -> Seen:
        """The terminal event of a task."""

        def found() -> Seen | None:
            return next((seen for seen in self.history(task_id) if seen.event.ended), None)

        return until(found, lambda: f"{task_id} ends; it is {self.statuses(task_id)}", timeout_s)

    def ends(self, task_ids: Iterable[str], timeout_s: float = WAIT_S) -> dict[str, Seen]:
        """The terminal events of all these tasks."""
        wanted = set(task_ids)

        def open_() -> set[str]:
            self.look()
            return {one for one in wanted if not any(seen.event.ended for seen in self._history.get(one, ()))}

        until(
            lambda: not open_(),
            lambda: f"all end; open are {[(i, self.statuses(i)) for i in sorted(open_())[:5]]}",
            timeout_s,
        )
        return {one: next(seen for seen in self._history[one] if seen.event.ended) for one in wanted}

    def until_status(self, task_id: str, status: str, count: int = 1, timeout_s: float = WAIT_S) -> None:
        until(
            lambda: self.statuses(task_id).count(status) >= count,
            lambda: f"{task_id} is {status}; it is {self.statuses(task_id)}",
            timeout_s,
        )

    def letter(self, origin: str, timeout_s: float = WAIT_S) -> DeadRecord:
        """The dead letter of a request record."""

        def found() -> DeadRecord | None:
            return next((letter for letter in self.letters() if letter.origin == origin), None)

        return until(
            found, lambda: f"a dead letter of {origin}; there are {[x.origin for x in self._letters]}", timeout_s
        )

    def executions(self) -> list[Execution]:
        """What handlers wrote about themselves."""
        return [Execution(**json.loads(line)) for line in whole_lines(self._record.read_text())]

    def running(self) -> list[Execution]:
        """Executions that have begun and not ended (those of a killed worker stay for ever)."""
        lines = self.executions()
        ended = {(one.origin, one.attempt) for one in lines if one.what == "end"}
        return [one for one in lines if one.what == "start" and (one.origin, one.attempt) not in ended]

    def add(self, planted: Execution) -> None:
        """A line in the record that no handler wrote."""
        with self._record.open("a") as record:
            record.write(json.dumps(asdict(planted)) + "\n")

    def only(self, planted: Execution) -> None:
        """Nothing else in the record."""
        self._record.write_text("")
        self.add(planted)

    def until_begun(self, tasks: Iterable[SyncReceipt], count: int) -> None:
        """So many of these tasks have begun; also if all of them have ended before anybody looks."""
        wanted = {one.task_id for one in tasks}
        assert count <= len(wanted), f"{count} of {len(wanted)} tasks never begin"

        def begun() -> int:
            return len(wanted & {one.id for one in self.executions()})

        until(lambda: begun() >= count, lambda: f"{count} of {len(wanted)} begin; {begun()} have")

    def until_all_work(self, processes: int) -> None:
        """So many processes have run a task: each has shards. What is submitted later does not move when another one joins."""
        asked = {one.task_id for one in self.client.submit_many([{"task_type": "noop"}] * 16)}

        def all_work() -> bool:
            begun = {one.id: one.pid for one in self.executions() if one.what == "end"}
            if asked <= begun.keys() and len(set(begun.values())) < processes:
                asked.update(one.task_id for one in self.client.submit_many([{"task_type": "noop"}] * 16))
            return len(set(begun.values())) >= processes

        until(all_work, f"{processes} processes work")

    def starts(self, task_id: str) -> list[Execution]:
        return [one for one in self.executions() if one.id == task_id and one.what == "start"]

    def take_at_most(self, bytes_max: int | None) -> None:
        """max.message.bytes of the status topic; None: as it was made. Raises KafkaException."""
        operation = AlterConfigOpType.DELETE if bytes_max is None else AlterConfigOpType.SET
        value = None if bytes_max is None else str(bytes_max)
        entry = ConfigEntry("max.message.bytes", value, incremental_operation=operation)
        resource = ConfigResource(ResourceType.TOPIC, self.names.status, incremental_configs=[entry])
        client = AdminClient(self.kafka.admin())
        client.incremental_alter_configs([resource])[resource].result(10)

    # --- Records of others --------------------------------------------------------------------------------------------

    def produce(
        self,
        value: bytes | None,
        key: bytes | None = None,
        *,
        band: int = 1,
        partition: int | None = None,
        headers: list[tuple[str, str | bytes | None]] | None = None,
        timestamp_ms: int = 0,
    ) -> str:
        """Put a raw record into a band as another service would; returns its origin."""
        told: list[Any] = []
        more: dict[str, Any] = {} if partition is None else {"partition": partition}
        self._producer.produce(
            self.names.requests[band],
            value,
            key,
            headers=headers,
            timestamp=timestamp_ms,
            on_delivery=lambda error, message: told.append(error or message),
            **more,
        )
        assert self._producer.flush(WAIT_S) == 0, "the broker did not answer"
        message = told[0]
        assert hasattr(message, "offset"), f"refused: {message}"
        return f"{self.names.bands[band].name}-{message.partition()}@{message.offset()}"

    # --- The end ------------------------------------------------------------------------------------------------------

    def finish(self, *, drain: bool = True) -> Report:
        """Drain what runs, audit, and hold the record of executions against the histories."""
        if drain:
            for worker in self.workers:
                if worker.expected is not None:
                    code = worker.drain()
                    assert code == worker.expected, f"exit code {code}:\n{worker.text()[-3_000:]}"
        report = run_audit(self.kafka, self.names, reader=self.reader)
        assert report.finished, report.to_text()
        self.check_executions()
        return report

    def check_executions(self) -> None:
        """Every execution its own attempt, with its RUNNING written ahead; none after the end, none of what never ran."""
        starts = [one for one in self.executions() if one.what == "start"]
        own = {(one.origin, one.attempt) for one in starts}
        assert len(own) == len(starts), f"{len(starts) - len(own)} executions share an attempt with another one"
        by_origin: dict[str, list[Seen]] = defaultdict(list)
        for seen in (seen for events in self.histories().values() for seen in events):
            by_origin[seen.event.origin or ""].append(seen)
        for one in starts:
            events = by_origin[one.origin]
            ahead = [s for s in events if s.status == "running" and s.event.attempt == one.attempt]
            assert ahead, f"{one} has no RUNNING: {[(s.status, s.event.attempt) for s in events]}"
            assert ahead[0].timestamp_ms <= one.ms, f"{one} began before its RUNNING was written"
            for end in (seen for seen in events if seen.event.ended):
                assert one.attempt <= (end.event.attempt or 0), f"{one} though it ended as {end.event}"
                # An old attempt may still begin after the end: a process that was frozen before its first instruction.
                late = one.ms > end.timestamp_ms and one.attempt == end.event.attempt
                assert not late, f"{one} began after the end of its own attempt"

    def stop(self) -> None:
        """End what is still there."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGCONT)
                worker.process.kill()
                worker.process.wait()
        self._tail.close()
        self.client.close()

    def complaints(self, worker: Running) -> list[str]:
        """Lines of its log that no worker should ever write."""
        return [
            line
            for line in worker.text().splitlines()
            if any(word in line for word in TROUBLE) and not any(word in line for word in self.tolerated)
        ]

    def close(self) -> None:
        """End what is still there, and look whether anybody complained."""
        self.stop()
        for worker in self.workers:
            sys.stderr.write(
                f"--- worker {worker.pid}, exit code {worker.process.returncode}\n{worker.text()[-6_000:]}\n"
            )
            lines = self.complaints(worker)
            assert not lines, "\n".join(lines[:5])
        kills = [group.kills() for group in self._groups]
        for group in self._groups:
            group.close()
        assert not any(kills), f"the kernel has killed {sum(kills)} processes for lack of memory"


@contextmanager
def bench(bootstrap: str, names: TopicNames, directory: Path) -> Iterator[Bench]:
    """A Bench in a directory of its own."""
    place = directory / f"bench-{secrets.token_hex(3)}"
    place.mkdir()
    one = Bench(bootstrap, names, place)
    try:
        yield one
    finally:
        one.close()
