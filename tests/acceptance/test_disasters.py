"""What docs/runbook.md says about disasters, each step tried: the view, the group's offsets, the topics, a week of idleness.

A disaster is made while every worker is away, as an operator would make it good; then a worker comes, and what it does is held
to the page. Where Kafka itself has to forget something, the broker is one of the test's own whose limits are short.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from streamtask.audit import run_audit
from streamtask.config import TopicNames
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.domain.model import TaskRequest
from streamtask.kafka import admin
from streamtask.kafka.offset_queries import group_offsets
from streamtask.kafka.tail import Tail, TailRecord
from streamtask.testing import Broker
from tests.acceptance import harness
from tests.acceptance.harness import PATIENT, WAIT_S, Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

ENDED = {"completed", "failed", "cancelled"}
NOOP = json.dumps({"task_type": "noop", "parameters": {"n": 1}}).encode()
Bodies = dict[str, tuple[int, str | None, bytes]]


def held(bench: Bench, kind: str = "wait_for", **more: Any) -> TaskRequest:
    """A task that runs until the bench's gate is there."""
    return TaskRequest(task_type=kind, parameters={"path": str(bench.directory / "gate")}, **more)


def open_gate(bench: Bench) -> None:
    (bench.directory / "gate").touch()


def ids(receipts: list[Any]) -> list[str]:
    return [one.task_id for one in receipts]


def id_of(bench: Bench, origin: str) -> str:
    """The task_id that the worker has derived for a record without one."""

    def found() -> str | None:
        return next(
            (seen[0].event.task_id for seen in bench.histories().values() if seen[0].event.origin == origin), None
        )

    return until(found, f"{origin} has a status event")


def group_gone(bench: Bench) -> None:
    """Delete the workers' group with all that it has committed; a member that was killed is waited for."""
    client = AdminClient(bench.kafka.admin())

    def deleted() -> bool:
        try:
            client.delete_consumer_groups([bench.names.group])[bench.names.group].result(10)
        except KafkaException:
            return False
        return True

    until(deleted, "the group is deleted")


# --- The view -----------------------------------------------------------------------------------------------------------


def a_view(bench: Bench, store: Path) -> tuple[Running, str]:
    """`streamtask serve` on this file, ready, and its address."""
    service = bench._start([sys.executable, "-m", "streamtask", "serve", "--port", "0", "--store", str(store)], {})
    ready = until(lambda: [line for line in service.text().splitlines() if line.startswith("ready: ")], "it is ready")
    return service, ready[0].split()[1]


def answers(url: str, task_ids: list[str], of: Callable[[dict[str, Any]], bool] = bool) -> Bodies:
    """{task_id: (code, ETag, body)}, once every body is as it is waited for."""

    def asked() -> Bodies | None:
        found = {}
        for task_id in task_ids:
            got = httpx.get(f"{url}/tasks/{task_id}", timeout=WAIT_S)
            if got.status_code != 200 or not of(got.json()):
                return None
            found[task_id] = (got.status_code, got.headers.get("etag"), got.content)
        return found

    return until(asked, f"{url} knows them all")


def listed(url: str, **filters: str) -> set[str]:
    got = httpx.get(f"{url}/tasks", params={"limit": "100", **filters}, timeout=WAIT_S)
    assert got.status_code == 200, got.text
    return {one["task_id"] for one in got.json()["tasks"]}


