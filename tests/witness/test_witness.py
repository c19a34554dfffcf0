"""Two witnesses of the same histories: the Java one sees what the audit sees, on a clean run, on one with a kill, and on
planted breaches of each rule that both know. Without a JDK what needs it is skipped, and says so."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtask.audit import Report, run_audit
from streamtask.codec.avro import RESPONSE, single_header, write
from streamtask.codec.status import status_datum
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import StatusEvent, TaskStatus
from streamtask.testing import Broker
from tests.acceptance import harness
from tests.acceptance.harness import Bench, until
from tests.contract.audit_writer import COMPLETED, CREATED, IDS, RUNNING, Writer, now_ms
from tests.witness import SHARED, Unavailable, compare, witness

FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED


def witnessed(broker: Broker, names: TopicNames) -> dict[str, Any]:
    try:
        return witness(broker.bootstrap, names.status)
    except Unavailable as error:
        pytest.skip(f"the second witness: {error}")


def audited(broker: Broker, names: TopicNames) -> Report:
    report = run_audit(KafkaSettings(broker.bootstrap), names, timeout_s=60)
    assert report.unread == []
    return report


@pytest.fixture
def writer(broker: Broker, topics: TopicNames) -> Writer:
    return Writer(broker, topics)


# --- On a real Kafka --------------------------------------------------------------------------------------------------


def _plant(writer: Writer, offset: int, kind: str) -> None:
    """A history of the request high-0@offset with this breach in it."""
    task_id, other = IDS[offset], IDS[99]
    event: Callable[..., None] = lambda status, **more: writer.event(0, task_id, status, offset, **more)  # noqa: E731
    writer.request(0, task_id)
    writer.worker.begin_transaction()
    if kind == "unreadable_event":
        writer.raw(0, task_id.encode(), b"no status event")
    if kind != "created_missing":
        event(CREATED)
    if kind == "off_machine":
        event(COMPLETED, attempt=None)
    else:
        event(RUNNING, **({"attempt": 2} if kind == "created_missing" else {}))
        if kind == "two_created":
            event(CREATED)
            event(RUNNING)
        if kind == "attempt_back":
            event(RUNNING, attempt=2)
        wheres: dict[str, dict[str, Any]] = {
            "wrong_key": {"key": b"another"},
            "wrong_partition": {"partition": 1},
            "wrong_task_id": {"task_id": other},
            "time_back": {"updated_ms": now_ms() - 60_000},
            "created_at_changed": {"created_ms": 5},
        }
        where = wheres.get(kind, {})
        if "task_id" in where:
            writer.event(0, other, COMPLETED, offset)
        else:
            event(COMPLETED, **({"attempt": None} if kind == "created_missing" else {}), **where)
    if kind == "two_ends":
        event(CANCELLED)
    if kind == "event_after_end":
        event(RUNNING)
    writer.worker.commit_transaction(30)


@pytest.mark.broker
@pytest.mark.slow
def test_both_find_a_planted_breach_of_every_rule_that_both_know_at_the_same_place(
    broker: Broker, writer: Writer
) -> None:
    kinds = sorted(SHARED)
    writer.request(0, IDS[0])
    writer.history(0, IDS[0], CREATED, RUNNING, COMPLETED)
    for offset, kind in enumerate(kinds, 1):
        _plant(writer, offset, kind)
    writer.worker.begin_transaction()
    writer.event(0, IDS[0], COMPLETED)
    assert writer.worker.flush(30) == 0
    writer.worker.abort_transaction(30)  # was never said
    writer.commit(0, len(kinds) + 1)
    found = witnessed(broker, writer.names)
    report = audited(broker, writer.names)
    assert found["violations_by_kind"] == dict.fromkeys(kinds, 1)
    assert {kind: count for kind, count in report.violations_by_kind.items() if kind in SHARED} == dict.fromkeys(
        kinds, 1
    )
    assert compare(report, found) == []


@pytest.mark.broker
@pytest.mark.slow
def test_what_the_witness_cannot_read_it_counts_and_does_not_judge(broker: Broker, writer: Writer) -> None:
    writer.request(0, IDS[0])
    writer.request(0, IDS[1])
    created = StatusEvent(IDS[0], 0, CREATED, 0, now_ms(), "high-0@0")
    datum = status_datum(created, locale="en", worker="test")
    writer.history(0, IDS[1], CREATED, RUNNING, COMPLETED, offset=1)
    writer.worker.begin_transaction()
    writer.raw(0, IDS[0].encode(), write(RESPONSE, datum, single_header(RESPONSE)))
    writer.worker.commit_transaction(30)
    writer.history(0, IDS[0], RUNNING, COMPLETED)
    writer.commit(0, 2)
    found = witnessed(broker, writer.names)
    assert (found["records"], found["skipped"], found["violations"]) == (6, 1, 0)
    report = audited(broker, writer.names)
    assert report.finished
    assert compare(report, found) == []


@pytest.fixture
def bench(broker: Broker, topics: TopicNames, tmp_path: Path) -> Iterator[Bench]:
    with harness.bench(broker.bootstrap, topics, tmp_path) as one:
        yield one


@pytest.mark.broker
@pytest.mark.acceptance
@pytest.mark.slow
def test_both_agree_on_a_run_in_which_a_worker_was_killed(broker: Broker, bench: Bench, tmp_path: Path) -> None:
    witnessed(broker, bench.names)  # nothing is there yet: skipped without a JDK, before any work is done
    worker = bench.supervised(2)
    gate = tmp_path / "gate"
    held = [bench.client.submit("wait_for", {"path": str(gate)}, priority=number % 10 + 1) for number in range(20)]
    quick = [bench.client.submit("noop", priority=number % 10 + 1) for number in range(100)]
    wrong = bench.client.submit("nap", {"ms": "no number"})
    until(lambda: len(bench.running()) == len(held), "all of them run")
    os.kill(worker.children()[0], signal.SIGKILL)
    gate.touch()
    bench.ends([receipt.task_id for receipt in [*held, *quick, wrong]], timeout_s=120)
    report = bench.finish()
    found = witnessed(broker, bench.names)
    assert compare(report, found) == []
    assert found["violations"] == 0
    assert found["tasks"] == found["histories"] == found["terminals"] == 121
    assert found["counts"] == {"completed": 120, "failed": 1}


# --- The comparison ---------------------------------------------------------------------------------------------------

VIOLATION = {"kind": "two_ends", "task_id": IDS[0], "origin": "high-0@0"}
AUDITED: dict[str, Any] = Report(counts={"completed": 1}, events=3).to_json()
WITNESSED: dict[str, Any] = {
    "records": 3,
    "skipped": 0,
    "counts": {"completed": 1},
    "refreshed": 0,
    "violations": 0,
    "violations_by_kind": {},
    "violation_list": [],
    "unread": [],
}


def _with_violation(document: dict[str, Any], offset: int, kind: str = "two_ends") -> dict[str, Any]:
    document = copy.deepcopy(document)
    place = {"partition": 0, "offset": offset}
    document["violations"] += 1
    document["violations_by_kind"] = {kind: 1}
    document["violation_list"].append(
        VIOLATION | {"kind": kind} | (place if "records" in document else {"evidence": place})
    )
    return document


def test_two_that_tell_the_same_agree() -> None:
    assert compare(AUDITED, WITNESSED) == []
    assert compare(_with_violation(AUDITED, 5), _with_violation(WITNESSED, 5)) == []


@pytest.mark.parametrize(
    ("audit", "found", "word"),
    [
        (AUDITED, WITNESSED | {"records": 4}, "status events: 3 (audit), 4 (witness)"),
        (
            AUDITED,
            WITNESSED | {"counts": {"running": 1}},
            "histories by status: {'completed': 1} (audit), {'running': 1} (witness)",
        ),
        (AUDITED, WITNESSED | {"unread": ["tasks.status-0"]}, "the witness has not read: tasks.status-0"),
        (AUDITED | {"unread": ["tasks.status [0]"]}, WITNESSED, "the audit has not read: tasks.status [0]"),
        (AUDITED, _with_violation(WITNESSED, 5), "only the witness: two_ends at [0] @5"),
        (_with_violation(AUDITED, 5), WITNESSED, "only the audit: two_ends at [0] @5"),
        (_with_violation(AUDITED, 5), _with_violation(WITNESSED, 6), "only the witness: two_ends at [0] @6"),
        (AUDITED, _with_violation(WITNESSED | {"skipped": 1}, 5), "only the witness: two_ends at [0] @5"),
    ],
)
def test_every_disagreement_is_said(audit: dict[str, Any], found: dict[str, Any], word: str) -> None:
    assert word in compare(audit, found)


def test_what_only_the_audit_can_know_is_no_disagreement() -> None:
    assert compare(_with_violation(AUDITED, 5, "failed_not_dead"), WITNESSED) == []


def test_without_a_jdk_it_is_unavailable_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="apt-get install openjdk"):
        witness("127.0.0.1:1")
