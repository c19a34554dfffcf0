"""Services in Java, Node, Go and kcat: the programs of examples/, by the commands of their READMEs, and real workers.

Each language is built once a run, in a copy of its directory. What a program prints is held to what lies on the topics:
the tasks that it sent, and every status event of theirs, in order, and nothing that was not committed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from streamtask.domain.identity import Origin, derived
from streamtask.domain.partitioner import partition_of
from streamtask.kafka.tail import Tail, TailRecord
from tests.acceptance.harness import PATIENT, ROOT, WAIT_S, Bench, Execution, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]

APP = "tests.acceptance.languages_app:app"
LANGUAGES = ("java", "node", "go", "kcat")
TOOLS = {"java": ("javac", "mvn"), "node": ("node", "npm"), "go": ("go",), "kcat": ("kcat", "jq")}
GO_MINOR_MIN = 21  # from here on it fetches the Go that go.mod asks for
PACKAGES = {
    "javac": "default-jdk-headless",
    "mvn": "maven",
    "node": "nodejs",
    "npm": "npm",
    "go": f"golang (1.{GO_MINOR_MIN} or newer)",
    "kcat": "kcat",
    "jq": "jq",
}
BUILD_S = 400  # with an empty cache: jars, modules and packages are fetched
KEY = "客户-42"  # bytes above 127: where a murmur2 of signed bytes goes wrong


# --- The programs -----------------------------------------------------------------------------------------------------


def needs(*languages: str) -> None:
    """Skip when a tool of one of these is missing."""
    missing = [tool for one in languages for tool in TOOLS[one] if shutil.which(tool) is None]
    if missing:
        packages = " ".join(PACKAGES[tool] for tool in missing)
        pytest.skip(f"{', '.join(missing)}: not on PATH. Debian: apt-get install {packages}")
    if "go" in languages:
        told = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"go1\.(\d+)", told)
        if found is not None and int(found[1]) < GO_MINOR_MIN:
            pytest.skip(f"{told.strip()}: Go 1.{GO_MINOR_MIN} or newer is needed")


def commands(language: str) -> tuple[list[str], str]:
    """The README's second block: what makes the program, and the last line, which runs it."""
    page = (ROOT / "examples" / language / "README.md").read_text()
    lines = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)[1].splitlines()
    assert lines[0] == f"cd examples/{language}"
    return lines[:-1], lines[-1]