@pytest.mark.timeout(300)
def test_a_view_whose_file_was_deleted_while_it_was_down_answers_as_before(bench: Bench) -> None:
    store = bench.directory / "view.db"
    worker = bench.worker()
    service, url = a_view(bench, store)
    wanted = [TaskRequest(task_type="noop", tenant="acme"), TaskRequest(task_type="hopeless", tenant="acme")]
    ended = ids(bench.client.submit_many(wanted * 3))
    gone = bench.client.submit("wait_for", {"path": str(bench.directory / "never")})
    bench.until_status(gone.task_id, "running")
    gone.cancel()
    ended.append(gone.task_id)
    bench.ends(ended)
    running = ids(bench.client.submit_many([held(bench, tenant="acme")] * 2))
    waiting = ids(bench.client.submit_many([TaskRequest(task_type="unheard_of", tenant="acme")] * 2))
    for task_id in running:
        bench.until_status(task_id, "running")
    for task_id in waiting:
        bench.until_status(task_id, "created")
    before = answers(url, ended, lambda task: task["status"] in ENDED)
    before |= answers(url, running, lambda task: task["status"] == "running")
    before |= answers(url, waiting, lambda task: task["status"] == "created")
    by_status = {status: listed(url, status=status) for status in ("completed", "failed", "cancelled", "running")}
    assert listed(url, tenant="acme") == {*ended, *running, *waiting} - {gone.task_id}

    assert service.drain() == 0
    meanwhile = bench.client.submit("noop")
    bench.end(meanwhile.task_id)
    for file in (store, *store.parent.glob(f"{store.name}-*")):
        file.unlink()

    service, url = a_view(bench, store)
    assert answers(url, list(before)) == before
    assert httpx.get(f"{url}/tasks/{meanwhile.task_id}", timeout=WAIT_S).json()["status"] == "completed", (
        "what it missed meanwhile"
    )
    for status, task_ids in by_status.items():
        assert listed(url, status=status) == task_ids | ({meanwhile.task_id} if status == "completed" else set())
    # A tenant stands in the request alone, and of the bands only what has not ended is read again.
    assert listed(url, tenant="acme") == {*running, *waiting}
    open_gate(bench)
    answers(url, running, lambda task: task["status"] == "completed")
    for task_id in waiting:
        bench.client.cancel(task_id)
    bench.ends([*running, *waiting])
    assert service.drain() == 0
    assert worker.process.poll() is None
    bench.finish()


# --- The group's offsets ------------------------------------------------------------------------------------------------


@dataclass
class Past:
    """What stood in the topics when the disaster came. Every task by the name of its kind; `unnamed` had no task_id."""

    ended: list[str] = field(default_factory=list)
    unnamed_ended: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    unnamed_running: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    unnamed_waiting: list[str] = field(default_factory=list)  # origins: nobody has read them yet


def a_past(bench: Bench) -> Past:
    """Tasks that have ended, that ran when their worker was killed, and that nobody has read: in every band."""
    past = Past()
    worker = bench.worker()
    wanted = [TaskRequest(task_type="noop", priority=priority) for priority in (9, 5, 2)] * 6
    wanted += [TaskRequest(task_type="hopeless"), TaskRequest(task_type="flaky", parameters={"failures": 1})]
    past.ended = ids(bench.client.submit_many(wanted))
    origins = [bench.produce(NOOP, band=number % 3, partition=number % 4) for number in range(8)]
    past.unnamed_ended = [id_of(bench, origin) for origin in origins]
    bench.ends([*past.ended, *past.unnamed_ended])
    past.running = ids(bench.client.submit_many([held(bench, priority=priority) for priority in (9, 5, 2)] * 2))
    gate = json.dumps({"task_type": "wait_for", "parameters": {"path": str(bench.directory / "gate")}}).encode()
    past.unnamed_running = [id_of(bench, bench.produce(gate, band=2, partition=number)) for number in range(2)]
    for task_id in (*past.running, *past.unnamed_running):
        until(partial(bench.starts, task_id), "it runs")
    worker.kill()
    past.waiting = ids(bench.client.submit_many([TaskRequest(task_type="noop", priority=p) for p in (9, 5, 2)] * 2))
    past.unnamed_waiting = [bench.produce(NOOP, partition=number % 4) for number in range(4)]
    return past


def check_gone_on(bench: Bench, past: Past) -> None:
    """What ran runs as its next attempt; what waited runs once."""
    waiting = [*past.waiting, *(id_of(bench, origin) for origin in past.unnamed_waiting)]
    ends = bench.ends([*waiting, *past.running, *past.unnamed_running])
    assert {end.status for end in ends.values()} == {"completed"}
    assert {ends[task_id].event.attempt for task_id in waiting} == {1}
    assert {ends[task_id].event.attempt for task_id in (*past.running, *past.unnamed_running)} == {2}


def test_with_the_groups_offsets_deleted_nothing_ends_twice_and_nothing_is_lost(bench: Bench) -> None:
    past = a_past(bench)
    before = {task_id: len(bench.starts(task_id)) for task_id in (*past.ended, *past.unnamed_ended)}
    group_gone(bench)
    worker = bench.worker(PATIENT)
    until(lambda: worker.events("position_unknown"), "it is told")
    open_gate(bench)
    check_gone_on(bench, past)
    bench.finish()
    assert {task_id: len(bench.starts(task_id)) for task_id in before} == before, "what has ended does not run again"


