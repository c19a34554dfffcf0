"""The client on a real Kafka. Status events are produced by hand, in transactions, as a worker would."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streamtask.client import AsyncClient, Client, Receipt, SyncReceipt
from streamtask.codec import RequestDecoder, decode_control, encode_status
from streamtask.config import TopicNames
from streamtask.domain.identity import new_task_id
from streamtask.domain.model import ControlAction, StatusEvent, TaskRequest, TaskStatus
from streamtask.domain.partitioner import partition_of
from streamtask.errors import (
    ConfigError,
    RequestRefused,
    StreamtaskError,
    SubmitError,
    TaskCancelled,
    TaskFailed,
    TopicsMissing,
    UnknownTask,
    Unreachable,
    WaitTimeout,
)
from streamtask.testing import Broker
from tests.payloads import incompressible

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

WAIT_S = 60.0
Opened = Callable[[], contextlib.AbstractAsyncContextManager[AsyncClient]]
CREATED, RUNNING, COMPLETED = TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.COMPLETED


class Worker:
    """Writes status events as a worker does: in transactions, in the partition of the request."""

    def __init__(self, bootstrap: str, topics: TopicNames) -> None:
        self._topics = topics
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "transactional.id": f"{topics.group}.test", "log_level": 0}
        )
        self._producer.init_transactions(30)
        self._now_ms = time.time_ns() // 1_000_000

    def say(self, receipt: Receipt | SyncReceipt, *statuses: TaskStatus, abort: bool = False, **more: Any) -> None:
        """One event a status, all in one transaction; `more` goes into the last one."""
        self._producer.begin_transaction()
        for status in statuses:
            self._now_ms += 1
            event = StatusEvent(
                task_id=receipt.task_id,
                partition=receipt.partition,
                status=status,
                created_ms=self._now_ms,
                updated_ms=self._now_ms,
                origin=receipt.origin,
                attempt=1,
                **(more if status is statuses[-1] else {}),
            )
            value = encode_status(event, locale="en", worker="by hand")
            self._producer.produce(self._topics.status, value, receipt.task_id.encode(), receipt.partition)
        if abort:
            # Otherwise the abort may overtake the records: then they are in no log, or the broker knows no transaction to end.
            assert self._producer.flush(30) == 0
            self._producer.abort_transaction(30)
        else:
            self._producer.commit_transaction(30)


@pytest.fixture
def worker(broker: Broker, topics: TopicNames) -> Worker:
    return Worker(broker.bootstrap, topics)


@pytest.fixture
def opened(broker: Broker, topics: TopicNames) -> Opened:
    @contextlib.asynccontextmanager
    async def open_client() -> AsyncIterator[AsyncClient]:
        async with AsyncClient(broker.bootstrap, prefix=topics.prefix) as client:
            yield client

    return open_client


@pytest.fixture
def client(broker: Broker, topics: TopicNames) -> Iterator[Client]:
    with Client(broker.bootstrap, prefix=topics.prefix) as opened:
        yield opened


def read(bootstrap: str, topic: str, count: int, partitions: int = 4) -> list[Any]:
    """The first `count` records of a topic."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "auto.offset.reset": "earliest"})
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        found: list[Any] = []
        deadline = time.monotonic() + WAIT_S
        while len(found) < count and time.monotonic() < deadline:
            found.extend(message for message in consumer.consume(count, 0.2) if message.error() is None)
        return found
    finally:
        consumer.close()


# --- Submit -----------------------------------------------------------------------------------------------------------


def test_a_receipt_says_where_the_request_lies(client: Client, broker: Broker, topics: TopicNames) -> None:
    receipt = client.submit("census", {"path": "ü.py"}, priority=8, labels={"a": "b"}, headers={"traceparent": "x"})
    assert receipt.band == "high"
    (record,) = read(broker.bootstrap, topics.requests[0], 1)
    assert (record.partition(), record.offset()) == (receipt.partition, receipt.offset)
    assert record.key() == receipt.task_id.encode()
    assert record.partition() == partition_of(record.key(), 4)
    assert record.headers() == [("traceparent", b"x")]
    decoded = RequestDecoder(topics, "cluster").decode(
        0, record.partition(), record.offset(), record.timestamp()[1], record.key(), record.value(), record.headers()
    )
    assert decoded.problem is None
    assert decoded.task_id == receipt.task_id
    assert decoded.request is not None
    assert decoded.request.parameters == {"path": "ü.py"}
    assert decoded.request.priority == 8
    assert decoded.request.labels == {"a": "b"}


