"""What docs/how-to/upgrade.md and docs/runbook.md say about changes of a running system: each step tried."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamtask.client import Client
from streamtask.codec.wire import time_text
from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import PATIENT, ROOT, Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

NEXT = "tests.acceptance.release_app:app"
PATIENCE_S = 90.0
NOOP = json.dumps({"task_type": "noop", "parameters": {"n": 1}}).encode()


def naps(count: int, ms: int = 20) -> list[TaskRequest]:
    return [TaskRequest(task_type="nap", parameters={"ms": ms}, priority=1 + n % 10) for n in range(count)]


def ids(receipts: list[Any]) -> list[str]:
    return [one.task_id for one in receipts]


def commit(bench: Bench, texts: dict[tuple[str, int], tuple[int, str]]) -> None:
    """What a release of another age has left: {(topic, partition): (offset, text)}. No worker may be there."""
    consumer = Consumer({"bootstrap.servers": bench.kafka.bootstrap, "group.id": bench.names.group})
    parts = [TopicPartition(topic, number, offset, text) for (topic, number), (offset, text) in texts.items()]

    def done() -> bool:
        try:
            consumer.commit(offsets=parts, asynchronous=False)
        except KafkaException:
            return False
        return True

    until(done, "the group takes a commit from outside")
    consumer.close()


def committed_text(bench: Bench, topic: str, partition: int) -> str:
    client = AdminClient(bench.kafka.admin())
    asked = [ConsumerGroupTopicPartitions(bench.names.group, [TopicPartition(topic, partition)])]
    (found,) = client.list_consumer_group_offsets(asked)[bench.names.group].result(10).topic_partitions
    return str(found.metadata or "")


def asked(worker: Running, path: str) -> tuple[int, dict[str, Any]]:
    url = until(lambda: worker.events("metrics_listening"), "it listens")[0]["url"]
    got = httpx.get(f"{url}{path}", timeout=30.0)
    return got.status_code, got.json()


def until_problems(worker: Running, problems: list[str]) -> None:
    until(lambda: asked(worker, "/health")[1]["problems"] == problems, lambda: f"{asked(worker, '/health')}")


# --- Releases -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_type_of_the_next_release_waits_through_a_rolling_deploy_and_runs_there(bench: Bench) -> None:
    """Producers before workers is the wrong order, and costs nothing while a deploy takes less than five minutes."""
    old = [bench.supervised(), bench.supervised()]
    first = bench.client.submit_many(naps(100))
    bench.until_begun(first, 20)
    tasks = ids(first)
    early = ids(bench.client.submit_many([TaskRequest(task_type="new_in_this_release")] * 12))
    for task_id in early:
        bench.until_status(task_id, "created", timeout_s=PATIENCE_S)
    for worker in old:
        bench.supervised(app=NEXT)
        more = bench.client.submit_many(naps(100))
        bench.until_begun(more, 20)
        tasks += ids(more)
        assert worker.drain(PATIENCE_S) == 0
    ends = bench.ends([*early, *tasks], PATIENCE_S)
    assert {(ends[task_id].status, ends[task_id].event.attempt) for task_id in early} == {("completed", 1)}
    assert {end.status for end in ends.values()} == {"completed"}
    bench.finish()


# --- Ledgers ------------------------------------------------------------------------------------------------------------

# Text format 1, as a release wrote it whose worker was killed: never change these, whatever the next format is.
GOLDEN_LEAD = "st1|A|||open|412|{clock_ms}|{owner}"
GOLDEN = "st1|F|BAA|wRBDCC"
# Offsets 0, 3 and 5 have ended; 1 was never started; 2 ran; 4 has failed twice and waits for its third and last attempt.
GOLDEN_POSITION = 1
PAST_EVENTS: dict[int, list[tuple[str, int | None]]] = {
    0: [("created", None), ("running", 1), ("completed", 1)],
    1: [("created", None)],
    2: [("created", None), ("running", 1)],
    3: [("created", None), ("running", 1), ("completed", 1)],
    4: [("created", None), ("running", 1), ("running", 2)],
    5: [("created", None), ("running", 1), ("completed", 1)],
}


def a_past_release(bench: Bench) -> list[str]:
    """Its requests, its status events and its ledger in partition 0 of the normal band; returns the task_ids by offset."""
    task_ids = [str(uuid.uuid4()) for _ in range(8)]
    now_ms = int(time.time() * 1_000)
    created_at = time_text(now_ms)
    for offset, task_id in enumerate(task_ids):
        flaky = {"task_type": "flaky", "parameters": {"failures": 10}}
        request = flaky if offset == 4 else {"task_type": "noop", "parameters": {"n": offset}}
        value = json.dumps({**request, "task_id": task_id, "created_at": created_at}).encode()
        assert bench.produce(value, task_id.encode(), partition=0) == f"normal-0@{offset}"
    producer = Producer({"bootstrap.servers": bench.kafka.bootstrap})
    for offset, events in PAST_EVENTS.items():
        for status, attempt in events:
            event = {"task_id": task_ids[offset], "status": status, "created_at": created_at, "updated_at": created_at}
            more = {"message": status, "origin": f"normal-0@{offset}", "attempt": attempt}
            document = {**event, **{name: value for name, value in more.items() if value is not None}}
            producer.produce(bench.names.status, json.dumps(document).encode(), task_ids[offset].encode(), 0)
    assert producer.flush(30) == 0
    owner = f"{bench.names.group}.0.k3v9"
    high, normal, low = bench.names.requests
    commit(
        bench,
        {
            (high, 0): (0, GOLDEN_LEAD.format(clock_ms=now_ms, owner=owner)),
            (normal, 0): (GOLDEN_POSITION, GOLDEN),
            (low, 0): (0, "st1|A||"),
        },
    )
    return task_ids


def test_a_ledger_of_text_format_1_is_taken_over_with_all_that_it_says(bench: Bench) -> None:
    task_ids = a_past_release(bench)
    bench.worker(PATIENT)
    ends = bench.ends(task_ids)
    assert [len(bench.starts(task_id)) for task_id in task_ids] == [0, 1, 1, 0, 1, 0, 1, 1]
    assert [ends[task_id].event.attempt for task_id in task_ids] == [1, 1, 2, 1, 3, 1, 1, 1]
    last = ends[task_ids[4]]
    assert (last.status, last.code) == ("failed", "handler_error"), "two failures of three were in the text"
    bench.finish()
    text = committed_text(bench, bench.names.requests[0], 0)
    assert text.startswith("st1|")
    assert int(text.split("|")[5]) > 412, "the sequence goes on"


def test_a_ledger_of_a_newer_release_is_left_alone_and_its_work_goes_on_once_its_offsets_are_deleted(
    bench: Bench,
) -> None:
    """What a roll-back over a change of the text meets, and the way out of it."""
    worker = bench.worker()
    ended = [str(uuid.uuid4()) for _ in range(4)]
    for number, task_id in enumerate(ended):
        bench.produce(NOOP, task_id.encode(), partition=number)
    bench.ends(ended)
    assert worker.drain() == 0
    newer = "st2|in words that this release has never read"
    commit(bench, {(bench.names.requests[0], 0): (0, newer), (bench.names.requests[1], 1): (1, newer)})
    waiting = [str(uuid.uuid4()) for _ in range(4)]
    for number, task_id in enumerate(waiting):
        bench.produce(NOOP, task_id.encode(), partition=number)

    worker = bench.worker(STREAMTASK_METRICS_PORT="0")
    bench.ends(waiting[2:])
    assert {told["shard"] for told in worker.events("shard_refused")} == {0, 1}, "the others are at work"
    problems = [f"shard {told['shard']} is refused: {told['why']}" for told in worker.events("shard_refused")]
    until_problems(worker, problems)
    assert (asked(worker, "/health")[0], asked(worker, "/ready")[0]) == (200, 503)
    assert worker.drain() == 0
    assert committed_text(bench, bench.names.requests[0], 0) == newer
    assert committed_text(bench, bench.names.requests[1], 1) == newer
    assert not any(bench.starts(task_id) for task_id in waiting[:2])

    client = AdminClient(bench.kafka.admin())
    until(lambda: _deleted(client, bench.names.group), "the group is deleted")
    worker = bench.worker()
    bench.ends(waiting)
    assert not worker.events("shard_refused")
    bench.finish()
    assert {len(bench.starts(task_id)) for task_id in (*ended, *waiting)} == {1}


def _deleted(client: AdminClient, group: str) -> bool:
    try:
        client.delete_consumer_groups([group])[group].result(10)
    except KafkaException:
        return False
    return True


# --- Partitions ---------------------------------------------------------------------------------------------------------


def told_by(bench: Bench, *arguments: str) -> str:
    argv = [sys.executable, "-m", "streamtask", *arguments, "--bootstrap", bench.kafka.bootstrap]
    done = subprocess.run(
        [*argv, "--prefix", bench.names.prefix], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_partitions_are_added_by_the_command_under_load_and_worked_after_one_restart(bench: Bench) -> None:
    names = bench.names
    workers = [bench.supervised(), bench.supervised()]
    first = bench.client.submit_many(naps(300))
    bench.until_begun(first, 20)
    tasks = ids(first)
    said = told_by(bench, "topics", "create", "--grow", "--partitions", "6")
    grown = [line.rsplit(" ", 1)[1] for line in said.splitlines() if "added partitions to" in line]
    assert grown == [names.status, names.schedule, *reversed(names.requests)] or grown[-1] == names.requests[0], said
    assert set(grown) == {names.status, names.schedule, *names.requests}
    assert "exist already" in told_by(bench, "topics", "create", "--grow", "--partitions", "6")
    bench.find_partitions()
    with Client(settings=bench.settings) as client:  # it learns of them at its start
        late = client.submit_many(naps(300))
    assert {one.partition for one in late} == set(range(6))
    tasks += ids(late)
    bench.supervised()
    assert workers[0].drain(PATIENCE_S) == 0
    ends = bench.ends(tasks, PATIENCE_S)
    assert {end.status for end in ends.values()} == {"completed"}
    assert {end.partition for end in ends.values()} == set(range(6))
    bench.finish()


def test_a_shard_of_which_a_partition_is_missing_waits_for_it_and_no_other_does(bench: Bench) -> None:
    """Partitions that are added by hand, the lead band first: the wrong way round."""
    names, admin = bench.names, AdminClient(bench.kafka.admin())

    def grow(topic: str) -> None:
        admin.create_partitions([NewPartitions(topic, 5)])[topic].result(30)

    grow(names.requests[0])
    worker = bench.worker(STREAMTASK_METRICS_PORT="0")
    refused = until(lambda: worker.events("shard_refused"), "it is told")
    assert [told["shard"] for told in refused] == [4]
    until_problems(worker, [f"shard 4 is refused: {refused[0]['why']}"])
    assert (asked(worker, "/health")[0], asked(worker, "/ready")[0]) == (200, 503)
    ended = [str(uuid.uuid4()) for _ in range(4)]
    for number, task_id in enumerate(ended):
        bench.produce(NOOP, task_id.encode(), partition=number)
    bench.ends(ended)
    for topic in (*names.requests[1:], names.status, names.schedule):
        grow(topic)
    bench.find_partitions()
    with Client(settings=bench.settings) as client:
        late = client.submit_many([TaskRequest(task_type="noop")] * 40)
    assert any(one.partition == 4 for one in late)
    bench.ends(ids(late), PATIENCE_S)
    until_problems(worker, [])
    bench.finish()
