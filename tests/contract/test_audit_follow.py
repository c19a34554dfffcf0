"""The audit beside a running system, of a window of time, and its evidence: on a real Kafka."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamtask.audit import Report, Violation, follow_audit, run_audit
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.kafka import admin
from streamtask.testing import Broker
from tests.contract.audit_writer import COMPLETED, CREATED, IDS, RUNNING, Writer, now_ms

pytestmark = pytest.mark.broker

WAIT_S = 60.0
HOUR_S = 3_600


@pytest.fixture
def writer(broker: Broker, topics: TopicNames) -> Writer:
    return Writer(broker, topics)


@pytest.fixture
def settings(broker: Broker) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap)


class Followed:
    """An audit that runs beside the test."""

    def __init__(self) -> None:
        self._figures: queue.Queue[dict[str, Any]] = queue.Queue()
        self.told: queue.Queue[Violation] = queue.Queue()
        self._end: Callable[[], Report] | None = None

    def violation(self, violation: Violation, /) -> None:
        self.told.put(violation)

    def figures(self, figures: dict[str, Any], /) -> None:
        self._figures.put(figures)

    def trouble(self, text: str, /) -> None:
        """The next round is tried."""

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first figures that are so."""
        while not wanted(found := self._figures.get(timeout=WAIT_S)):
            pass
        return found

    def another_round(self) -> None:
        """A whole round that began after this call."""
        before = self.until(lambda _: True)["rounds"]
        self.until(lambda figures: figures["rounds"] >= before + 3)

    def end(self) -> Report:
        assert self._end is not None
        return self._end()


@contextmanager
def following(settings: KafkaSettings, names: TopicNames, *, since_ms: int | None = None) -> Iterator[Followed]:
    stop = threading.Event()
    followed = Followed()
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(
            follow_audit,
            settings,
            names,
            stop,
            since_ms=since_ms,
            every_s=0,
            listener=followed,
        )

        def end() -> Report:
            stop.set()
            return future.result(WAIT_S)

        followed._end = end
        try:
            yield followed
        finally:
            stop.set()


# --- Beside a running system ------------------------------------------------------------------------------------------


def test_open_work_is_no_breach_and_an_event_after_the_end_is_told_while_the_system_runs(
    settings: KafkaSettings, writer: Writer
) -> None:
    writer.request(0, IDS[0])
    writer.history(0, IDS[0], CREATED, RUNNING)
    writer.commit(0, 0)
    with following(settings, writer.names) as followed:
        assert followed.until(lambda figures: figures["events"] == 2)["open"] == 1
        writer.history(0, IDS[0], COMPLETED)
        writer.commit(0, 1)
        assert followed.until(lambda figures: figures["ended"] == 1)["violations"] == 0
        writer.history(0, IDS[0], RUNNING)
        assert followed.told.get(timeout=WAIT_S).kind == "event_after_end"
        report = followed.end()
    assert dict(report.violations_by_kind) == {"event_after_end": 1}
    assert report.counts == {"completed": 1}
    assert report.pending_total == 0


def test_a_loss_is_told_once_however_many_rounds_follow(settings: KafkaSettings, writer: Writer) -> None:
    with following(settings, writer.names) as followed:
        writer.request(1, IDS[0])
        writer.history(1, IDS[0], CREATED, RUNNING)
        followed.until(lambda figures: figures["open"] == 1)
        writer.commit(1, 1)
        lost = followed.told.get(timeout=WAIT_S)
        assert (lost.kind, lost.origin, lost.task_id) == ("committed_past_unfinished", "high-1@0", IDS[0])
        followed.another_round()
        report = followed.end()
    assert report.violations_total == 1


def test_partitions_that_are_added_are_followed_too(broker: Broker, settings: KafkaSettings, writer: Writer) -> None:
    with following(settings, writer.names) as followed:
        followed.another_round()
        admin.ensure_topics({"bootstrap.servers": broker.bootstrap}, writer.names, partitions=5, grow=True)
        another = Writer(broker, writer.names)  # which knows of them
        another.request(4, IDS[0])
        another.history(4, IDS[0], CREATED, RUNNING, COMPLETED)
        another.commit(4, 1)
        followed.until(lambda figures: figures["ended"] == 1)
        assert followed.end().finished


# --- A window of time -------------------------------------------------------------------------------------------------


