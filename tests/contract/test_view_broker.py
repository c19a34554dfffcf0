"""The view on a real Kafka: what it shows when, where it goes on, and the whole service as a process."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streamtask.codec import decode_control, encode_status
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.identity import Origin, derived, new_task_id
from streamtask.domain.model import StatusEvent, TaskRequest, TaskResponse, TaskStatus
from streamtask.errors import SubmitError, TopicsMissing
from streamtask.kafka import admin
from streamtask.kafka.tail import Tail
from streamtask.projection import view as view_service
from streamtask.projection.source import KafkaSource, gather, open_past, starts, topics_of
from streamtask.projection.sqlite import SQLiteStore
from streamtask.projection.store import Filter, MemoryStore, Partition, Row, Store
from streamtask.projection.view import Token, ViewService
from streamtask.query_service import submit
from streamtask.query_service.live import Live
from streamtask.query_service.problems import Problem
from streamtask.query_service.submit import KafkaSubmitter

pytestmark = [pytest.mark.anyio, pytest.mark.broker]
T0 = time.time_ns() // 1_000_000
_TICK = threading.Event()  # never set


async def until(seen: Callable[[], bool]) -> None:
    """Within thirty seconds; for what happens in the broker or another thread, which has no event."""
    async with asyncio.timeout(30):
        while not seen():
            await asyncio.to_thread(_TICK.wait, 0.01)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Hand:
    """Requests and status events produced by hand, as any service and a worker would."""

    def __init__(self, bootstrap: str, names: TopicNames) -> None:
        self.bootstrap, self.names = bootstrap, names
        self.kafka = KafkaSettings(bootstrap=bootstrap)
        self._plain = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self.worker = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{names.prefix}-hand"})
        self.worker.init_transactions(30)

    def request(self, band: int, partition: int, document: dict[str, Any]) -> Origin:
        placed: list[int | None] = []
        self._plain.produce(
            self.names.requests[band],
            orjson.dumps(document),
            partition=partition,
            on_delivery=lambda error, message: placed.append(message.offset() if error is None else None),
        )
        assert self._plain.flush(30) == 0
        (offset,) = placed
        assert offset is not None
        return Origin(self.names.bands[band].name, partition, offset)

    def event(self, task_id: str, status: str, origin: Origin, **more: Any) -> None:
        event = StatusEvent(task_id, origin.partition, TaskStatus(status), T0, T0 + 1, str(origin), **more)
        value = encode_status(event, locale="zh", worker="w")
        self.worker.produce(self.names.status, value, task_id.encode(), origin.partition)

    def committed(self, task_id: str, origin: Origin, *statuses: str) -> None:
        self.worker.begin_transaction()
        for status in statuses:
            self.event(task_id, status, origin, attempt=1)
        self.worker.commit_transaction(30)

    def committed_offset(self, band: int, partition: int, offset: int) -> None:
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.names.group})
        part = TopicPartition(self.names.requests[band], partition, offset)
        try:
            consumer.assign([part])
            consumer.commit(offsets=[part], asynchronous=False)
        finally:
            consumer.close()


@pytest.fixture
def hand(broker: Any, topics: TopicNames) -> Hand:
    return Hand(broker.bootstrap, topics)


@asynccontextmanager
async def a_view(hand: Hand, store: Store) -> AsyncIterator[ViewService]:
    facts = await asyncio.to_thread(gather, hand.kafka, hand.names)
    service = ViewService(
        store,
        lambda: KafkaSource(hand.kafka, hand.names, store, service.note),
        hand.names,
        facts.cluster_id,
        locale="zh",
        retention=facts.retention,
        open_past=lambda places, on_gap: open_past(hand.kafka, places, on_gap),
    )
    async with service.running():
        async with asyncio.timeout(60):
            await service.caught_up.wait()
        yield service


async def seen(service: ViewService, task_id: str, status: str) -> Row:
    async with asyncio.timeout(30):
        while True:
            row = service.get(task_id)
            if row is not None and row.status == status:
                return row
            await service.changed(task_id, -1 if row is None else row.version, 5)


async def test_a_request_is_visible_as_created_the_moment_the_broker_has_it(hand: Hand) -> None:
    async with a_view(hand, MemoryStore()) as service:
        task_id = new_task_id()
        document = {"task_type": "long_inference", "task_id": task_id, "priority": 8, "labels": {"a": "b"}}
        origin = await asyncio.to_thread(hand.request, 0, 2, document)
        row = await seen(service, task_id, "created")
        task = TaskResponse.model_validate_json(row.body)
        assert (row.version, task.origin, task.message) == (0, str(origin), "任务已创建")
        assert (task.task_type, task.priority, task.labels) == ("long_inference", 8, {"a": "b"})
        nameless = await asyncio.to_thread(hand.request, 2, 1, {"task_type": "x"})
        async with asyncio.timeout(30):
            assert await service.fresh(Token.parse(str(nameless), hand.names), 20)
        (found,) = (await service.page(Filter(task_type="x"), None, 10)).rows
        facts = await asyncio.to_thread(gather, hand.kafka, hand.names)
        place = (hand.names.requests[2], 1, nameless.offset, found.created_ms)
        assert found.task_id == derived(facts.cluster_id, *place)


async def test_status_events_are_visible_when_they_are_committed_and_only_then(hand: Hand) -> None:
    async with a_view(hand, MemoryStore()) as service:
        task_id = new_task_id()
        origin = hand.request(1, 0, {"task_type": "x", "task_id": task_id})
        await seen(service, task_id, "created")
        hand.worker.begin_transaction()
        hand.event(task_id, "running", origin, attempt=1)
        hand.worker.flush(30)
        other = hand.request(1, 0, {"task_type": "x"})
        assert await service.fresh(Token.parse(str(other), hand.names), 20)
        row = service.get(task_id)
        assert row is not None
        assert row.version == 0
        hand.worker.abort_transaction(30)
        hand.committed(task_id, origin, "created", "running")
        assert (await seen(service, task_id, "running")).version > 0
        hand.committed(task_id, origin, "completed")
        row = await seen(service, task_id, "completed")
        assert b'"message":"\xe4\xbb\xbb\xe5\x8a\xa1\xe7\x8a\xb6\xe6\x80\x81: completed"' in row.body


async def test_an_open_transaction_shows_as_age_of_the_read_committed_end(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_service, "LOOK_S", 0.05)
    async with a_view(hand, MemoryStore()) as service:
        hand.worker.begin_transaction()
        hand.event(new_task_id(), "running", Origin("high", 0, 0))
        hand.worker.flush(30)
        await until(lambda: service.health()["read_committed_age_s"] > 0)
        hand.worker.commit_transaction(30)
        await until(lambda: service.health()["read_committed_age_s"] == 0)


async def test_a_restart_goes_on_from_the_stored_offsets(hand: Hand, tmp_path: Path) -> None:
    first, second = new_task_id(), new_task_id()
    origin = hand.request(1, 0, {"task_type": "x", "task_id": first, "tenant": "acme"})
    hand.committed(first, origin, "created", "running", "completed")
    store = SQLiteStore(tmp_path / "view.db")
    async with a_view(hand, store) as service:
        await seen(service, first, "completed")
    store.close()
    hand.request(1, 0, {"task_type": "x", "task_id": second})
    store = SQLiteStore(tmp_path / "view.db")
    async with a_view(hand, store) as service:
        await seen(service, second, "created")
        row = service.get(first)
        assert row is not None
        assert (row.status, row.tenant) == ("completed", "acme")
        assert (await service.stats())["read"] == {"requests": 1, "status_events": 0, "cancels": 0, "unreadable": 0}
    store.close()


async def test_an_empty_view_reads_of_the_bands_only_what_the_workers_have_not_finished(hand: Hand) -> None:
    ids = [new_task_id() for _ in range(4)]
    origins = [hand.request(1, 3, {"task_type": "x", "task_id": task_id}) for task_id in ids]
    for task_id, origin in list(zip(ids, origins, strict=True))[:3]:
        hand.committed(task_id, origin, "created", "running", "completed")
    hand.committed_offset(1, 3, 3)
    async with a_view(hand, MemoryStore()) as service:
        assert [service.get(task_id).status for task_id in ids] == ["completed"] * 3 + ["created"]  # type: ignore[union-attr]
        assert (await service.stats())["read"]["requests"] == 1


async def test_an_empty_view_reads_what_happened_before_what_was_asked_for(hand: Hand) -> None:
    """A request whose task has events is known by then, so that no row is written twice."""
    written: list[str] = []

    class Watched(MemoryStore):
        def apply(
            self, rows: Sequence[Row], offsets: Mapping[Partition, int], tenants: Mapping[str, str] | None = None
        ) -> None:
            written.extend(row.status for row in rows)
            super().apply(rows, offsets, tenants)

    for n in range(40):
        task_id = new_task_id()
        origin = hand.request(n % 3, n % 4, {"task_type": "x", "task_id": task_id, "tenant": "acme"})
        hand.committed(task_id, origin, "created", "running", "completed")
    waiting = new_task_id()
    hand.request(1, 0, {"task_type": "x", "task_id": waiting})
    store = Watched()
    async with a_view(hand, store) as service:
        assert written.count("created") == 1
        assert (await service.stats())["tasks"]["completed"] == 40
        assert {row.tenant for row in store.list(Filter(status="completed"), None, 50).rows} == {"acme"}


async def test_a_position_that_the_log_no_longer_holds_is_noted_and_read_on(hand: Hand) -> None:
    task_id = new_task_id()
    hand.request(1, 0, {"task_type": "x", "task_id": task_id})
    store = MemoryStore()
    store.reset((await asyncio.to_thread(gather, hand.kafka, hand.names)).identity)
    store.apply([], {(hand.names.requests[1], 0): 1_000})
    async with a_view(hand, store) as service:
        await seen(service, task_id, "created")
        assert any("no longer holds offset 1000" in note for note in service.notes)


async def test_topics_made_anew_empty_the_store_and_ids_of_the_old_ones_resume_nothing(
    broker: Any, make_topics: Callable[[int], TopicNames], hand: Hand
) -> None:
    old = new_task_id()
    hand.committed(old, Origin("high", 0, 0), "created", "running", "completed")
    store = MemoryStore()
    async with a_view(hand, store) as service:
        await seen(service, old, "completed")
    kafka = {"bootstrap.servers": broker.bootstrap}
    admin.delete_topics(kafka, hand.names)

    def made_again() -> bool:
        try:
            admin.ensure_topics(kafka, hand.names, partitions=4)
        except Exception:  # noqa: BLE001 whatever the broker says while it still deletes
            return False
        return True

    await until(made_again)
    async with a_view(hand, store) as service:
        assert service.get(old) is None
        assert any("rebuilding" in note for note in service.notes)
        new = new_task_id()
        hand.committed(new, hand.request(0, 0, {"task_type": "x", "task_id": new}), "created")
        await seen(service, new, "created")
        for stream in (Live(service).of_task(new, "0:3"), Live(service).matching(Filter(), "0:3,1:-1,2:-1,3:-1")):
            with pytest.raises(Problem) as refusal:  # an id of the old topic
                await anext(stream)
            assert (
                "partition 0 ends before offset 3; the id may be of another topic" in refusal.value.document["detail"]
            )


async def test_missing_topics_are_said_at_once(broker: Any, prefix: str) -> None:
    with pytest.raises(TopicsMissing, match="topics create"):
        await asyncio.to_thread(gather, KafkaSettings(bootstrap=broker.bootstrap), TopicNames(prefix))


def test_a_partition_that_was_added_is_read_from_its_beginning() -> None:
    names = TopicNames("t")
    partitions = dict.fromkeys(topics_of(names), 2)
    stored = {(topic, 0): 7 for topic in topics_of(names)}
    begin = starts(partitions, names, stored, lambda: pytest.fail("only an empty store asks"))
    assert begin == {(topic, number): 7 if number == 0 else -1 for topic in partitions for number in (0, 1)}


async def test_what_is_submitted_lands_in_the_view_and_a_cancel_in_the_control_topic(hand: Hand) -> None:
    async with a_view(hand, MemoryStore()) as service, KafkaSubmitter(hand.kafka, hand.names) as submitter:
        placed = await submitter.submit(TaskRequest(task_type="x", priority=9), {"traceparent": "00-ab-cd-01"})
        assert placed.band == "high"
        assert await service.fresh(Token.parse(str(Origin(*placed[1:])), hand.names), 20)
        await seen(service, placed.task_id, "created")
        await submitter.cancel(placed.task_id, "enough")
        with Tail(hand.kafka, [hand.names.control]) as tail:
            records: list[Any] = []
            deadline = time.monotonic() + 60
            while not records and time.monotonic() < deadline:
                records = tail.poll(10, 0.2)
        message = decode_control(records[0].key, records[0].value)
        assert (message.task_id, message.reason) == (placed.task_id, "enough")


async def test_a_broker_that_does_not_answer_is_a_submit_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "ACKNOWLEDGED_S", 0.2)
    nobody = KafkaSettings(bootstrap="127.0.0.1:1", extra={"message.timeout.ms": 500})
    async with KafkaSubmitter(nobody, TopicNames("t")) as submitter:
        with pytest.raises(SubmitError, match="look whether it arrived"):
            await submitter.submit(TaskRequest(task_type="x", priority=5), {})


# --- The process ------------------------------------------------------------------------------------------------------

_SERVE = """
import sys
from streamtask.config import load_settings
from streamtask.query_service.server import run
run(load_settings(bootstrap_servers=sys.argv[1], prefix=sys.argv[2], port=0))
"""


class Process:
    """`serve` in a process of its own, and the lines that it says."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", _SERVE, bootstrap, prefix],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        self._lines: queue.Queue[str] = queue.Queue(maxsize=1_000)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as lines:
            for line in lines:
                self._lines.put(line.strip())

    def close(self) -> None:
        self.child.kill()
        self.child.wait(60)
        self._reader.join(60)

    def line(self) -> str:
        return self._lines.get(timeout=60)

    def end(self, number: int) -> int:
        self.child.send_signal(number)
        return self.child.wait(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_service_starts_answers_and_leaves_on_a_signal(hand: Hand, number: int) -> None:
    process = await asyncio.to_thread(Process, hand.bootstrap, hand.names.prefix)
    try:
        said = await asyncio.to_thread(process.line)
        url = said.split()[3]
        assert url.startswith("http://127.0.0.1:")
        assert await asyncio.to_thread(process.line) == f"ready: {url}"
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/ready")).status_code == 200
            answer = await http.post("/tasks", json={"task_type": "x"})
            assert answer.status_code == 202
            where = answer.headers["location"]
            assert (await http.get(where)).content == answer.content
            numbers = (await http.get("/metrics")).text
            assert 'streamtask_http_requests_total{method="POST",route="/tasks",status="202"} 1.0' in numbers
            async with asyncio.TaskGroup() as group:
                poll = group.create_task(http.get(f"{where}?wait=60"))
                async with asyncio.timeout(20):
                    while (await http.get("/stats")).json()["waiting"] == 0:
                        await asyncio.to_thread(_TICK.wait, 0.01)
                code = await asyncio.to_thread(process.end, number)
            assert poll.result().status_code == 200, "whoever waits is answered before the end"
        assert code == 0
    finally:
        process.close()
