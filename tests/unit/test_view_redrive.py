"""POST /tasks/{id}/redrive: the real route and view over a log written by hand, with letters of the worker's encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest

from streamtask.codec import RequestDecoder, decode_dead, encode_dead
from streamtask.domain.identity import Origin, new_task_id
from streamtask.domain.model import DeadLetter, RequestRecord
from streamtask.projection.store import MemoryStore
from streamtask.projection.view import ViewService
from streamtask.query_service.http import create_app
from streamtask.query_service.redrive import Redriver
from streamtask.redrive import Builder, Redrive, Refusal
from tests.unit.view_bench import CLUSTER, NAMES, T0, Log, LogSubmitter

pytestmark = pytest.mark.anyio
A_TASK = {"task_type": "census", "parameters": {"path": "a.py"}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class LogRedriver:
    """Letters in memory; sends into the Log what KafkaRedriver would send to Kafka."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._builder = Builder(NAMES, CLUSTER, 2)
        self.letters: dict[str, DeadLetter] = {}
        self.sent: list[Redrive] = []

    def fail(self, value: bytes | None = None) -> str:
        """A task that has failed, with its letter."""
        task_id = new_task_id()
        value = value or orjson.dumps({**A_TASK, "task_id": task_id})
        offset = self._log.append(NAMES.requests[0], 1, value, task_id.encode())
        origin = Origin("high", 1, offset)
        self._log.status(task_id, "created", origin)
        self._log.status(task_id, "running", origin, attempt=1)
        self._log.status(task_id, "failed", origin, attempt=1)
        record = RequestDecoder(NAMES, CLUSTER).decode(0, 1, offset, T0, task_id.encode(), value, ())
        self.letters[task_id] = DeadLetter(record, "handler_error", "no", str(origin), task_id)
        return task_id

    async def find(self, task_id: str, origin: str) -> Redrive | Refusal | None:
        letter = self.letters.get(task_id)
        if letter is None or letter.origin != origin:
            return None
        key, value, headers = encode_dead(letter, NAMES, value_bytes_max=10_000, worker="w", failed_at_ms=T0)
        offset = list(self.letters).index(task_id)
        return self._builder.build(decode_dead(0, offset, T0, key, value, headers), T0)

    async def send(self, item: Redrive) -> RequestRecord:
        await asyncio.sleep(0)  # where others get their turn
        self.sent.append(item)
        offset = self._log.append(item.topic, item.partition, item.value, item.key, tuple(item.headers))
        return self._builder.record(item, offset, T0)


@asynccontextmanager
async def serving(log: Log, redriver: Redriver | None) -> AsyncIterator[httpx.AsyncClient]:
    service = ViewService(MemoryStore(), log.open, NAMES, CLUSTER)
    submitter = LogSubmitter(log)
    transport = httpx.ASGITransport(create_app(service, submitter, redriver=redriver), raise_app_exceptions=False)
    async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        async with asyncio.timeout(60):
            await service.caught_up.wait()
        yield http


def problem(answer: httpx.Response, status: int, name: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:streamtask:problem:{name}"
    return str(answer.json().get("detail"))


async def test_a_failed_task_is_answered_with_the_new_one_and_a_get_never_misses_it() -> None:
    log = Log()
    redriver = LogRedriver(log)
    old = redriver.fail()
    async with serving(log, redriver) as http:
        answer = await http.post(f"/tasks/{old}/redrive")
        assert answer.status_code == 202
        task = answer.json()
        assert (task["status"], task["labels"]) == ("created", {"redrive_of": old})
        assert answer.headers["location"] == f"/tasks/{task['task_id']}" != f"/tasks/{old}"
        assert answer.headers["consistency-token"] == task["origin"] == "high-1@1"
        assert (await http.get(answer.headers["location"])).json()["task_id"] == task["task_id"]
        assert (await http.get(f"/tasks/{old}")).json()["status"] == "failed"


async def test_asked_again_and_at_once_it_is_sent_once_and_the_answer_is_the_same_task_as_it_is_by_then() -> None:
    log = Log()
    redriver = LogRedriver(log)
    old = redriver.fail()
    async with serving(log, redriver) as http:
        answers = await asyncio.gather(*(http.post(f"/tasks/{old}/redrive") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {202}
        (place,) = {answer.headers["location"] for answer in answers}
        assert len(redriver.sent) == 1
        version = log.status(place.removeprefix("/tasks/"), "running", Origin("high", 1, 1), attempt=1)
        assert (await http.get(place, params={"wait": 5, "after_version": version - 1})).status_code == 200
        later = await http.post(f"/tasks/{old}/redrive")
        assert (later.status_code, later.json()["status"], later.headers["location"]) == (202, "running", place)
        assert len(redriver.sent) == 1


async def test_what_is_unknown_or_has_not_failed_or_cannot_be_read_is_refused() -> None:
    log = Log()
    redriver = LogRedriver(log)
    running, origin = new_task_id(), log.request(1, 0, A_TASK)
    log.status(running, "created", origin)
    garbage, gone = redriver.fail(b"garbage"), redriver.fail()
    del redriver.letters[gone]
    async with serving(log, redriver) as http:
        problem(await http.post(f"/tasks/{new_task_id()}/redrive"), 404, "unknown-task")
        problem(await http.post("/tasks/no-uuid/redrive"), 422, "invalid-request")
        assert "created" in problem(await http.post(f"/tasks/{running}/redrive"), 409, "not-failed")
        assert "not JSON" in problem(await http.post(f"/tasks/{garbage}/redrive"), 409, "cannot-be-redriven")
        assert "dead letter" in problem(await http.post(f"/tasks/{gone}/redrive"), 409, "cannot-be-redriven")
        problem(await http.post(f"/tasks/{gone}/redrive", json={"priority": 9}), 422, "invalid-request")
    assert redriver.sent == []


async def test_a_service_without_dead_letters_says_so() -> None:
    log = Log()
    old = LogRedriver(log).fail()
    async with serving(log, None) as http:
        problem(await http.post(f"/tasks/{old}/redrive"), 409, "cannot-be-redriven")
