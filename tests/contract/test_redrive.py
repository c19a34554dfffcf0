"""The redrive on a real Kafka: what it sends where, that nothing runs twice, however often it is begun."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from streamtask.cli import app
from streamtask.codec import RequestDecoder, encode_dead, encode_status
from streamtask.config import Settings, TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.identity import Origin, new_task_id
from streamtask.domain.model import DeadLetter, StatusEvent, TaskStatus
from streamtask.kafka.tail import Tail
from streamtask.redrive import REDRIVE_OF, Choice, Redrive
from streamtask.redrive.run import find_letter, read_plan, send, too_large
from streamtask.testing import Broker
from tests.payloads import incompressible

pytestmark = [pytest.mark.broker, pytest.mark.timeout(60)]

NOW_MS = time.time_ns() // 1_000_000
FAILED = Choice(code="handler_error")


class Cluster:
    """Requests and their dead letters, written as a producer and a worker would."""

    def __init__(self, bootstrap: str, names: TopicNames) -> None:
        self.bootstrap, self.names = bootstrap, names
        self.kafka = KafkaSettings(bootstrap)
        self.settings: Settings = load_settings(bootstrap_servers=bootstrap, prefix=names.prefix)
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "partitioner": "murmur2_random"})

    def put(self, topic: str, value: bytes, key: bytes | None, partition: int = -1, **more: Any) -> tuple[int, int]:
        told: list[Any] = []
        self.producer.produce(
            topic, value, key, partition, on_delivery=lambda error, message: told.append(error or message), **more
        )
        assert self.producer.flush(20) == 0
        assert hasattr(told[0], "offset"), told
        return told[0].partition(), told[0].offset()

    def dead(
        self, *, band: int = 0, partition: int = 1, reason: str = "handler_error", value: bytes | None = None
    ) -> tuple[str, str]:
        """A request that failed and its letter: (task_id, origin)."""
        task_id = new_task_id()
        value = value or orjson.dumps({"task_type": "census", "task_id": task_id, "parameters": {"n": 1}})
        place = self.put(self.names.requests[band], value, None, partition)
        origin = str(Origin(self.names.bands[band].name, *place))
        record = RequestDecoder(self.names, "").decode(band, *place, NOW_MS, None, value, ())
        letter = DeadLetter(record, reason, "ValueError: no", origin, task_id)
        key, held, headers = encode_dead(
            letter, self.names, value_bytes_max=900_000, worker="by hand", failed_at_ms=NOW_MS
        )
        self.put(self.names.dead, held or b"", key, headers=headers)
        return task_id, origin

    def redriven(self) -> list[tuple[str, int, dict[str, Any]]]:
        """(topic, partition, request) of every record in the bands with our label."""
        found = []
        with Tail(self.kafka, self.names.requests, read_committed=False) as tail:
            goal = tail.ends()
            while not tail.caught_up(goal):
                for record in tail.poll(1_000, 0.1):
                    if record.value and REDRIVE_OF.encode() in record.value:
                        found.append((record.topic, record.partition, orjson.loads(record.value)))
        return found

    def plan(self, choice: Choice = FAILED) -> list[Redrive]:
        return read_plan(self.settings, choice, NOW_MS).ready

    def send(self, items: list[Redrive]) -> None:
        for _, delivery in send(self.kafka, items):
            assert delivery.error is None


@pytest.fixture
def cluster(broker: Broker, topics: TopicNames) -> Cluster:
    return Cluster(broker.bootstrap, topics)


def test_each_letter_becomes_a_task_in_the_band_and_partition_of_its_request(cluster: Cluster) -> None:
    old = {
        cluster.dead(band=band, partition=partition)[0]: (band, partition)
        for band in range(3)
        for partition in range(4)
    }
    cluster.send(cluster.plan())
    found = cluster.redriven()
    assert len(found) == len(old)
    for topic, partition, request in found:
        band, shard = old[request["labels"][REDRIVE_OF]]
        assert (topic, partition) == (cluster.names.requests[band], shard)
        assert request["parameters"] == {"n": 1}
    assert len({request["task_id"] for _, _, request in found} | set(old)) == 2 * len(old)


def test_a_second_run_finds_every_task_and_sends_nothing(cluster: Cluster) -> None:
    for n in range(6):
        cluster.dead(partition=n % 4)
    cluster.send(cluster.plan())
    again = read_plan(cluster.settings, FAILED, NOW_MS)
    assert (len(again.ready), len(again.known)) == (0, 6)
    cluster.dead()
    assert len(cluster.plan()) == 1


def test_a_run_that_broke_off_in_the_middle_is_repeated_and_nothing_is_there_twice(cluster: Cluster) -> None:
    old = {cluster.dead(band=n % 3, partition=n % 4)[0] for n in range(9)}
    with closing(send(cluster.kafka, cluster.plan(), rate=5, wait=lambda _: None)) as told:
        for _ in range(4):
            next(told)
    assert len(cluster.redriven()) == 4
    again = read_plan(cluster.settings, FAILED, NOW_MS)
    assert (len(again.ready), len(again.known)) == (5, 4)
    cluster.send(again.ready)
    of = Counter(request["labels"][REDRIVE_OF] for _, _, request in cluster.redriven())
    assert of == Counter(old)


def test_what_lies_below_the_committed_offset_of_the_workers_is_known_by_its_status_alone(cluster: Cluster) -> None:
    cluster.dead(partition=2)
    (item,) = cluster.plan()
    cluster.send([item])
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": cluster.names.group})
    try:
        consumer.commit(offsets=[TopicPartition(cluster.names.requests[0], 2, 2)], asynchronous=False)
    finally:
        consumer.close()
    # Only here: workers commit such an offset in one transaction with the event that makes the task known.
    assert len(cluster.plan()) == 1, "the band is not read again from its beginning"
    end = StatusEvent(
        task_id=item.task_id,
        partition=2,
        status=TaskStatus.COMPLETED,
        created_ms=NOW_MS,
        updated_ms=NOW_MS,
        origin="high-2@1",
        attempt=1,
    )
    cluster.put(cluster.names.status, encode_status(end, locale="en", worker="w"), item.task_id.encode(), 2)
    again = read_plan(cluster.settings, FAILED, NOW_MS)
    assert ([one.task_id for one in again.known], again.ready) == ([item.task_id], [])


def test_an_open_transaction_of_somebody_else_does_not_hide_a_task_that_was_redriven(cluster: Cluster) -> None:
    cluster.dead(partition=3)
    items = cluster.plan()
    other = Producer({"bootstrap.servers": cluster.bootstrap, "transactional.id": f"{cluster.names.prefix}.other"})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(cluster.names.requests[0], b'{"task_type": "census"}', partition=3)
    assert other.flush(20) == 0
    cluster.send(items)
    again = read_plan(cluster.settings, FAILED, NOW_MS)
    other.abort_transaction(30)
    assert (len(again.ready), len(again.known)) == (0, 1)


def test_a_rate_spreads_what_is_sent(cluster: Cluster) -> None:
    for _ in range(5):
        cluster.dead()
    waits: list[float] = []
    told = list(send(cluster.kafka, cluster.plan(), rate=0.5, wait=waits.append))
    assert len(told) == 5
    # Nobody really waited, so each record is due later than the one before by nearly two seconds more.
    assert [round(wait) for wait in waits] == pytest.approx([2, 4, 6, 8], abs=1)


def test_a_record_that_is_too_large_fails_alone(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.dead()
    first, second, third = cluster.plan()
    large = replace(second, value=b'{"x": "%b"}' % incompressible(20_000_000).encode())
    told = list(send(cluster.kafka, [first, large, third]))
    assert [too_large(delivery) for _, delivery in told] == [False, True, False]
    assert [delivery.error is None for _, delivery in told] == [True, False, True]
    assert len(cluster.redriven()) == 2


def test_the_letter_of_a_history_is_found_wherever_it_lies(cluster: Cluster) -> None:
    task_id, origin = cluster.dead()
    for _ in range(3):
        cluster.dead()
    for asked in (origin, ""):
        letter = find_letter(cluster.kafka, cluster.names, task_id, asked)
        assert letter is not None
        assert (letter.task_id, letter.origin) == (task_id, origin)
        # One that was placed before the topic had so many partitions.
        here = (letter.partition + 1) % 4
        key, value = task_id.encode(), letter.value
        headers = [("streamtask-reason", b"timeout"), ("streamtask-task-id", key), ("streamtask-origin", b"low-0@7")]
        cluster.put(cluster.names.dead, value or b"", key, here, headers=headers)
        moved = find_letter(cluster.kafka, cluster.names, task_id, "low-0@7")
        assert moved is not None
        assert moved.partition == here
    assert find_letter(cluster.kafka, cluster.names, new_task_id(), "") is None


@pytest.fixture
def command(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    for name in list(os.environ):
        if name.startswith("STREAMTASK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        where = ["--bootstrap", cluster.bootstrap, "--prefix", cluster.names.prefix]
        result = CliRunner().invoke(app, ["dead", "redrive", *arguments, *where])
        return result.exit_code, result.stdout + result.stderr

    return run


def test_the_command_shows_first_does_it_with_yes_and_names_what_it_cannot(
    cluster: Cluster, command: Callable[..., tuple[int, str]]
) -> None:
    task_id, origin = cluster.dead()
    _, garbage = cluster.dead(reason="invalid_request", value=b"garbage", partition=0)
    code, said = command("--since", "1h")
    assert code == 0, said
    for word in ("1 to redrive", "census", origin, "1 cannot be redriven", garbage, "not JSON", "--yes"):
        assert word in said
    assert cluster.redriven() == []
    code, said = command(task_id, "--yes")
    assert (code, "1 redriven" in said) == (0, True), said
    assert [request["labels"] for _, _, request in cluster.redriven()] == [{REDRIVE_OF: task_id}]
    code, said = command("--since", "1h", "--yes")
    assert (code, "skipped: already redriven" in said, "0 redriven" in said) == (0, True, True), said
    assert len(cluster.redriven()) == 1


def test_the_command_answers_in_json_and_says_which_ids_it_does_not_know(
    cluster: Cluster, command: Callable[..., tuple[int, str]]
) -> None:
    task_id, origin = cluster.dead(partition=3)
    _, garbage = cluster.dead(reason="invalid_request", value=b"garbage", partition=0)
    code, said = command(origin, garbage, "--yes", "--json")
    assert code == 1, "an id that was named cannot be redriven"
    answer = json.loads(said)
    assert [answer[name] for name in ("done", "ready", "sent", "failed", "known", "refused")] == [True, 1, 1, 0, 0, 1]
    assert (answer["tasks"][0]["redrive_of"], answer["tasks"][0]["origin"]) == (task_id, "high-3@1")
    assert answer["cannot"][0]["of"] == garbage
    code, said = command(new_task_id(), "--yes")
    assert code == 2
    assert "No dead letter matches" in said