@pytest.mark.parametrize(("priority", "band"), [(1, "low"), (3, "low"), (4, "normal"), (7, "normal"), (10, "high")])
def test_the_priority_chooses_the_band(client: Client, priority: int, band: str) -> None:
    assert client.submit("census", priority=priority).band == band


def test_requests_with_one_ordering_key_lie_in_one_partition(client: Client) -> None:
    receipts = [client.submit("census", ordering_key="customer-1") for _ in range(5)]
    assert {receipt.partition for receipt in receipts} == {partition_of(b"customer-1", 4)}
    assert [receipt.offset for receipt in receipts] == sorted(receipt.offset for receipt in receipts)


def test_the_task_id_that_was_given_is_used_in_its_one_spelling(client: Client) -> None:
    task_id = new_task_id()
    assert client.submit("census", task_id=task_id.upper()).task_id == task_id


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"task_type": ""}, "task_type"),
        ({"task_type": "x", "priority": 11}, "priority"),
        ({"task_type": "x", "priority": "5"}, "priority"),
        ({"task_type": "x", "timeout": 0}, "timeout_seconds"),
        ({"task_type": "x", "task_id": "no uuid"}, "task_id"),
        ({"task_type": "x", "parameters": [1]}, "parameters"),
        ({"task_type": "x", "parameters": {"x": float("nan")}}, "parameters"),
        ({"task_type": "x", "created_at": datetime(2026, 1, 1)}, "created_at"),
        (
            {"task_type": "x", "ordering_key": "k", "not_before": datetime.now(UTC) + timedelta(hours=1)},
            "not_before",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_request_that_cannot_be_sent_is_refused_by_field(client: Client, arguments: Any, field: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        client.submit(**arguments)
    assert field in refused.value.fields
    assert field in str(refused.value)


def test_an_unknown_field_is_refused_naming_the_nearest_one(client: Client) -> None:
    with pytest.raises(RequestRefused, match="priority") as refused:
        client.submit_many([{"task_type": "x", "priorty": 3}])
    assert set(refused.value.fields) == {"priorty"}


def test_a_request_larger_than_the_broker_takes_is_refused(client: Client, broker: Broker, topics: TopicNames) -> None:
    with pytest.raises(RequestRefused, match="larger than the broker accepts"):
        client.submit("census", {"text": incompressible(2_000_000)})
    assert client.submit("census").offset == 0  # nothing was sent before


def test_without_topics_a_submit_says_how_to_make_them(broker: Broker, prefix: str) -> None:
    with Client(broker.bootstrap, prefix=prefix) as client, pytest.raises(TopicsMissing, match="topics create"):
        client.submit("census")


def test_without_a_broker_nothing_is_sent_and_that_is_said() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unreachable, match="Nothing was sent"):
        client.submit("census")


def test_without_any_address_the_client_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMTASK_BOOTSTRAP_SERVERS", raising=False)
    with pytest.raises(ConfigError, match="STREAMTASK_BOOTSTRAP_SERVERS"):
        AsyncClient()


def test_many_are_submitted_at_once_with_receipts_in_their_order(client: Client) -> None:
    requests = [
        TaskRequest(task_type="census", parameters={"n": n}, priority=n % 10 + 1, task_id=new_task_id())
        for n in range(2_000)
    ]
    receipts = client.submit_many(requests)
    assert [receipt.task_id for receipt in receipts] == [request.task_id for request in requests]
    assert len({receipt.origin for receipt in receipts}) == 2_000


def test_if_one_of_many_is_refused_none_is_sent(client: Client) -> None:
    with pytest.raises(RequestRefused):
        client.submit_many([{"task_type": "census"}, {"task_type": ""}])
    assert client.submit("census").offset == 0


def test_the_bulk_path_sends_everything_by_the_flush(client: Client, broker: Broker, topics: TopicNames) -> None:
    assert client.submit_bulk({"task_type": "census", "parameters": {"n": n}} for n in range(3_000)) == 3_000
    client.flush(WAIT_S)
    assert len(read(broker.bootstrap, topics.requests[1], 3_000)) == 3_000
    client.flush(WAIT_S)  # nothing failed, nothing is left


def test_the_flush_counts_what_the_bulk_path_could_not_send(client: Client) -> None:
    large = {"task_type": "census", "parameters": {"text": incompressible(1_500_000)}}
    small = {"task_type": "census"}
    assert client.submit_bulk([small, large, small, large, small]) == 5
    with pytest.raises(SubmitError, match="2 request"):
        client.flush(WAIT_S)
    client.flush(WAIT_S)  # told once
    assert client.submit("census", ordering_key="any").task_id


def test_closing_sends_what_the_bulk_path_still_holds(broker: Broker, topics: TopicNames) -> None:
    with Client(broker.bootstrap, prefix=topics.prefix) as client:
        client.submit_bulk([{"task_type": "census"}] * 100)
    assert len(read(broker.bootstrap, topics.requests[1], 100)) == 100


# --- Wait -------------------------------------------------------------------------------------------------------------


def test_a_result_is_the_value_that_the_handler_returned(client: Client, worker: Worker) -> None:
    receipt = client.submit("census")
    worker.say(receipt, CREATED, RUNNING, COMPLETED, result=b'{"lines":3}')
    assert receipt.result(WAIT_S) == {"lines": 3}
    assert receipt.wait(WAIT_S).status is COMPLETED


def test_an_end_before_anybody_waits_is_not_missed(client: Client, worker: Worker) -> None:
    first = client.submit("census")
    worker.say(first, CREATED, RUNNING, COMPLETED, result=b"1")
    assert first.result(WAIT_S) == 1  # from now on the tail runs
    second, early = client.submit("census"), client.submit("census")
    worker.say(early, CREATED, RUNNING, COMPLETED, result=b"3")
    worker.say(second, CREATED, RUNNING, COMPLETED, result=b"2")
    assert second.result(WAIT_S) == 2
    assert early.result(WAIT_S) == 3


def test_a_receipt_from_before_the_tail_looks_back(client: Client, worker: Worker) -> None:
    first, second = client.submit("census"), client.submit("census")
    worker.say(first, CREATED, RUNNING, COMPLETED, result=b"1")
    worker.say(second, CREATED, RUNNING, COMPLETED, result=b"2")
    assert second.result(WAIT_S) == 2
    assert first.result(WAIT_S) == 1


def test_a_failed_task_raises_with_its_details(client: Client, worker: Worker) -> None:
    receipt = client.submit("census")
    more: dict[str, Any] = {
        "error": "no such file",
        "error_code": "handler_error",
        "exception": "OSError",
        "traceback": "...",
    }
    worker.say(receipt, CREATED, RUNNING, TaskStatus.FAILED, **more)
    with pytest.raises(TaskFailed, match="no such file") as failed:
        receipt.result(WAIT_S)
    assert failed.value.code == "handler_error"
    assert failed.value.task_id == receipt.task_id
    assert failed.value.details["exception"] == "OSError"


def test_a_cancelled_task_raises_so(client: Client, worker: Worker) -> None:
    receipt = client.submit("census")
    worker.say(receipt, CREATED, TaskStatus.CANCELLED, error_code="expired")
    with pytest.raises(TaskCancelled) as cancelled:
        receipt.result(WAIT_S)
    assert cancelled.value.code == "expired"


def test_waiting_too_long_raises_and_the_task_goes_on(client: Client, worker: Worker) -> None:
    receipt = client.submit("census")
    worker.say(receipt, CREATED, RUNNING)
    with pytest.raises(WaitTimeout):
        receipt.wait(0.3)
    worker.say(receipt, COMPLETED, result=b"1")
    assert receipt.result(WAIT_S) == 1


def test_an_aborted_event_is_never_seen(client: Client, worker: Worker) -> None:
    receipt = client.submit("census")
    worker.say(receipt, CREATED, RUNNING)
    worker.say(receipt, TaskStatus.FAILED, abort=True, error_code="handler_error")
    worker.say(receipt, COMPLETED, result=b"1")
    assert [event.status for event in receipt.events()] == [CREATED, RUNNING, COMPLETED]


def test_events_come_one_by_one_until_the_end(client: Client, worker: Worker) -> None:
    receipt = client.submit("census")
    events = receipt.events()
    worker.say(receipt, CREATED)
    assert next(events).status is CREATED
    worker.say(receipt, RUNNING, progress=0.25, message="a quarter")
    running = next(events)
    assert (running.progress, running.message) == (0.25, "a quarter")
    worker.say(receipt, RUNNING, progress=0.5)
    assert next(events).progress == 0.5
    worker.say(receipt, COMPLETED, result=b"null")
    assert next(events).status is COMPLETED
    assert next(events, None) is None


def test_somebody_else_waits_by_the_id_alone(
    broker: Broker, topics: TopicNames, client: Client, worker: Worker
) -> None:
    ended, running, created = (client.submit("census") for _ in range(3))
    worker.say(ended, CREATED, RUNNING, COMPLETED, result=b"1")
    worker.say(running, CREATED, RUNNING, progress=0.5)
    with Client(broker.bootstrap, prefix=topics.prefix) as other:
        assert other.wait(ended.task_id, WAIT_S).result == 1
        assert other.wait(ended.task_id.upper(), WAIT_S).result == 1
        assert [event.status for event in other.events(ended.task_id)][-1] is COMPLETED
        assert other.status(running.task_id).progress == 0.5
        assert other.status(created.task_id).status is CREATED
        with pytest.raises(WaitTimeout):
            other.wait(created.task_id, 0.5)
        worker.say(running, COMPLETED, result=b"2")
        assert other.wait(running.task_id, WAIT_S).result == 2


def test_an_id_that_nobody_knows_is_said_to_be_unknown(client: Client) -> None:
    task_id = new_task_id()
    for ask in (client.status, lambda known: client.wait(known, WAIT_S), lambda known: list(client.events(known))):
        with pytest.raises(UnknownTask, match=task_id):
            ask(task_id)
    with pytest.raises(ConfigError, match="UUID"):
        client.status("no uuid")


def test_a_second_history_of_one_id_does_not_follow_the_first(client: Client, worker: Worker) -> None:
    first = client.submit("census")
    worker.say(first, CREATED, RUNNING, COMPLETED, result=b"1")
    assert first.result(WAIT_S) == 1
    again = client.submit("census", task_id=first.task_id)
    worker.say(again, CREATED, RUNNING)
    assert first.status().status is COMPLETED


def test_many_wait_on_one_tail(opened: Opened, worker: Worker) -> None:
    async def scenario() -> list[int]:
        async with opened() as client:
            receipts = await client.submit_many([{"task_type": "census"}] * 300)
            waiting = [asyncio.ensure_future(receipt.result(WAIT_S)) for receipt in receipts]
            for number, receipt in enumerate(receipts):
                await asyncio.to_thread(worker.say, receipt, CREATED, RUNNING, COMPLETED, result=b"%d" % number)
            return list(await asyncio.gather(*waiting))

    assert asyncio.run(scenario()) == list(range(300))


def test_ids_asked_for_at_once_share_their_scans(opened: Opened, worker: Worker) -> None:
    async def scenario() -> None:
        async with opened() as client:
            receipts = await client.submit_many([{"task_type": "census"}] * 20)
        for receipt in receipts:
            worker.say(receipt, CREATED, RUNNING, COMPLETED, result=b"1")
        async with opened() as other:
            ended = await asyncio.gather(*(other.wait(receipt.task_id, WAIT_S) for receipt in receipts))
        assert {task.result for task in ended} == {1}

    asyncio.run(scenario())


def test_closing_a_client_ends_those_who_wait(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as client:
            receipt = await client.submit("census")
            waiting = asyncio.ensure_future(receipt.wait())
            with pytest.raises(WaitTimeout):
                await receipt.wait(0.3)  # begun later, and over: the other one waits
        with pytest.raises(StreamtaskError, match="closed"):
            await waiting
        with pytest.raises(StreamtaskError, match="closed"):
            await client.submit("census")

    asyncio.run(scenario())


# --- Cancel -----------------------------------------------------------------------------------------------------------


def test_a_cancel_is_a_control_record_with_the_id_as_key(client: Client, broker: Broker, topics: TopicNames) -> None:
    receipt = client.submit("census")
    receipt.cancel("not needed")
    (record,) = read(broker.bootstrap, topics.control, 1)
    message = decode_control(record.key(), record.value())
    assert (message.task_id, message.action, message.reason) == (receipt.task_id, ControlAction.CANCEL, "not needed")
    assert record.partition() == partition_of(receipt.task_id.encode(), 4)
    client.cancel(new_task_id())  # an id that nobody has seen yet