def test_with_the_groups_offsets_deleted_dead_letters_of_what_never_was_a_task_are_written_again(bench: Bench) -> None:
    """The only thing that tasks.status does not know. The audit counts them, and finds nothing wrong."""
    worker = bench.worker()
    wrong = json.dumps({"task_type": "noop", "task_id": "not a uuid"}).encode()
    bad = bench.produce(wrong, partition=0)
    good = str(uuid.uuid4())
    bench.produce(NOOP, good.encode(), partition=0)
    bench.letter(bad)
    bench.end(good)
    assert worker.drain() == 0
    group_gone(bench)
    worker = bench.worker()
    until(lambda: [letter.origin for letter in bench.letters()].count(bad) == 2, "its letter is written again")
    report = run_audit(bench.kafka, bench.names)
    assert report.clean, report.to_text()
    assert report.repeats_total == 1
    assert len(bench.starts(good)) == 1


# --- Topics restored ----------------------------------------------------------------------------------------------------


def backup(bench: Bench) -> list[TailRecord]:
    """Everything of the prefix that is committed, partition by partition in order: what a mirror of it holds."""
    with Tail(bench.kafka, list(bench.names.all), with_headers=True) as tail:
        ends, records = tail.ends(), list[TailRecord]()

        def all_read() -> bool:
            records.extend(tail.poll(2_000, 0.05))
            return tail.caught_up(ends)

        until(all_read, "everything is read")
    return records


def restore(records: list[TailRecord], bootstrap: str, old: TopicNames, new: TopicNames) -> None:
    """Write them into topics that are empty, each into its partition, as tools do: key, value, headers and time kept."""
    names = dict(zip(old.all, new.all, strict=True))
    told: list[Any] = []
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    for one in records:
        producer.produce(
            names[one.topic],
            one.value,
            one.key,
            one.partition,
            timestamp=one.timestamp_ms,
            headers=list(one.headers),
            on_delivery=lambda error, _message: told.append(error),
        )
    assert producer.flush(30) == 0
    assert told == [None] * len(records)


def made_anew(bench: Bench) -> None:
    """The same topics, empty; the group's offsets of them go with the old ones."""
    kafka = {"bootstrap.servers": bench.kafka.bootstrap}
    old = admin.topic_ids(kafka, bench.names.all)
    admin.delete_topics(kafka, bench.names)

    def again() -> bool:
        try:
            admin.ensure_topics(kafka, bench.names, partitions=4)
            return not set(admin.topic_ids(kafka, bench.names.all).values()) & set(old.values())
        except Exception:  # noqa: BLE001 whatever the broker says while it still deletes
            return False

    until(again, "the topics are there again")


def test_topics_restored_in_place_at_their_old_offsets_go_on_as_if_nothing_had_been(
    bench: Bench, tmp_path: Path
) -> None:
    """On the cluster that they come from: its id is part of the ids of those that have none."""
    past = a_past(bench)
    records = backup(bench)
    made_anew(bench)
    restore(records, bench.kafka.bootstrap, bench.names, bench.names)
    with harness.bench(bench.kafka.bootstrap, bench.names, tmp_path) as after:
        worker = after.worker(PATIENT)
        until(lambda: worker.events("position_unknown"), "it is told")
        open_gate(bench)
        check_gone_on(after, past)
        after.finish()
        ran = {one.id for one in after.executions()}
        assert not ran & {*past.ended, *past.unnamed_ended}, "what has ended does not run again"


@contextmanager
def elsewhere(broker: Broker, bench: Bench, directory: Path) -> Iterator[Bench]:
    """Empty topics of other names, as those of another cluster are: ids that are derived differ there."""
    names = TopicNames(f"{bench.names.prefix}.b")
    admin.ensure_topics({"bootstrap.servers": broker.bootstrap}, names, partitions=4)
    try:
        with harness.bench(broker.bootstrap, names, directory) as there:
            yield there
    finally:
        admin.delete_topics({"bootstrap.servers": broker.bootstrap}, names)


