"""The documents for machines against what is really sent: every record, header and key on every topic, every answer of
the query service, every live event of one run, in which the worker is killed and the format of its successors changes.

Everything is held to the documents closed (tests/documents.py): a field or an answer that they do not name fails. And
the run is held to the documents: every message, every answer and every field that they name was seen, but for those
listed here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType
from websockets.asyncio.client import connect

from streamtask.cli.export import openapi
from streamtask.client import Client
from streamtask.client.stream import server_events
from streamtask.codec import RequestDecoder
from streamtask.codec.formats import avro_encoder
from streamtask.config import Settings, load_settings
from streamtask.documents import asyncapi
from streamtask.documents.examples import LONG_INFERENCE
from streamtask.domain.model import TaskRequest
from streamtask.kafka.tail import Tail, TailRecord
from streamtask.schema_registry import Formats
from streamtask.schema_registry.subjects import documents
from tests.acceptance.harness import PATIENT, WAIT_S, Bench, Running, until
from tests.documents import Answer, Breach, Contract
from tests.fake_registry import FakeRegistry, fake_registry

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

KEY = "a-secret"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# What one run of a healthy cluster does not show; other tests do (the traceback: with another setting, test_payload.py).
UNSEEN_ANSWERS = {"410", "500", "503"}
UNSEEN_FIELDS = {
    ("Problem", "health"),
    ("DeadLetterHeaders", "streamtask-headers-dropped"),
    ("DeadLetterHeaders", "streamtask-traceback"),
}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as held:
        yield held


@pytest.fixture
def contract(bench: Bench) -> Contract:
    return Contract(asyncapi.document(bench.names, kafka=bench.kafka.bootstrap, service="127.0.0.1:8080"), openapi())


class Asker:
    """The query service; every answer is held to the contract."""

    def __init__(self, url: str, contract: Contract) -> None:
        self.url, self._contract = url, contract
        self._http = httpx.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=WAIT_S)

    def __call__(self, method: str, path: str, status: int, **how: Any) -> Any:
        got = self._http.request(method, path, **how)
        assert got.status_code == status, f"{method} {path}: {got.status_code} {got.text}"
        return self._contract.answer(method, path.partition("?")[0], Answer(got.status_code, got.headers, got.content))

    def header(self, name: str, path: str) -> str:
        return str(self._http.get(path).headers[name])

    def close(self) -> None:
        self._http.close()


def a_service(bench: Bench, registry: FakeRegistry) -> tuple[Running, str]:
    environment = {"STREAMTASK_API_KEY": KEY, "STREAMTASK_REGISTRY_URL": registry.url, "STREAMTASK_LOCALE": "zh"}
    environment["STREAMTASK_BODY_BYTES_MAX"] = "2000"  # small enough to be sent whole before it is refused
    service = bench._start([sys.executable, "-m", "streamtask", "serve", "--port", "0"], environment)
    ready = until(lambda: [line for line in service.text().splitlines() if line.startswith("ready: ")], service.text)
    return service, ready[0].split()[1]


def settings(bench: Bench, registry: FakeRegistry, output: str) -> Settings:
    return load_settings(
        bootstrap_servers=bench.kafka.bootstrap, prefix=bench.names.prefix, format=output, registry_url=registry.url
    )


# --- Parts of the run -------------------------------------------------------------------------------------------------


def submit_by_http(door: Asker) -> str:
    """What POST /tasks says to right and wrong; returns the task of the contract."""
    trace = {"traceparent": TRACE, "tracestate": "a=b"}
    created = door("POST", "/tasks", 202, json={**LONG_INFERENCE, "tenant": "acme"}, headers=trace)
    door("POST", "/tasks", 400, content=b"{")
    door("POST", "/tasks", 401, json=LONG_INFERENCE, headers={"X-API-Key": "wrong"})
    door("POST", "/tasks", 403, json=LONG_INFERENCE, headers={"Origin": "http://elsewhere.test"})
    door("POST", "/tasks", 413, json={**LONG_INFERENCE, "description": "x" * 3_000})
    door("POST", "/tasks", 422, json={**LONG_INFERENCE, "priorty": 1, "timeout_seconds": 0})
    return str(created["task_id"])


def submit_by_client(client: Client) -> dict[str, str]:
    """{what it is to become: task_id}"""
    full: dict[str, Any] = {
        "labels": {"a": "b"},
        "tenant": "acme",
        "description": "d",
        "idempotency_key": "i",
        "timeout": 60.0,
    }
    now = datetime.now(UTC)
    times: dict[str, Any] = {
        "created_at": now,
        "not_before": now + timedelta(seconds=0.2),
        "expires_at": now + timedelta(hours=1),
    }
    return {
        "waited": client.submit("noop", {"n": 1}, **times).task_id,
        "completed": client.submit("counts", {"steps": 3, "ms": 150}, ordering_key="k", priority=2, **full).task_id,
        "retried": client.submit("flaky", {"failures": 2}, headers={"traceparent": TRACE}).task_id,
        "failed": client.submit("hopeless", labels={"a": "b"}, headers={"traceparent": TRACE, "own": "1"}).task_id,
        "refused": client.submit("typed", {"x": "none"}).task_id,
        "late": client.submit("nap", {"ms": 60_000}, timeout=0.2).task_id,
    }


def produce_as_others_do(bench: Bench) -> tuple[set[str], set[str], list[str]]:
    """(origins of requests, origins of what is none, task_ids that get an end)"""
    ids = [str(uuid.uuid4()) for _ in range(4)]
    request = TaskRequest(task_type="noop", task_id=ids[1], parameters={"n": 5})
    encoder = avro_encoder(documents(bench.names))
    good = {
        bench.produce(b'{"task_type": "noop"}'),
        bench.produce(b'{"task_type": "noop", "priority": null, "x": 1}', headers=[("task_id", ids[0]), ("own", b"1")]),
        bench.produce(encoder.request(bench.names.requests[2], request), ids[1].encode(), band=2),
    }
    broken = {
        bench.produce(b'{"task_type"', headers=[("task_id", ids[2])]),
        bench.produce(b'{"task_type": "noop", "priority": 11}', ids[3].encode(), band=0),
        bench.produce(b'{"task_type": "noop", "task_id": "x"}', b"their key"),
    }
    return good, broken, ids


def look_up(door: Asker, known: dict[str, str]) -> None:
    """Every other route, right and wrong. known: {completed, failed, cancelled: task_id}"""
    completed, failed = known["completed"], known["failed"]
    for task_id in known.values():
        door("GET", f"/tasks/{task_id}", 200)
    etag = door.header("etag", f"/tasks/{completed}")
    door("GET", f"/tasks/{completed}", 304, headers={"If-None-Match": etag})
    door("GET", f"/tasks/{completed}?wait=0.1", 200)
    door("GET", f"/tasks/{uuid.uuid4()}", 404)
    door("GET", "/tasks/none", 422)
    door("GET", f"/tasks/{completed}", 401, headers={"X-API-Key": "wrong"})
    page = door("GET", "/tasks?limit=2", 200)
    assert door("GET", f"/tasks?limit=2&cursor={page['next_cursor']}", 200)["tasks"]
    assert door("GET", "/tasks?tenant=acme&status=completed", 200)["next_cursor"] is None
    door("GET", "/tasks?limit=none", 422)
    door("GET", "/tasks", 401, headers={"X-API-Key": "wrong"})

    cancel = f"/tasks/{completed}/cancel"
    door("POST", cancel, 409)
    door("POST", cancel, 400, content=b"{")
    door("POST", cancel, 401, headers={"X-API-Key": "wrong"})
    door("POST", cancel, 403, headers={"Origin": "http://elsewhere.test"})
    door("POST", cancel, 413, content=b"x" * 20_000)
    door("POST", cancel, 422, json={"why": "x"})
    assert door("POST", f"/tasks/{uuid.uuid4()}/cancel", 202)["status"] is None

    redrive = f"/tasks/{failed}/redrive"
    made = [door("POST", redrive, 202)["task_id"] for _ in range(2)]
    assert made[0] == made[1]
    door("POST", f"/tasks/{completed}/redrive", 409)
    door("POST", f"/tasks/{uuid.uuid4()}/redrive", 404)
    door("POST", redrive, 400, headers={"Origin": "http://[::"})
    door("POST", redrive, 422, content=b"x")
    door("POST", redrive, 401, headers={"X-API-Key": "wrong"})
    door("POST", redrive, 403, headers={"Origin": "http://elsewhere.test"})

    place = f"/tasks/{completed}/events"
    door("GET", place, 400, headers={"Last-Event-ID": "none"})
    door("GET", place, 401, headers={"X-API-Key": "wrong"})
    door("GET", f"/tasks/{uuid.uuid4()}/events", 404)
    door("GET", "/tasks/none/events", 422)
    door("GET", "/events", 400, headers={"Last-Event-ID": "none"})
    door("GET", "/events", 401, headers={"X-API-Key": "wrong"})
    door("GET", "/events?zzz=1", 422)
    for path in ("/health", "/ready", "/stats", "/metrics"):
        door("GET", path, 200)
    for path in ("/stats", "/metrics"):
        door("GET", path, 401, headers={"X-API-Key": "wrong"})


def misdirect(door: Asker, operations: Mapping[str, Mapping[str, Any]], task_id: str) -> None:
    """Every operation, asked for under a name that the service does not go by."""
    for path, methods in operations.items():
        for method in methods:
            door(method.upper(), path.replace("{task_id}", task_id), 421, headers={"Host": "elsewhere.test"})


async def follow_by_sse(url: str, path: str, contract: Contract, ready: Callable[[], None]) -> str:
    """Every event of a stream until a task has ended; returns the last id."""
    last = ""
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(timeout=WAIT_S) as http, http.stream("GET", f"{url}{path}", headers=headers) as got:
        contract.answer("GET", path.partition("?")[0], Answer(got.status_code, got.headers, b""))
        ready()
        async for event in server_events(got.aiter_bytes()):
            if event.data:
                told = contract.event(event.name, event.data.decode())
                last = event.id or last
                if told.get("status") == "completed":
                    break
    return last


async def talk_over_the_socket(url: str, task_id: str, contract: Contract, ready: Callable[[], None]) -> None:
    """Every kind of frame, until the task has ended."""
    address = f"ws{url.removeprefix('http')}/ws"
    async with asyncio.timeout(60), connect(address, additional_headers={"X-API-Key": KEY}) as talk:

        async def say(**frame: Any) -> None:
            text = json.dumps(frame)
            contract.frame(text, asked=True)
            await talk.send(text)

        await say(action="ping")
        await say(action="subscribe", id="all", task_type="wait_for", status=None)
        await say(action="unsubscribe", id="all")
        await say(action="subscribe", id="nobody's", task_id=str(uuid.uuid4()))
        await talk.send('{"action": "subscribe", "task": "x"}')
        await say(action="subscribe", id="one", task_id=task_id)
        ready()
        while True:
            frame = contract.frame(str(await talk.recv()))
            if (frame["type"], frame.get("id")) == ("end", "one"):
                assert frame["reason"] == "ended"
                return


def records(bench: Bench) -> list[TailRecord]:
    """All that lies on the topics, read committed."""
    names = bench.names
    found: list[TailRecord] = []
    with Tail(bench.kafka, [*names.requests, names.status, names.control, names.dead], with_headers=True) as tail:
        ends = tail.ends()

        def read() -> bool:
            found.extend(tail.poll(2_000, 0.2))
            return tail.caught_up(ends)

        until(read, "everything is read")
    return found


def hold_records(bench: Bench, contract: Contract, registry: FakeRegistry, good: set[str], broken: set[str]) -> None:
    """Every record to the documents: ours closed; of requests (good: those of others) the workers' judgement, too."""
    bands = {topic: (index, bench.names.bands[index].name) for index, topic in enumerate(bench.names.requests)}
    with closing(Formats(settings(bench, registry, "confluent"))) as formats:
        decoder = RequestDecoder(bench.names, "cluster", formats.insisting)
        for topic, partition, offset, timestamp_ms, key, value, headers in records(bench):
            assert value is not None
            if topic not in bands:
                contract.record(topic, key, value, headers)
                continue
            band, name = bands[topic]
            judged = decoder.decode(band, partition, offset, timestamp_ms, key, value, headers)
            origin = f"{name}-{partition}@{offset}"
            if origin not in broken:
                contract.record(topic, key, value, headers, foreign=origin in good)
                assert judged.problem is None, f"{origin}: {judged.problem}"
                continue
            assert judged.problem is not None
            with pytest.raises(Breach):
                contract.record(topic, key, value, headers, foreign=True)


