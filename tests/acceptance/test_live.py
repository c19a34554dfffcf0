"""The reference case of the contract, followed live; and streams whose service or worker dies in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from streamtask.client import AsyncClient
from streamtask.client.stream import server_events
from streamtask.documents.examples import LONG_INFERENCE
from streamtask.domain.model import TaskResponse
from tests.acceptance.harness import ROOT, WAIT_S, Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

APP = "examples.live.app:app"
HELD = "tests.acceptance.live_app:app"  # at 65 %, until open_gate()
RESULT = {"analysis": "...", "prediction": "..."}
Event = tuple[str, dict[str, Any]]  # the id, and what it says


def a_service(bench: Bench, port: int = 0) -> tuple[Running, str]:
    """A query service of its own store, ready, and its address. port: 0 takes a free one."""
    argv = [sys.executable, "-m", "streamtask", "serve", "--port", str(port)]
    service = bench._start(argv, {"STREAMTASK_LOCALE": "zh"})
    ready = until(lambda: [line for line in service.text().splitlines() if line.startswith("ready: ")], "it is ready")
    return service, ready[0].split()[1]


def held_worker(bench: Bench, **more: str) -> Running:
    return bench.supervised(app=HELD, ACCEPTANCE_GATE=str(bench.directory / "gate"), **more)


def open_gate(bench: Bench) -> None:
    (bench.directory / "gate").touch()


async def until_followed(url: str, count: int) -> None:
    """So many streams and sockets are open there."""
    await asyncio.to_thread(
        until, lambda: httpx.get(f"{url}/stats", timeout=WAIT_S).json()["streams"] >= count, f"{count} streams"
    )


def over(scheme: str, url: str) -> str:
    """The service's url for a client whose streams come so."""
    return scheme + url.removeprefix("http")


@asynccontextmanager
async def stream(url: str, last_id: str | None = None) -> AsyncIterator[AsyncIterator[Event]]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with httpx.AsyncClient(timeout=WAIT_S) as http, http.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()

        async def events() -> AsyncIterator[Event]:
            async for event in server_events(answer.aiter_bytes()):
                if event.data:
                    assert event.id is not None
                    yield event.id, json.loads(event.data)

        yield events()


async def by_poll(url: str, task_id: str, got: list[Event]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S) as http:
        query: dict[str, str] = {}
        while not got or got[-1][1]["status"] in ("created", "running"):
            answer = await http.get(f"/tasks/{task_id}", params=query)
            version = answer.headers["etag"].strip('"')
            if (
                not got or version != got[-1][0]
            ):  # the same one comes again when nothing has happened for the time of the wait
                got.append((version, answer.json()))
            query = {"wait": "20", "after_version": version}


async def by_sse(url: str, task_id: str, got: list[Event]) -> None:
    async with stream(f"{url}/tasks/{task_id}/events") as events:
        async for event in events:
            got.append(event)


async def by_websocket(url: str, task_id: str, got: list[Event]) -> None:
    async with connect(f"{over('ws', url)}/ws") as talk:
        await talk.send(json.dumps({"action": "subscribe", "id": "a", "task_id": task_id}))
        async for text in talk:
            frame = json.loads(text)
            if frame["type"] == "event":
                got.append((frame["last_event_id"], frame["task"]))
            elif frame["type"] == "end":
                assert frame["reason"] == "ended"
                break


async def by_the_client(url: str, task_id: str) -> list[TaskResponse]:
    async with AsyncClient(url=url) as client:
        return [task async for task in client.events(task_id)]


def test_the_long_inference_is_followed_by_poll_by_sse_by_websocket_and_by_the_client(bench: Bench) -> None:
    _, url = a_service(bench)

    answer = httpx.post(f"{url}/tasks", json=LONG_INFERENCE, timeout=WAIT_S)
    assert answer.status_code == 202
    created = answer.json()
    task_id = str(created["task_id"])
    assert (created["status"], created["message"]) == ("created", "任务已创建")

    async def follow() -> None:
        followed: dict[str, list[Event]] = {by.__name__: [] for by in (by_poll, by_sse, by_websocket)}

        def at_65(by: str) -> list[dict[str, Any]]:
            return [document for _, document in followed[by] if document.get("progress") == 0.65]

        async with asyncio.TaskGroup() as group:
            for by in (by_poll, by_sse, by_websocket):
                group.create_task(by(url, task_id, followed[by.__name__]), name=by.__name__)
            clients = [
                group.create_task(by_the_client(over(scheme, url), task_id), name=scheme) for scheme in ("http", "ws")
            ]
            # Everybody listens before anybody works: two streams, and a socket with its subscription for each of two.
            await until_followed(url, 6)
            held_worker(bench, STREAMTASK_LOCALE="zh")
            # A reader that is slow gets the latest event in place of several: it goes on when all have seen this one.
            await asyncio.to_thread(until, lambda: all(map(at_65, followed)), "everybody has seen 65 %")
            open_gate(bench)
        told = [(s.status, s.event.progress) for s in bench.history(task_id)]
        for client in clients:
            seen = [(task.status.value, task.progress) for task in client.result()[1:]]
            assert seen == told, f"{client.get_name()}: after what was known at first"
        for name, got in followed.items():
            seen_at_65 = at_65(name)[0]
            assert (seen_at_65["status"], seen_at_65["message"]) == ("running", "任务状态: running")
            last = got[-1][1]
            assert (last["status"], last["progress"], last["result"]) == ("completed", 1.0, RESULT)
            assert last["message"] == "任务状态: completed"
        for stream_of in ("by_sse", "by_websocket"):
            ids = [event_id for event_id, _ in followed[stream_of][1:]]  # the first one is the request alone
            assert ids == [f"{s.partition}:{s.offset}" for s in bench.history(task_id)]
        versions = [int(version) for version, _ in followed["by_poll"]]
        assert versions == sorted(set(versions))

    asyncio.run(follow())
    progress = [s.event.progress for s in bench.history(task_id) if s.event.progress is not None]
    assert progress == sorted(progress)
    bench.finish()