def test_topics_copied_to_another_cluster_at_their_offsets_go_on_but_for_tasks_without_an_id(
    broker: Broker, bench: Bench, tmp_path: Path
) -> None:
    past = a_past(bench)
    with elsewhere(broker, bench, tmp_path) as after:
        restore(backup(bench), broker.bootstrap, bench.names, after.names)
        after.worker(PATIENT)
        open_gate(bench)
        ends = after.ends([*past.running, *past.waiting])
        assert {ends[task_id].event.attempt for task_id in past.running} == {2}
        unnamed = len([*past.unnamed_ended, *past.unnamed_running, *past.unnamed_waiting])
        until(lambda: len(new_ids(after, past)) == unnamed, "each request without an id is a new task there")
        after.ends(new_ids(after, past))
        assert {one.attempt for task_id in new_ids(after, past) for one in after.starts(task_id)} == {1}
        ran = {one.id for one in after.executions()}
        assert not ran & {*past.ended, *past.unnamed_ended, *past.unnamed_running}
        for task_id in past.unnamed_running:
            assert after.statuses(task_id)[-1] == "running", "the history under its old id has no end"
        assert {"wrong_task_id"} <= breaches(after)


def breaches(bench: Bench) -> set[str]:
    """What the audit says once the workers have left."""
    for worker in bench.workers:
        assert worker.drain() == 0
    return {one.kind for one in run_audit(bench.kafka, bench.names).violations}


def new_ids(bench: Bench, past: Past) -> set[str]:
    known = {*past.ended, *past.running, *past.waiting, *past.unnamed_ended, *past.unnamed_running}
    return {one.id for one in bench.executions()} - known


def test_topics_copied_at_other_offsets_run_all_that_had_not_ended(
    broker: Broker, bench: Bench, tmp_path: Path
) -> None:
    """The copy began after the first records of each partition had gone: no event is about the record at its place. Where an
    end of the same task_id lies at a later place, its task may count as over (decision 0007); all others run."""
    past = a_past(bench)
    with elsewhere(broker, bench, tmp_path) as after:
        records = [one for one in backup(bench) if one.topic not in bench.names.requests or one.offset]
        restore(records, broker.bootstrap, bench.names, after.names)
        after.worker(PATIENT)
        open_gate(bench)
        requests = [one for one in records if one.topic in bench.names.requests]
        over = {(one.key or b"").decode() for one in requests} & set(past.ended)
        others = len(requests) - len(over)

        def ran() -> int:
            return len({one.origin for one in after.executions() if one.what == "start" and one.id not in over})

        until(lambda: ran() >= others, lambda: f"{others} run again: {ran()}")
        assert {"wrong_task_id", "two_created"} <= breaches(after)


def test_requests_copied_from_the_committed_offsets_on_begin_anew_and_nothing_that_was_passed_runs(
    broker: Broker, bench: Bench, tmp_path: Path
) -> None:
    """What is left to do where offsets cannot be kept: no status events, and of the bands what nobody had ended."""
    past = a_past(bench)
    places = [(topic, number) for topic in bench.names.requests for number in range(4)]
    positions = group_offsets(bench.kafka, bench.names.group, places)
    assert any(positions.values()), "something has been passed"
    with elsewhere(broker, bench, tmp_path) as after:
        bands = [one for one in backup(bench) if one.topic in bench.names.requests]
        left = [one for one in bands if one.offset >= positions.get((one.topic, one.partition), 0)]
        restore(left, broker.bootstrap, bench.names, after.names)
        after.worker(PATIENT)
        open_gate(bench)
        ends = after.ends([*past.running, *past.waiting])
        assert {end.event.attempt for end in ends.values()} == {1}, "an attempt is a token of one history"
        until(lambda: len({one.id for one in after.executions()}) == len(left), "each of them runs")
        after.finish()
        assert not {one.id for one in after.executions()} & set(past.ended)


# --- A week of idleness -------------------------------------------------------------------------------------------------

# A week of Kafka's defaults in a minute, which is the least that it takes for offsets.
FORGETFUL = {
    **QUICK,
    "offsets.retention.minutes": "1",
    "offsets.retention.check.interval.ms": "1000",
    "transactional.id.expiration.ms": "20000",
    "transaction.remove.expired.transaction.cleanup.interval.ms": "1000",
    "producer.id.expiration.ms": "20000",
    "producer.id.expiration.check.interval.ms": "1000",
}
FORGOTTEN_S = 150.0


@contextmanager
def bench_of(kafka: DevBroker, prefix: str, directory: Path) -> Iterator[Bench]:
    names = TopicNames(prefix)
    admin.ensure_topics({"bootstrap.servers": kafka.bootstrap}, names, partitions=4)
    place = directory / prefix
    place.mkdir()
    with harness.bench(kafka.bootstrap, names, place) as one:
        yield one