def _before_the_window(writer: Writer, *task_ids: str) -> None:
    """Requests and their CREATED and RUNNING of three hours ago. In one transaction: its marker is of now."""
    writer.worker.begin_transaction()
    for offset, task_id in enumerate(task_ids):
        writer.request(0, task_id, ago_s=3 * HOUR_S)
        for status in (CREATED, RUNNING):
            writer.event(0, task_id, status, offset, ago_s=3 * HOUR_S)
    writer.worker.commit_transaction(30)


def test_since_reads_what_came_from_then_on_and_is_lenient_with_what_began_before(
    settings: KafkaSettings, writer: Writer
) -> None:
    names = writer.names
    _before_the_window(writer, IDS[0], IDS[1])
    writer.history(0, IDS[0], COMPLETED, offset=0)
    writer.request(0, IDS[2])
    writer.history(0, IDS[2], CREATED, RUNNING, COMPLETED, offset=2)
    writer.commit(0, 1)
    report = run_audit(settings, names, since_ms=now_ms() - HOUR_S * 1_000, timeout_s=60)
    assert report.violations == []
    assert report.clean
    assert (report.requests, report.events, report.truncated) == (1, 4, 1)
    assert report.since is not None
    assert report.since in report.to_text()
    assert run_audit(settings, names, timeout_s=60).requests == 3


def test_since_still_sees_what_is_wrong_inside_of_the_window(settings: KafkaSettings, writer: Writer) -> None:
    _before_the_window(writer, IDS[0])
    writer.request(0, IDS[1])
    writer.history(0, IDS[1], CREATED, RUNNING, COMPLETED, RUNNING, offset=1)
    writer.request(0, IDS[2])
    writer.history(0, IDS[2], RUNNING, COMPLETED, offset=2)
    writer.request(0, IDS[3])
    writer.commit(0, 4)
    found = run_audit(settings, writer.names, since_ms=now_ms() - HOUR_S * 1_000, timeout_s=60)
    assert {(item.kind, item.origin) for item in found.violations} == {
        ("event_after_end", "high-0@1"),
        ("created_missing", "high-0@2"),
        ("committed_past_unfinished", "high-0@3"),
    }


# --- The command ------------------------------------------------------------------------------------------------------


def _command(broker: Broker, names: TopicNames, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "streamtask",
        "audit",
        "--bootstrap",
        broker.bootstrap,
        "--prefix",
        names.prefix,
        *more,
    ]


def _evidence(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def breach(writer: Writer) -> dict[str, Any]:
    """An event after the end, and its line of evidence."""
    writer.request(2, IDS[0])
    writer.history(2, IDS[0], CREATED, RUNNING, COMPLETED)
    writer.commit(2, 1)
    writer.history(2, IDS[0], RUNNING)
    topic = writer.names.status
    return {
        "rule": "event_after_end",
        "text": f"{topic} [2] @6: running after completed",
        "task_id": IDS[0],
        "origin": "high-2@0",
        "topic": topic,
        "partition": 2,
        "offsets": [6],
        "events": [
            {"topic": topic, "status": "completed"},
            {"topic": topic, "partition": 2, "offset": 6, "status": "running", "attempt": 1},
        ],
    }


def test_each_breach_is_a_line_of_evidence_on_stdout_and_the_report_stays_beside_it(
    broker: Broker, writer: Writer, breach: dict[str, Any]
) -> None:
    command = _command(broker, writer.names, "--evidence", "-")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert _evidence(done.stdout) == [breach]
    assert "NOT CLEAN: 1 violations" in done.stderr


def test_a_followed_audit_ends_by_sigterm_with_its_report_and_exit_code_1_when_there_was_a_breach(
    broker: Broker, writer: Writer, breach: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "evidence.jsonl"
    command = _command(broker, writer.names, "--follow", "--every", "0.1", "--evidence", str(file))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            seen: list[str] = []
            for line in process.stdout:
                seen.append(line)
                if "VIOLATION" in line:
                    break
            assert f"VIOLATION event_after_end: {breach['text']} ({IDS[0]})" in seen[-1]
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert process.wait(WAIT_S) == 1
        finally:
            process.kill()
    assert "audit: NOT CLEAN: 1 violations" in rest
    assert "1 requests, 4 status events" in rest
    assert _evidence(file.read_text()) == [breach]


def test_a_followed_audit_without_a_breach_ends_with_0(broker: Broker, writer: Writer) -> None:
    writer.request(0, IDS[0])
    writer.history(0, IDS[0], CREATED, RUNNING)
    command = _command(broker, writer.names, "--follow", "--every", "0.1", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line)["figures"]["rounds"]:
                    break
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    report = json.loads(rest.splitlines()[-1])["report"]
    assert (report["clean"], report["pending"]) == (True, 1)