@pytest.mark.slow
def test_streams_go_on_at_another_replica_when_their_service_and_the_worker_are_killed(bench: Bench) -> None:
    first, url = a_service(bench)
    _, other_url = a_service(bench)
    worker = held_worker(bench)
    receipts = [bench.client.submit("long_inference", {"prompt": "x"}, priority=1 + 3 * n) for n in range(3)]
    followed = receipts[0].task_id

    async def read(path: str, got: list[Event], enough: Callable[[], bool]) -> None:
        async with stream(f"{url}{path}") as events:
            try:
                async for event in events:
                    got.append(event)
                    if enough():
                        first.kill()
            except (httpx.RemoteProtocolError, httpx.ReadError):
                pass  # it was killed

    async def resume(path: str, got: list[Event], enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(120), stream(f"{other_url}{path}", got[-1][0]) as events:
            async for event in events:
                got.append(event)
                if enough():
                    return

    async def follow() -> tuple[list[Event], list[Event]]:
        one: list[Event] = []
        many: list[Event] = []
        path = f"/tasks/{followed}/events"
        begin = ",".join(f"{partition}:-1" for partition in range(4))

        def half() -> bool:
            return float(one[-1][1].get("progress", 0)) >= 0.4

        async with asyncio.TaskGroup() as group:
            group.create_task(read(path, one, half), name="one")
            group.create_task(read(f"/events?last_event_id={begin}", many, lambda: False), name="many")
        os.kill(worker.children()[0], signal.SIGKILL)
        open_gate(bench)

        def all_ended() -> bool:
            return [document["status"] for _, document in many].count("completed") == len(receipts)

        async with asyncio.TaskGroup() as group:
            group.create_task(resume(path, one, lambda: False), name="one")
            group.create_task(resume("/events", many, all_ended), name="many")
        return one, many

    one, many = asyncio.run(follow())
    assert one[-1][1]["result"] == RESULT
    assert one[-1][1]["attempt"] > 1, "it ran again"
    history = [f"{s.partition}:{s.offset}" for s in bench.history(followed)]
    ids = [event_id for event_id, _ in one]
    assert ids[-len(history) :] == history[-len(ids) :]
    assert len(ids) == len(set(ids))

    def what(document: dict[str, Any]) -> tuple[str, str, str]:
        return document["task_id"], document["status"], document["updated_at"]

    told = {what(json.loads(s.value)) for events in bench.histories().values() for s in events}
    assert {what(document) for _, document in many} == told
    assert len(many) == len(told)
    bench.finish()


@pytest.mark.slow
def test_the_clients_events_go_on_over_either_when_service_and_worker_are_killed(bench: Bench) -> None:
    """The same address answers again, from an empty store: nothing is missed, nothing comes twice."""
    service, url = a_service(bench)
    worker = held_worker(bench)
    task_id = bench.client.submit("long_inference", {"prompt": "x"}).task_id

    async def read(scheme: str, got: list[TaskResponse]) -> None:
        async with asyncio.timeout(150), AsyncClient(url=over(scheme, url)) as client:
            async for task in client.events(task_id):
                got.append(task)

    async def follow() -> list[list[TaskResponse]]:
        both: list[list[TaskResponse]] = [[], []]
        async with asyncio.TaskGroup() as group:
            for scheme, got in zip(("http", "ws"), both, strict=True):
                group.create_task(read(scheme, got), name=scheme)
            half = lambda: all(got and (got[-1].progress or 0) >= 0.3 for got in both)  # noqa: E731
            await asyncio.to_thread(until, half, "both have followed it for a while")
            service.kill()
            os.kill(worker.children()[0], signal.SIGKILL)
            open_gate(bench)
            await asyncio.to_thread(a_service, bench, int(url.rsplit(":", 1)[1]))
        return both

    for got in asyncio.run(follow()):
        assert (got[-1].status.value, got[-1].result, (got[-1].attempt or 0) > 1) == ("completed", RESULT, True)
        told = [(s.event.status, s.event.updated_at) for s in bench.history(task_id)]
        seen = [(task.status, task.updated_at) for task in got]
        assert seen[-len(told) :] == told[-len(seen) :]
        assert len(seen) == len(set(seen))
    bench.finish()


def test_readers_that_misbehave_are_answered_or_given_up_and_the_others_have_everything(bench: Bench) -> None:
    """Ids from the future, of elsewhere, of nothing; frames of a wrong shape and size; one that never reads a byte."""
    _, url = a_service(bench)
    host, port = url.removeprefix("http://").split(":")
    bench.supervised(app=APP, LONG_INFERENCE_SECONDS="0.1")
    first = bench.client.submit("long_inference", {"prompt": "x"})
    place = bench.end(first.task_id)
    others = ",".join(str(number) for number in range(4) if number != place.partition)
    no_ids = {
        f"{place.partition}:999999": "ends before",
        f"{others[0]}:0": f"it is of partition {others[0]}",
        "17:0": "it is of partition 17",
        "yesterday": "it must be",
        "0:0,1:0,2:0,3:0": "it must be",
    }
    for last_id, why in no_ids.items():
        answer = httpx.get(f"{url}/tasks/{first.task_id}/events", headers={"Last-Event-ID": last_id}, timeout=WAIT_S)
        assert (answer.status_code, answer.json()["type"][-13:]) == (400, "last-event-id")
        assert why in answer.json()["detail"]
    answer = httpx.get(f"{url}/events", headers={"Last-Event-ID": "0:0,1:0,2:0,3:999999"}, timeout=WAIT_S)
    assert "the id may be of another topic" in answer.json()["detail"]

    async def follow() -> list[Event]:
        begin = ",".join(f"{partition}:-1" for partition in range(4))
        got: list[Event] = []
        async with connect(f"{over('ws', url)}/ws") as talk, connect(f"{over('ws', url)}/ws") as too_big:
            for frame, said in (("{", "not-json"), ("[]", "invalid-request"), (b"\x00", "not-text")):
                await talk.send(frame)
                assert json.loads(await talk.recv())["problem"]["type"].endswith(said)
            await talk.send(json.dumps({"action": "subscribe", "id": "a", "task_id": first.task_id}))
            assert json.loads(await talk.recv())["type"] == "subscribed", "it lives"
            await too_big.send("x" * 5_000)
            await too_big.wait_closed()
            assert too_big.close_code == 1009
            tasks = await asyncio.to_thread(
                bench.client.submit_many, [{"task_type": "long_inference", "parameters": {"prompt": "x"}}] * 150
            )
            ids = {one.task_id for one in tasks}
            async with asyncio.timeout(150), stream(f"{url}/events?last_event_id={begin}") as events:
                async for event in events:
                    got.append(event)
                    if event[1]["status"] == "completed":
                        ids.discard(event[1]["task_id"])
                    if not ids:
                        return got
        raise AssertionError("the stream has ended")

    with socket.socket() as never_reads:
        never_reads.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        never_reads.connect((host, int(port)))
        never_reads.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = asyncio.run(follow())
        assert httpx.get(f"{url}/health", timeout=WAIT_S).status_code == 200
    told = {(s.event.task_id, s.partition, s.offset) for events in bench.histories().values() for s in events}
    assert len(got) == len(told), "the one who reads has every event, once"
    bench.finish()


def test_a_service_that_is_asked_to_leave_ends_its_streams_and_waits_for_nobody(bench: Bench) -> None:
    service, url = a_service(bench)
    task_id = bench.client.submit("long_inference", {"prompt": "x"}).task_id
    host, port = url.removeprefix("http://").split(":")

    async def follow() -> None:
        async with connect(f"ws://{host}:{port}/ws") as talk, stream(f"{url}/events") as events:
            await talk.send(json.dumps({"action": "subscribe", "id": "a", "task_id": task_id}))
            with socket.create_connection((host, int(port))) as never_reads:
                never_reads.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await until_followed(url, 4)
                service.send(signal.SIGTERM)
                assert [event async for event in events] == []
                said = [json.loads(text) async for text in talk]
                assert said[-1] == {"type": "end", "id": "a", "reason": "stopping"}
                assert talk.close_code == 1001
                assert await asyncio.to_thread(service.wait, WAIT_S) == 0

    asyncio.run(follow())
    bench.supervised(app=APP, LONG_INFERENCE_SECONDS="0.2")
    bench.end(task_id)
    bench.finish()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "examples/live/follow.py"],
        pytest.param(["node", "examples/live/follow.mjs"], marks=pytest.mark.slow),
    ],
    ids=["py", "js"],
)
def test_the_examples_follow_the_task_to_its_result(bench: Bench, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    _, url = a_service(bench)
    held_worker(bench)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")}
    log = bench.directory / "follower"
    with log.open("wb") as out:
        follower = subprocess.Popen([*command, url], cwd=ROOT, env=environment, stdout=out, stderr=out)
    with follower:
        try:
            until(lambda: "0.65" in log.read_text(), log.read_text)
            open_gate(bench)
            assert follower.wait(WAIT_S) == 0, log.read_text()
        finally:
            follower.kill()
    lines = log.read_text().splitlines()
    assert json.loads(lines[-1]) == RESULT
    if "follow.py" in command[1]:
        assert any(line == "ws completed 1.0" for line in lines)
    bench.finish()