def committed(bench: Bench) -> set[tuple[str, int]]:
    """(topic, partition) of which the broker knows an offset of the group."""
    client = AdminClient(bench.kafka.admin())
    asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(bench.names.group)])
    found = asked[bench.names.group].result(10).topic_partitions
    return {(one.topic, one.partition) for one in found if one.offset >= 0}


def a_few(bench: Bench) -> list[str]:
    """Tasks in every band, run to their ends."""
    task_ids = ids(bench.client.submit_many([TaskRequest(task_type="noop", priority=p) for p in (9, 5, 2)] * 4))
    bench.ends(task_ids)
    return task_ids


@pytest.mark.timeout(300)
def test_after_a_week_of_idleness_in_which_kafka_forgets_offsets_and_producers_everything_goes_on(
    tmp_path: Path,
) -> None:
    """A prefix whose workers are all away; one whose worker stays and has nothing to do on a broker that forgets sooner than
    it commits again; and one whose worker commits again in time."""
    with (
        DevBroker(config=FORGETFUL) as kafka,
        bench_of(kafka, "away", tmp_path) as away,
        bench_of(kafka, "idle", tmp_path) as idle,
        bench_of(kafka, "kept", tmp_path) as kept,
    ):
        past = a_past(away)
        idler = idle.worker()
        keeper = kept.worker(engine={}, ACCEPTANCE_RECOMMIT_S="1")
        done, kept_done = a_few(idle), a_few(kept)
        assert len(committed(away)) == len(committed(idle)) == len(committed(kept)) == 12
        leads = {(idle.names.requests[0], number) for number in range(4)}
        until(lambda: not committed(away), "the offsets of a group without members are forgotten", FORGOTTEN_S)
        until(lambda: committed(idle) == leads, "so are those that no member is subscribed to", FORGOTTEN_S)

        open_gate(away)
        worker = away.worker(PATIENT)
        until(lambda: worker.events("position_unknown"), "it is told")
        check_gone_on(away, past)
        away.finish()

        more = a_few(idle)
        assert idler.process.poll() is None
        assert "INVALID_PRODUCER_ID_MAPPING" in idler.events("producer_lost")[0]["why"], "its id was forgotten too"
        idle.finish()
        assert {len(idle.starts(task_id)) for task_id in (*done, *more)} == {1}

        assert len(committed(kept)) == 12
        kept_more = a_few(kept)
        assert not keeper.events("producer_lost")
        kept.finish()
        assert {len(kept.starts(task_id)) for task_id in (*kept_done, *kept_more)} == {1}


# --- A container that is killed as a whole --------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_container_that_is_killed_as_a_whole_costs_attempts_and_only_the_poison_its_life(
    bench: Bench, tmp_path: Path
) -> None:
    """`memory.oom.group`: one process eats too much, and its child, its worker and its supervisor are killed in one blow."""
    app = "tests.acceptance.container_app:app"
    pods = [bench.supervised(app=app, STREAMTASK_CHILDREN="6") for _ in range(2)]
    kinds = ("beside", "beside_thread", "beside_process")
    wanted = [TaskRequest(task_type=kind, parameters={"path": str(tmp_path / "go")}) for kind in kinds * 2]
    beside = ids(bench.client.submit_many(wanted))
    until(lambda: len({one.id for one in bench.running()}) == len(beside), lambda: f"they run: {bench.running()}", 120)
    poison = bench.client.submit("takes_all")

    def ended() -> bool:
        for number, pod in enumerate(pods):  # as a kubelet does
            if pod.process.poll() is not None:
                pod.expected = None
                pods[number] = bench.supervised(app=app, STREAMTASK_CHILDREN="6")
        return any(seen.event.ended for seen in bench.history(poison.task_id))

    until(ended, lambda: f"the poison ends; it was started {bench.starts(poison.task_id)}", 200)
    end = bench.end(poison.task_id)
    assert (end.status, end.code) == ("failed", "worker_lost")
    # Two deaths that others share make it a suspect, one or two more bring it to a trial; the last one is its own.
    assert 3 <= len(bench.starts(poison.task_id)) <= 7
    (tmp_path / "go").touch()
    ends = bench.ends(beside, 120)
    assert {end.status for end in ends.values()} == {"completed"}
    assert [letter.reason for letter in bench.letters()] == ["worker_lost"]
    bench.finish()