def hold_topics(bench: Bench, contract: Contract) -> None:
    """The topics are made as the bindings say."""
    channels = contract.asyncapi["channels"]
    addresses = {channel["address"].replace("{band}", "high"): channel for channel in channels.values()}
    addresses.pop("/ws")
    admin = AdminClient({"bootstrap.servers": bench.kafka.bootstrap})
    asked = [ConfigResource(ResourceType.TOPIC, topic) for topic in addresses]
    for resource, future in admin.describe_configs(asked).items():
        real = future.result(WAIT_S)
        for name, told in addresses[resource.name]["bindings"]["kafka"]["topicConfiguration"].items():
            wanted = set(told) if isinstance(told, list) else {str(told)}
            assert set(real[name].value.split(",")) == wanted, f"{resource.name}: {name}"
    groups = [one.group_id for one in admin.list_consumer_groups().result(WAIT_S).valid]
    receives = contract.asyncapi["operations"]["receiveRequest"]
    assert receives["bindings"]["kafka"]["groupId"]["const"] in groups


def nothing_is_told_that_was_not_seen(contract: Contract) -> None:
    """Every message, every answer, every field of the documents."""
    messages = {
        (channel, name)
        for channel, told in contract.asyncapi["channels"].items()
        for name in told["messages"]
        if channel != "live"
    }
    answers = {
        (operation["operationId"], status)
        for operations in contract.openapi["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
        if status not in UNSEEN_ANSWERS
    }
    frames = {("liveFrame", kind) for kind in ("subscribed", "event", "end", "error", "pong")}
    asked = {("liveAsk", kind) for kind in ("subscribe", "unsubscribe", "ping")}
    fields = {
        (name, field)
        for name in ("TaskRequest", "TaskResponse", "ControlMessage", "DeadLetterHeaders", "StatusHeaders", "Problem")
        for document in (contract.asyncapi, contract.openapi)
        for field in document["components"]["schemas"].get(name, {}).get("properties", ())
    }
    unseen = (messages | answers | frames | asked | {("event", "message")}) - set(contract.seen)
    assert not unseen, sorted(unseen)
    missing = fields - UNSEEN_FIELDS - set(contract.fields)
    assert not missing, sorted(missing)


# --- The run ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_sent_in_a_run_with_a_kill_is_what_the_documents_say(
    bench: Bench, contract: Contract, registry: FakeRegistry
) -> None:
    worker = bench.worker()
    service, url = a_service(bench, registry)
    go = bench.directory / "go"
    with closing(Asker(url, contract)) as door:
        posted = submit_by_http(door)
        asked = submit_by_client(bench.client)
        good, broken, others = produce_as_others_do(bench)
        bench.ends([posted, *asked.values(), *others])
        held = bench.client.submit("wait_for", {"path": str(go)}, priority=9, headers={"traceparent": TRACE}).task_id
        wished = [bench.client.submit("wait_for", {"path": "/never"}).task_id for _ in range(2)]
        for task_id in (held, *wished):
            bench.until_status(task_id, "running")
        door("POST", f"/tasks/{wished[0]}/cancel", 202, json={"reason": "不再需要"})
        bench.client.cancel(wished[1])
        bench.ends(wished)

        worker.kill()
        formats = {**PATIENT, "STREAMTASK_REGISTRY_URL": registry.url}
        bench.worker(formats, STREAMTASK_FORMAT="avro")

        async def follow() -> str:
            listening = [asyncio.Event() for _ in range(3)]
            async with asyncio.TaskGroup() as group:
                path = f"/tasks/{held}/events"
                events = group.create_task(follow_by_sse(url, path, contract, listening[0].set), name="sse")
                group.create_task(talk_over_the_socket(url, held, contract, listening[1].set), name="ws")
                of_all = "/events?task_type=wait_for"
                group.create_task(follow_by_sse(url, of_all, contract, listening[2].set), name="sse of all")
                for one in listening:
                    await one.wait()
                await asyncio.to_thread(bench.until_status, held, "running", 2)
                go.touch()
            return events.result()

        last_id = asyncio.run(follow())
        end = bench.end(held)
        assert (end.status, end.event.attempt, end.value[:2]) == ("completed", 2, b"\xc3\x01")
        door("GET", f"/tasks/{held}/events", 204, headers={"Last-Event-ID": last_id})

        with Client(settings=settings(bench, registry, "avro")) as client:
            avro = client.submit("wait_for", {"path": "/never"}).task_id
            bench.until_status(avro, "running")
            client.cancel(avro, "no longer needed")
        bench.end(avro)
        for one in bench.workers[2:3]:
            assert one.drain() == 0
        with closing(Formats(settings(bench, registry, "confluent"))) as known:
            bench.reader = known.insisting
            bench.worker(formats, STREAMTASK_FORMAT="confluent")
            with Client(settings=settings(bench, registry, "confluent")) as client:
                confluent = client.submit("wait_for", {"path": "/never"}).task_id
                bench.until_status(confluent, "running")
                client.cancel(confluent)
            bench.end(confluent)

            look_up(door, {**asked, "held": held, "cancelled": wished[0], "avro": avro, "confluent": confluent})
            misdirect(door, contract.openapi["paths"], held)
            until(lambda: all(events[-1].event.ended for events in bench.histories().values()), "everything has ended")
            hold_records(bench, contract, registry, good, broken)
            bench.finish()
    hold_topics(bench, contract)
    nothing_is_told_that_was_not_seen(contract)
    assert service.process.returncode == 0
