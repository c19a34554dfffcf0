"""What only the client in memory does: it skips time, and it ends with its block.

What it has in common with a worker on Kafka is in tests/contract/test_client_life.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from streamtask import (
    App,
    ConfigError,
    Context,
    LifespanError,
    Retry,
    StreamtaskError,
    TaskCancelled,
    TaskFailed,
    TaskStatus,
    WaitTimeout,
)
from streamtask.testing import InMemory, RunInMemory, in_memory
from streamtask.testing.memory_worker import MemoryWorker

HOUR = 3_600
CREATED, RUNNING, CANCELLED = TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.CANCELLED

app = App("shop", bootstrap_servers="127.0.0.1:1", url="http://127.0.0.1:1")  # nothing answers there


@app.task(retry=Retry(attempts=5, backoff=HOUR, backoff_max=HOUR))
async def flaky(ctx: Context, attempts: int) -> int:
    if ctx.attempt < attempts:
        raise ValueError("not yet")
    return ctx.attempt


@app.task
def double(n: int) -> int:
    return 2 * n


@app.task(executor="process", memory_mb=100, max_tasks=1)
def where() -> int:
    return os.getpid()


@pytest.fixture
def shop(streamtask_memory: RunInMemory) -> InMemory:
    return streamtask_memory(app)


def statuses(shop: InMemory, task_id: str) -> list[TaskStatus]:
    return [event.status for event in shop.history(task_id)]


# --- Time -------------------------------------------------------------------------------------------------------------


def test_a_backoff_of_an_hour_takes_no_time(shop: InMemory) -> None:
    before, began_s = shop.now(), time.monotonic()
    task = flaky.submit_sync(5)
    assert task.result() == 5
    assert time.monotonic() - began_s < 60
    assert shop.now() - before > timedelta(minutes=10)
    times = [event.updated_at for event in shop.history(task.task_id) if event.updated_at is not None]
    assert len(times) == len(shop.history(task.task_id))
    assert times == sorted(times)
    assert times[-1] <= shop.now()


def test_the_timeout_of_a_wait_is_on_the_clock_that_skips(shop: InMemory) -> None:
    before, began_s = shop.now(), time.monotonic()
    task = double.options(not_before=before + timedelta(minutes=30)).submit_sync(1)
    with pytest.raises(WaitTimeout):
        task.result(timeout=20 * 60)
    assert timedelta(minutes=19) < shop.now() - before < timedelta(minutes=25)
    assert statuses(shop, task.task_id) == [CREATED]
    assert task.result(timeout=20 * 60) == 2
    assert time.monotonic() - began_s < 60
    assert shop.now() - before >= timedelta(minutes=30)


def test_time_does_not_skip_while_no_call_waits(shop: InMemory) -> None:
    before = shop.now()
    later = double.options(not_before=before + timedelta(minutes=30)).submit_sync(1)
    assert double.submit_sync(2).result() == 4  # ready at once: nothing is to be skipped for it
    assert later.status().status is CREATED
    assert shop.now() - before < timedelta(minutes=5)
    later.cancel()
    with pytest.raises(TaskCancelled):
        later.result()
    assert statuses(shop, later.task_id) == [CREATED, CANCELLED]


def test_a_task_can_be_cancelled_between_two_attempts(shop: InMemory) -> None:
    task = flaky.submit_sync(5)
    waits = next(event for event in task.receipt.events() if "again in" in str(event.message))
    assert (waits.status, waits.attempt) == (RUNNING, 1)
    task.cancel()
    assert task.wait().status is CANCELLED
    assert statuses(shop, task.task_id) == [CREATED, RUNNING, RUNNING, CANCELLED]


def test_an_id_can_be_used_again_after_its_end(shop: InMemory) -> None:
    first = flaky.submit_sync(2)
    assert first.result() == 2
    task_id = first.task_id
    del first  # a client that holds an ended task answers from it
    again = flaky.options(task_id=task_id).submit_sync(3)
    assert again.result() == 3


def test_a_task_of_an_unknown_type_waits_its_grace_in_no_time(shop: InMemory) -> None:
    before = shop.now()
    with pytest.raises(TaskFailed) as failed:
        shop.client.submit("unheard of").result()
    assert failed.value.code == "unknown_task_type"
    assert shop.now() - before > timedelta(minutes=4)  # by another clock: not to the millisecond


def test_time_is_real_while_a_handler_runs() -> None:
    busy, gate = App("busy"), threading.Event()

    @busy.task
    def held() -> None:
        gate.wait(30)

    @busy.task
    def due() -> None: ...

    with in_memory(busy) as shop:
        task = held.submit_sync()
        assert next(e for e in task.receipt.events() if e.status is RUNNING)
        before = shop.now()
        later = due.options(not_before=before + timedelta(minutes=30)).submit_sync()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(later.wait)
            for _ in range(20):
                due.submit_sync().wait()
            assert shop.now() - before < timedelta(minutes=5)
            gate.set()
            assert waiting.result(30).ended
        assert shop.now() - before >= timedelta(minutes=30)


def test_a_backoff_is_the_same_in_every_run() -> None:
    said = []
    for _ in range(2):
        with in_memory(app) as shop:
            task = flaky.submit_sync(3)
            task.result()
            said.append([event.message for event in shop.history(task.task_id)])
    assert said[0] == said[1]


# --- The block --------------------------------------------------------------------------------------------------------


def test_many_more_than_a_worker_holds_at_once_all_run(shop: InMemory) -> None:
    assert shop.client.submit_bulk({"task_type": "double", "parameters": {"n": n}} for n in range(3_000)) == 3_000
    shop.client.flush()
    (last,) = shop.client.submit_many([{"task_type": "double", "parameters": {"n": 1}, "priority": 1}])
    assert last.result() == 2


def test_the_flush_counts_what_was_too_large(shop: InMemory) -> None:
    large = {"task_type": "double", "parameters": {"n": "x" * 1_100_000}}
    assert shop.client.submit_bulk([large, {"task_type": "double"}, large]) == 3
    with pytest.raises(StreamtaskError, match="2 request"):
        shop.client.flush()
    shop.client.flush()


def test_a_cancel_may_come_before_its_request(shop: InMemory) -> None:
    task_id = "0193a5b0-0000-7000-8000-000000000001"
    shop.client.cancel(task_id)
    assert shop.client.submit("double", {"n": 1}, task_id=task_id).wait().status is CANCELLED


def test_a_process_handler_runs_in_this_process(shop: InMemory) -> None:
    assert where.submit_sync().result() == os.getpid()


async def test_an_async_test_submits_and_waits(streamtask_memory: RunInMemory) -> None:
    shop = streamtask_memory(app)
    task = await flaky.submit(3)
    assert [event.status async for event in task.events()][-1] is TaskStatus.COMPLETED
    receipt = await shop.async_client.submit("double", {"n": 2})
    assert await receipt.result() == 4
    assert shop.async_client is app.async_client()


def test_the_app_is_as_it_was_after_the_block() -> None:
    settings = app.settings
    with in_memory(app, threads=2) as shop:
        assert (app.settings.threads, app.settings.bootstrap_servers, app.settings.url) == (2, "", "")
        assert repr(shop) == "InMemory('shop')"
        client = shop.client
        with pytest.raises(ConfigError, match="already running"), in_memory(app):
            pass
    assert app.settings == settings
    with pytest.raises(StreamtaskError, match="closed"):
        client.submit("double", {"n": 1})
    with pytest.raises(ConfigError, match="did you mean 'threads'"), in_memory(app, thraeds=2):
        pass
    with pytest.raises(ConfigError, match="is not an App"), in_memory("shop:app"):  # type: ignore[arg-type]
        pass


def test_tasks_that_have_not_ended_are_dropped_with_the_block() -> None:
    began, ended = threading.Event(), threading.Event()
    busy = App("busy")

    @busy.task
    async def sleeper() -> None:
        began.set()
        try:
            await asyncio.sleep(3_600)
        finally:
            ended.set()

    with in_memory(busy):
        task = sleeper.submit_sync()
        assert next(e for e in task.receipt.events() if e.status is RUNNING)
        assert began.wait(30)  # RUNNING is published before the handler begins
    assert ended.wait(30)


def test_a_caller_that_waits_when_the_block_ends_is_told() -> None:
    async def scenario() -> None:
        with in_memory(app) as shop:
            task = await double.options(not_before=shop.now() + timedelta(minutes=30)).submit(1)
            stopped = shop.async_client
        with pytest.raises(StreamtaskError, match=r"in-memory worker of 'shop' has ended: its block has ended\."):
            await task.wait()
        with pytest.raises(StreamtaskError, match="has ended"):
            await stopped.submit("double", {"n": 1})
        with pytest.raises(StreamtaskError, match="has ended"):
            await stopped.cancel(task.task_id)

    asyncio.run(scenario())


def test_a_lifespan_that_does_not_open_fails_the_block() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with pytest.raises(LifespanError, match="no database"), in_memory(App("hopeless", lifespan=broken)):
        raise AssertionError("it opened")


def test_an_error_of_the_worker_reaches_those_who_wait_and_the_end_of_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_worker: MemoryWorker, _events: Any) -> None:
        raise ZeroDivisionError("a bug")

    def scenario() -> None:
        with in_memory(app):
            task = double.submit_sync(1)
            with pytest.raises(StreamtaskError, match="ZeroDivisionError: a bug"):
                task.wait()

    monkeypatch.setattr(MemoryWorker, "_publish", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        scenario()
