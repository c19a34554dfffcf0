"""The life of a task as its client sees it, held against both: a worker on a real Kafka, and the client in memory.

`shop` is either; what differs between the two is in tests/contract/test_client.py and tests/unit/test_in_memory.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamtask import (
    Client,
    ConfigError,
    RequestRefused,
    TaskCancelled,
    TaskFailed,
    TaskRequest,
    TaskResponse,
    TaskStatus,
    UnknownTask,
    WaitTimeout,
)
from streamtask.domain.identity import new_task_id
from streamtask.testing import InMemory, Running, in_memory, running
from tests.contract.life_app import LIFE, Life, build
from tests.payloads import incompressible

pytestmark = pytest.mark.timeout(120)

WAIT_S = 60.0
SETTINGS: dict[str, Any] = {"unknown_type_grace_s": 0.5, "children": 1}
CREATED, RUNNING, COMPLETED = TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.COMPLETED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED


@dataclass
class Shop:
    """An App that runs, and its tasks."""

    life: Life
    runs: Running | InMemory

    @property
    def client(self) -> Client:
        return self.runs.client

    def history(self, task_id: str) -> list[TaskStatus]:
        return [event.status for event in self.runs.history(task_id)]


@pytest.fixture(scope="module")
def on_kafka(request: pytest.FixtureRequest) -> Iterator[Shop]:
    broker = request.getfixturevalue("broker")
    with running(LIFE.app, broker.bootstrap, partitions=1, **SETTINGS) as runs:
        yield Shop(LIFE, runs)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.broker)])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    if request.param == "kafka":
        yield request.getfixturevalue("on_kafka")
        return
    life = build("life in memory")
    with in_memory(life.app, **SETTINGS) as runs:
        yield Shop(life, runs)


def until_running(events: Iterator[TaskResponse]) -> TaskResponse:
    return next(event for event in events if event.status is RUNNING)


def code_of(task: TaskResponse) -> str | None:
    return None if task.error_details is None else task.error_details.code


# --- An end -----------------------------------------------------------------------------------------------------------


def test_a_result_is_what_the_handler_returned(shop: Shop) -> None:
    assert shop.life.double.submit_sync(4).result(WAIT_S) == 8
    assert shop.client.submit("double", {"n": 5}).result(WAIT_S) == 10
    assert shop.client.submit("child", {"n": 6}).result(WAIT_S) == 12


def test_a_handler_sees_its_request_and_the_state_of_the_app(shop: Shop) -> None:
    receipt = shop.client.submit("describe", priority=9, labels={"a": "ü"}, headers={"x": "y"})
    assert (receipt.band, receipt.partition) == ("high", 0)
    assert receipt.result(WAIT_S) == {"state": "opened", "labels": {"a": "ü"}, "header": "y", "priority": 9}
    assert receipt.status().origin == receipt.origin


def test_a_handler_can_submit_and_wait(shop: Shop) -> None:
    assert shop.client.submit("parent", {"n": 3}).result(WAIT_S) == 7


def test_a_failure_comes_with_its_details(shop: Shop) -> None:
    with pytest.raises(TaskFailed, match="no such file") as failed:
        shop.client.submit("fail", {"text": "no such file"}).result(WAIT_S)
    assert failed.value.code == "handler_error"
    assert failed.value.details["exception"] == "OSError"
    assert "in fail" in failed.value.details["traceback"]


def test_a_failed_attempt_is_repeated_and_says_when(shop: Shop) -> None:
    receipt = shop.client.submit("third")
    assert receipt.result(WAIT_S) == 3
    events = shop.runs.history(receipt.task_id)
    assert [event.status for event in events] == [CREATED, *[RUNNING] * 5, COMPLETED]
    assert "attempt 1 failed: attempt 1; again in" in str(events[2].message)
    assert events[-1].attempt == 3


def test_a_handler_that_gives_up_is_not_repeated(shop: Shop) -> None:
    receipt = shop.client.submit("hopeless")
    with pytest.raises(TaskFailed, match="no use"):
        receipt.result(WAIT_S)
    assert receipt.status().attempt == 2


@pytest.mark.parametrize("task_type", ["sleeper", "looper"])
def test_an_attempt_that_takes_too_long_fails(shop: Shop, task_type: str) -> None:
    with pytest.raises(TaskFailed, match=r"ran longer than 0\.05 s") as failed:
        shop.client.submit(task_type, timeout=0.05).result(WAIT_S)
    assert failed.value.code == "timeout"


def test_what_cannot_be_written_as_json_fails(shop: Shop) -> None:
    assert code_of(shop.client.submit("strange").wait(WAIT_S)) == "not_serializable"


def test_a_result_that_no_event_holds_fails(shop: Shop) -> None:
    assert code_of(shop.client.submit("large").wait(WAIT_S)) == "result_too_large"


def test_a_type_that_no_worker_knows_fails_after_its_grace(shop: Shop) -> None:
    task = shop.client.submit("unheard of").wait(WAIT_S)
    assert (task.status, code_of(task)) == (FAILED, "unknown_task_type")
    assert shop.history(task.task_id) == [CREATED, RUNNING, FAILED]


def test_parameters_that_do_not_fit_fail_without_a_call(shop: Shop) -> None:
    with pytest.raises(TaskFailed, match="n") as failed:
        shop.client.submit("double", {"n": "many"}).result(WAIT_S)
    assert failed.value.code == "invalid_parameters"


def test_what_has_not_started_by_its_expiry_never_does(shop: Shop) -> None:
    now = datetime.now(UTC)
    late, soon = now + timedelta(minutes=10), now + timedelta(seconds=0.3)
    receipt = shop.client.submit("double", {"n": 1}, not_before=late, expires_at=soon)
    with pytest.raises(TaskCancelled) as cancelled:
        receipt.result(WAIT_S)
    assert cancelled.value.code == "expired"
    assert shop.history(receipt.task_id) == [CREATED, CANCELLED]


def test_a_task_waits_for_its_time(shop: Shop) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.3)
    receipt = shop.client.submit("double", {"n": 1}, not_before=due)
    assert receipt.result(WAIT_S) == 2
    started = shop.runs.history(receipt.task_id)[1]
    assert started.status is RUNNING
    assert started.updated_at is not None
    assert started.updated_at >= due.replace(microsecond=due.microsecond // 1_000 * 1_000)


# --- Cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", ["sleeper", "looper"])
def test_a_running_task_can_be_cancelled(shop: Shop, task_type: str) -> None:
    receipt = shop.client.submit(task_type)
    until_running(receipt.events())
    receipt.cancel("not needed")
    with pytest.raises(TaskCancelled) as cancelled:
        receipt.result(WAIT_S)
    assert cancelled.value.code == "cancelled"
    receipt.cancel()  # too late, and no error


def test_a_task_that_is_cancelled_before_its_start_never_runs(shop: Shop) -> None:
    receipt = shop.client.submit("double", {"n": 1}, not_before=datetime.now(UTC) + timedelta(minutes=10))
    assert receipt.status().status is CREATED
    receipt.cancel()
    assert receipt.wait(WAIT_S).status is CANCELLED
    assert shop.history(receipt.task_id) == [CREATED, CANCELLED]


# --- Wait -------------------------------------------------------------------------------------------------------------


def test_events_come_in_order_until_the_end(shop: Shop) -> None:
    receipt = shop.client.submit("held", {"gate": "events"})
    events = receipt.events()
    assert next(events).status is CREATED
    assert next(events).status is RUNNING
    progress = next(events)
    assert (progress.status, progress.progress, progress.message) == (RUNNING, 0.5, "half of it")
    shop.life.gates["events"].set()
    rest = list(events)
    assert [event.status for event in rest] == [COMPLETED]
    assert shop.runs.history(receipt.task_id)[-1] == rest[-1] == receipt.status()
    assert [event.status for event in receipt.events()] == [COMPLETED]


def test_waiting_too_long_raises_and_the_task_goes_on(shop: Shop) -> None:
    receipt = shop.client.submit("held", {"gate": "too long"})
    for _ in range(2):
        with pytest.raises(WaitTimeout, match=receipt.task_id):
            receipt.wait(0.05)
    shop.life.gates["too long"].set()
    assert receipt.result(WAIT_S) == "too long"


def test_another_client_waits_by_the_id_alone(shop: Shop) -> None:
    receipt = shop.client.submit("held", {"gate": "another"})
    until_running(receipt.events())

    async def scenario() -> list[Any]:
        other = shop.life.app.async_client()
        try:
            latest = (await other.status(receipt.task_id)).status
            with pytest.raises(WaitTimeout):
                await other.wait(receipt.task_id, 0.05)
            shop.life.gates["another"].set()
            ended = await other.wait(receipt.task_id.upper(), WAIT_S)
            return [latest, ended.result, [event.status async for event in other.events(receipt.task_id)][-1]]
        finally:
            await shop.life.app.aclose()

    assert asyncio.run(scenario()) == [RUNNING, "another", COMPLETED]


def test_an_id_that_no_request_has_is_unknown(shop: Shop) -> None:
    task_id, client = new_task_id(), shop.client
    for ask in (client.status, lambda known: client.wait(known, WAIT_S), lambda known: list(client.events(known))):
        with pytest.raises(UnknownTask, match=task_id):
            ask(task_id)
    with pytest.raises(ConfigError, match="UUID"):
        client.wait("no uuid")


# --- Submit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"task_type": ""}, "task_type"),
        ({"task_type": "double", "priority": 11}, "priority"),
        ({"task_type": "double", "task_id": "no uuid"}, "task_id"),
        ({"task_type": "double", "parameters": {"x": float("nan")}}, "parameters"),
        ({"task_type": "double", "parameters": {"text": incompressible(2_000_000)}}, "parameters"),
    ],
    ids=["type", "priority", "id", "not a number", "too large"],
)
def test_a_request_that_cannot_be_sent_is_refused_by_field(shop: Shop, arguments: Any, named: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        shop.client.submit(**arguments)
    assert named in refused.value.fields


def test_the_arguments_of_a_typed_task_are_checked_before_anything_is_sent(shop: Shop) -> None:
    with pytest.raises(RequestRefused) as refused:
        shop.life.double.submit_sync("many")  # type: ignore[arg-type]
    assert "n" in str(refused.value)


def test_a_second_request_with_an_open_id_does_not_run(shop: Shop) -> None:
    client, gate = shop.client, shop.life.gates["twice"]
    first = client.submit("held", {"gate": "twice"})
    until_running(first.events())
    client.submit("held", {"gate": "twice"}, task_id=first.task_id)
    assert client.submit("double", {"n": 1}).result(WAIT_S) == 2  # it lies behind the second one
    gate.set()
    assert first.result(WAIT_S) == "twice"
    assert client.submit("double", {"n": 1}).result(WAIT_S) == 2
    assert shop.life.begun.count("twice") == 1
    assert shop.history(first.task_id).count(COMPLETED) == 1


def test_many_are_submitted_at_once(shop: Shop) -> None:
    requests = [TaskRequest(task_type="double", parameters={"n": n}, priority=n % 10 + 1) for n in range(300)]
    receipts = shop.client.submit_many(requests)
    assert [receipt.result(WAIT_S) for receipt in receipts] == [2 * n for n in range(300)]
    with pytest.raises(RequestRefused):
        shop.client.submit_many([{"task_type": "double"}, {"task_type": ""}])


def test_what_was_submitted_in_bulk_runs(shop: Shop) -> None:
    ids = [new_task_id() for _ in range(20)]
    requests = [{"task_type": "double", "parameters": {"n": n}, "task_id": task_id} for n, task_id in enumerate(ids)]
    assert shop.client.submit_bulk(requests) == 20
    shop.client.flush(WAIT_S)
    assert [shop.client.wait(task_id, WAIT_S).result for task_id in ids] == [2 * n for n in range(20)]


def test_the_more_urgent_of_those_that_wait_starts_first(shop: Shop) -> None:
    client, life = shop.client, shop.life
    blocker = client.submit("single", {"name": "blocker"})
    until_running(blocker.events())
    for name in ("low", "normal", "high"):
        life.gates[name].set()
    many = [{"task_type": "single", "parameters": {"name": n}, "priority": p} for n, p in WAITING.items()]
    receipts = client.submit_many(many)
    marks = client.submit_many([{"task_type": "double", "parameters": {"n": 1}, "priority": p} for p in (2, 5, 9)])
    assert [mark.result(WAIT_S) for mark in marks] == [2, 2, 2]  # they lie behind: all three wait in the worker
    life.gates["blocker"].set()
    for receipt in receipts:
        receipt.wait(WAIT_S)
    assert [name for name in life.begun if name in {"blocker", *WAITING}] == ["blocker", "high", "normal", "low"]


WAITING = {"low": 2, "normal": 5, "high": 9}


def test_tasks_with_one_ordering_key_start_one_after_the_other(shop: Shop) -> None:
    names = [f"key {n}" for n in range(3)]
    requests = [{"task_type": "held", "parameters": {"gate": name}, "ordering_key": "k"} for name in names]
    receipts = shop.client.submit_many(requests)
    for at, receipt in enumerate(receipts):
        until_running(receipt.events())
        assert [name for name in shop.life.begun if name in names] in (names[:at], names[: at + 1])
        shop.life.gates[names[at]].set()
        assert receipt.result(WAIT_S) == names[at]


def test_many_wait_at_once_on_one_event_loop(shop: Shop) -> None:
    async def scenario() -> list[int]:
        client = shop.life.app.async_client()
        try:
            receipts = await client.submit_many([{"task_type": "double", "parameters": {"n": n}} for n in range(100)])
            typed = await shop.life.double.submit(100)
            return [
                *await asyncio.gather(*(receipt.result(WAIT_S) for receipt in receipts)),
                await typed.result(WAIT_S),
            ]
        finally:
            await shop.life.app.aclose()

    assert asyncio.run(scenario()) == [2 * n for n in range(101)]