@dataclass(frozen=True)
class Place:
    """A copy of schemas and of one example, as a clone has them, in which its program was made."""

    language: str
    root: Path

    def make(self) -> None:
        making, _ = commands(self.language)
        done = subprocess.run(
            ["bash", "-ec", "\n".join(making)],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def changed(self, directory: Path, file: str, this: str, that: str) -> Place:
        """The same with another setting, made anew."""
        shutil.copytree(self.root, directory)
        source = directory / "examples" / self.language / file
        text = source.read_text()
        assert text.count(this) == 1, f"{file} has {text.count(this)} times {this!r}"
        source.write_text(text.replace(this, that))
        place = Place(self.language, directory)
        place.make()
        return place


class Sent(NamedTuple):
    """A line of a program about a request: None where it cannot know the id."""

    name: str
    task_id: str | None
    origin: Origin


class Told(NamedTuple):
    """A line about a status event."""

    task_id: str
    status: str
    text: str


class Program:
    """A running example and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, errors: Path) -> None:
        self.process = process
        self._out, self._errors = out, errors

    def lines(self) -> list[str]:
        return [line for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def sent(self) -> list[Sent]:
        found = []
        for line in self.lines():
            if line.startswith("sent "):
                _, name, task_id, place = line.split()
                origin = Origin.parse(place)
                assert origin is not None, line
                found.append(Sent(name, None if task_id == "-" else task_id, origin))
        return found

    def told(self) -> list[Told]:
        events = (line for line in self.lines() if not line.startswith(("sent ", "trace ")))
        return [Told(task_id, status, text.rstrip("\n")) for task_id, status, text in (e.split(" ", 2) for e in events)]

    def traceparent(self) -> bytes:
        (line,) = [line for line in self.lines() if line.startswith("trace ")]
        return line.split()[1].encode()

    def until_sent(self, count: int) -> list[Sent]:
        return until(lambda: found if len(found := self.sent()) == count else None, self.output)

    def until_ended(self) -> int:
        return self.process.wait(180)

    def output(self) -> str:
        return self._out.read_text() + self._errors.read_text()


@contextmanager
def running(place: Place, bench: Bench, *arguments: str | int) -> Iterator[Program]:
    """The README's last command, with arguments; ended with all its children."""
    command = f"cd examples/{place.language} && exec {commands(place.language)[1]} {shlex.join(map(str, arguments))}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")}
    environment["STREAMTASK_BOOTSTRAP_SERVERS"] = bench.kafka.bootstrap
    environment["STREAMTASK_PREFIX"] = bench.names.prefix
    out, errors = (bench.directory / f"{place.language}-{id(command)}.{kind}" for kind in ("out", "err"))
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=place.root,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    program = Program(process, out, errors)
    try:
        yield program
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        sys.stderr.write(f"--- {place.language}, exit code {process.returncode}\n{program.output()[-4_000:]}\n")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """The Place of a language; made by whoever needs it first. Acceptance tests run one at a time."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "languages"

    def make(language: str) -> Place:
        needs(language)
        place = Place(language, base / language)
        ready = place.root / "ready"
        if not ready.exists():
            shutil.rmtree(place.root, ignore_errors=True)
            leave = shutil.ignore_patterns("node_modules", "target")
            shutil.copytree(ROOT / "examples" / language, place.root / "examples" / language, ignore=leave)
            shutil.copytree(ROOT / "schemas", place.root / "schemas")
            place.make()
            ready.touch()
        return place

    return make


@pytest.fixture(params=LANGUAGES)
def place(request: pytest.FixtureRequest, made: Callable[[str], Place]) -> Place:
    return made(request.param)


# --- What lies on the topics ------------------------------------------------------------------------------------------


def records(bench: Bench) -> list[TailRecord]:
    """Every committed record of the normal band and of the status topic, with its headers."""
    tail = Tail(bench.kafka, [bench.names.requests[1], bench.names.status], with_headers=True)
    try:
        ends = tail.ends()
        found: list[TailRecord] = []
        while not tail.caught_up(ends):
            found += tail.poll(2_000, 0.2)
        return found
    finally:
        tail.close()


def check_told(bench: Bench, program: Program) -> None:
    """It printed the events of its tasks, all of them, as they lie there; and they completed."""
    by_origin: dict[str, list[str]] = {}
    for task_id, events in bench.histories().items():
        for seen in events:
            by_origin.setdefault(seen.event.origin or "", []).append(f"{task_id} {seen.status}")
    told = program.told()
    for sent in program.sent():
        history = by_origin[str(sent.origin)]
        task_id = history[0].split()[0]
        assert sent.task_id in (task_id, None)
        mine = [one for one in told if one.task_id == task_id]
        assert [f"{one.task_id} {one.status}" for one in mine] == history, program.output()
        assert mine[-1].text == '100% "lift-off"'
    assert len(told) == sum(len(by_origin[str(sent.origin)]) for sent in program.sent()), "and of nothing else"


def check_records(bench: Bench, program: Program, key: str) -> None:
    """Key, place, headers and format of what it sent; the trace comes back with every event."""
    found = records(bench)
    at = {(r.topic, r.partition, r.offset): r for r in found}
    cluster_id = AdminClient({"bootstrap.servers": bench.kafka.bootstrap}).list_topics(timeout=WAIT_S).cluster_id
    assert cluster_id is not None
    traceparent = ("traceparent", program.traceparent())
    for sent in program.sent():
        record = at[bench.names.requests[1], sent.origin.partition, sent.origin.offset]
        assert record.value is not None
        assert traceparent in record.headers
        expected = {"in-order": key, "bare": None}.get(sent.name, sent.task_id)
        assert record.key == (None if expected is None else expected.encode())
        if record.key is not None:
            assert record.partition == partition_of(record.key, 4), f"{sent.name} lies elsewhere"
        assert record.value[0] == (0xC3 if sent.name == "avro" else ord("{"))
        if sent.name == "bare" and sent.task_id is not None:
            assert sent.task_id == derived(cluster_id, *record[:4])
    for record in found:
        if record.topic == bench.names.status:
            assert traceparent in record.headers, record


# --- The tests --------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_readme_lead_to_completed_tasks(bench: Bench, place: Place) -> None:
    worker = bench.supervised(app=APP)
    with running(place, bench, 2, KEY) as program:
        assert program.until_ended() == 0, program.output()
    names = [sent.name for sent in program.sent()]
    assert names == ["by-id", "in-order", "bare", *(["avro"] if place.language == "java" else [])]
    check_told(bench, program)
    check_records(bench, program, KEY)
    assert not worker.events("partitioner_differs")
    bench.finish()


class Liar:
    """Somebody whose events are never committed: by all that reads uncommitted, the tasks have failed."""

    def __init__(self, bench: Bench) -> None:
        self._topic = bench.names.status
        settings = {"bootstrap.servers": bench.kafka.bootstrap, "log_level": 0}
        self._producer = Producer({**settings, "transactional.id": f"{bench.names.prefix}-liar"})
        self._producer.init_transactions(WAIT_S)

    def lie(self, tasks: list[Sent]) -> None:
        self._producer.begin_transaction()
        for sent in tasks:
            task_id = sent.task_id or "00000000-0000-0000-0000-000000000000"
            event = {"task_id": task_id, "status": "failed", "error": "never happened", "origin": str(sent.origin)}
            told = json.dumps(event | {"created_at": "2026-11-24T07:26:00.123Z"})
            self._producer.produce(self._topic, told, task_id, partition=sent.origin.partition)
        assert self._producer.flush(WAIT_S) == 0
        self._producer.abort_transaction(WAIT_S)


def test_events_of_aborted_transactions_are_not_seen(bench: Bench, place: Place) -> None:
    """Two of one producer lie there before the first true event, and another one in the middle."""
    with running(place, bench, 3) as program:
        tasks = program.until_sent(4 if place.language == "java" else 3)
        liar = Liar(bench)
        liar.lie(tasks)
        liar.lie(tasks)
        bench.worker(app=APP)
        until(lambda: program.process.poll() is not None or "running 33%" in program.output(), program.output)
        liar.lie(tasks)
        assert program.until_ended() == 0, program.output()
    assert "never happened" not in program.output()
    check_told(bench, program)
    bench.finish()


@pytest.mark.parametrize(
    ("language", "file", "setting"),
    [
        ("java", "src/main/java/Submit.java", 'ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_committed"'),
        ("go", "main.go", "kgo.FetchIsolationLevel(kgo.ReadCommitted()),"),
    ],
    ids=["java", "go"],
)
def test_without_its_setting_a_reader_sees_what_never_happened(
    bench: Bench, made: Callable[[str], Place], tmp_path: Path, language: str, file: str, setting: str
) -> None:
    """The default of Java and of franz-go."""
    default = "" if language == "go" else 'ConsumerConfig.CLIENT_ID_CONFIG, "submit"'
    place = made(language).changed(tmp_path / "default", file, setting, default)
    with running(place, bench, 1) as program:
        Liar(bench).lie(program.until_sent(4 if language == "java" else 3))
        assert program.until_ended() == 1
    assert "never happened" in program.output()
    bench.worker(app=APP)
    until(lambda: len(bench.histories()) >= 3, "they run all the same")
    bench.ends(bench.histories())
    bench.finish()


@pytest.mark.parametrize(
    ("language", "file", "setting", "default"),
    [
        ("kcat", "submit.sh", "-X partitioner=murmur2_random ", ""),
        ("node", "submit.mjs", "Partitioners.DefaultPartitioner", "Partitioners.LegacyPartitioner"),
    ],
    ids=["kcat", "node"],
)
def test_a_producer_that_puts_keys_elsewhere_is_named_by_the_worker(
    bench: Bench, made: Callable[[str], Place], tmp_path: Path, language: str, file: str, setting: str, default: str
) -> None:
    place = made(language).changed(tmp_path / "default", file, setting, default)
    key = "customer-2"  # is put elsewhere by both
    worker = bench.worker(app=APP)
    keys: dict[tuple[int, int], str | None] = {}

    def noticed() -> list[dict[str, Any]]:
        """Of each poll the worker looks at one record: two of ours may come in one, and it looks at the other."""
        with running(place, bench, 1, key) as program:
            assert program.until_ended() == 0, f"it is warned about, not refused: {program.output()}"
        by_id, in_order, _ = program.sent()
        assert in_order.origin.partition != partition_of(key.encode(), 4)
        keys.update({by_id.origin[1:]: by_id.task_id, in_order.origin[1:]: key})
        return worker.events("partitioner_differs")

    (event,) = until(noticed, "it is told")
    assert event["topic"] == bench.names.requests[1]
    assert event["key"] == keys[event["partition"], event["offset"]]
    assert event["belongs"] == partition_of(event["key"].encode(), 4) != event["partition"]
    bench.finish()


def test_status_events_in_avro_are_read_by_java(bench: Bench, made: Callable[[str], Place]) -> None:
    place = made("java")
    bench.worker(app=APP, STREAMTASK_FORMAT="avro")
    with running(place, bench, 1) as program:
        assert program.until_ended() == 0, program.output()
    check_told(bench, program)
    assert {seen.value[0] for events in bench.histories().values() for seen in events} == {0xC3}
    bench.finish()


def _one_after_another(executions: list[Execution], killed: int) -> None:
    """Executions in the order of their starts: each began when the one before it had ended, or its worker had."""
    ends = {(one.origin, one.attempt): one for one in executions if one.what == "end"}
    starts = sorted((one for one in executions if one.what == "start"), key=lambda one: one.ms)
    for before, after in pairwise(starts):
        end = ends.get((before.origin, before.attempt))
        assert end.ms <= after.ms if end else before.pid == killed, f"{before} {after}"
    offsets = [Origin.parse(one.origin) for one in starts]
    assert None not in offsets
    assert offsets == sorted(one for one in offsets if one is not None), "in the order in which they lie there"


def _runs(program: Program) -> bool:
    return any(one.status == "running" for one in program.told())


def _kill_a_worker_at_work(bench: Bench, parent: Running) -> int:
    """It stands still while it is made sure that its task has not ended meanwhile."""

    def busy() -> set[int]:
        return {one.pid for one in bench.running()} & set(parent.children())

    def killed() -> int | None:
        for pid in busy():
            os.kill(pid, signal.SIGSTOP)
            at_work = pid in busy()
            os.kill(pid, signal.SIGKILL if at_work else signal.SIGCONT)
            if at_work:
                return pid
        return None

    return until(killed, "it is at work")


def test_all_languages_share_one_order_through_the_death_of_a_worker(
    bench: Bench, made: Callable[[str], Place]
) -> None:
    needs(*LANGUAGES)
    places = [made(language) for language in LANGUAGES]
    parent = bench.supervised(1, PATIENT, app=APP)
    with ExitStack() as stack:
        programs = [stack.enter_context(running(place, bench, 2, KEY)) for place in places]
        receipt = bench.client.submit("countdown", {"steps": 2}, ordering_key=KEY)
        for program in programs:
            until(partial(_runs, program), program.output)
        killed = _kill_a_worker_at_work(bench, parent)
        for program in programs:
            assert program.until_ended() == 0, program.output()
    assert receipt.result(WAIT_S) == "lift-off"
    for program in programs:
        check_told(bench, program)
    ordered = [sent for program in programs for sent in program.sent() if sent.name == "in-order"]
    places_of_key = {sent.origin.partition for sent in ordered} | {receipt.partition}
    assert places_of_key == {partition_of(KEY.encode(), 4)}
    origins = {str(receipt.origin), *(str(sent.origin) for sent in ordered)}
    _one_after_another([one for one in bench.executions() if one.origin in origins], killed)
    assert any(one.attempt > 1 for one in bench.executions()), "what the dead one ran was run again"
    assert not parent.events("partitioner_differs")
    bench.finish()
