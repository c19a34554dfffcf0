"""DNS rebinding: a page whose own name was made to mean this machine neither reads, writes nor listens."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from streamtask.errors import ConfigError
from streamtask.query_service.gate import _refusal_of_origin
from streamtask.query_service.hosts import Hosts
from tests.unit.live_bench import live_bench
from tests.unit.view_bench import bench

pytestmark = pytest.mark.anyio
A_TASK = {"task_type": "census"}
EVIL = {"Host": "evil.example:8080", "Origin": "http://evil.example:8080"}
PATHS = (
    "/tasks",
    "/tasks/0193a5b0-0000-7000-8000-000000000001",
    "/events",
    "/health",
    "/docs",
    "/openapi.json",
    "/stats",
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_page_whose_name_was_rebound_to_this_service_neither_reads_nor_writes() -> None:
    async with bench() as view:
        await view.until_ready()
        task = (await view.http.post("/tasks", json=A_TASK)).headers["location"]
        answers = [await view.http.post("/tasks", json=A_TASK, headers=EVIL)]
        answers += [await view.http.get(path, headers={"Host": EVIL["Host"]}) for path in (task, *PATHS)]
        for answer in answers:
            assert (answer.status_code, answer.headers["content-type"]) == (421, "application/problem+json"), answer.url
            assert answer.json()["type"] == "urn:streamtask:problem:unknown-host"
            assert "--allowed-host" in answer.json()["detail"]


async def test_no_websocket_and_no_stream_opens_under_a_name_that_is_not_ours() -> None:
    async with live_bench() as live:
        refused = await live.get("/events", Host="evil.example")
        assert refused.status_code == 421
        with pytest.raises(InvalidStatus) as refusal:
            await connect_as(live.url, "evil.example")
        assert refusal.value.response.status_code == 403
        socket = await connect_as(live.url, "localhost")
        await socket.close()


async def connect_as(url: str, host: str):  # type: ignore[no-untyped-def]
    address, port = url.removeprefix("http://").split(":")
    return await connect(f"ws://{host}:{port}/ws", host=address, port=int(port), origin=Origin(f"http://{host}:{port}"))


@pytest.mark.parametrize(
    "origin", ["http://[", "http://", "evil.example", "http://a/b", "http://a:port", "http://a:99999"]
)
async def test_an_origin_that_cannot_be_read_is_refused_as_such_and_not_as_our_fault(origin: str) -> None:
    async with bench() as view:
        await view.until_ready()
        answer = await view.http.post("/tasks", json=A_TASK, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert answer.json()["type"] == "urn:streamtask:problem:malformed-origin"


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:80", "app.localhost:1", "127.0.0.1:8080", "127.8.9.1", "[::1]:8080", "10.1.2.3"),
        *("[fe80::1]", "tasks.example.com", "Tasks.Example.com.:443", "a.b.example.org", "service"),
    ],
)
async def test_loopback_addresses_and_allowed_names_are_ours(host: str) -> None:
    hosts = Hosts("service", ["tasks.example.com", "*.example.org"])
    assert hosts.allows(host.encode())
    assert hosts.allows(host.encode())


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example", "example.org"),
        *("xexample.org", "evil.example@127.0.0.1", "127.0.0.1:80:80", "[::1", "127.0.0.1/", "tasks.example.com evil"),
        "2130706433",
    ],
)
async def test_every_other_name_is_not(host: str) -> None:
    assert not Hosts("service", ["tasks.example.com", "*.example.org"]).allows(host.encode())


async def test_any_name_is_ours_where_the_operator_says_so_and_what_is_no_name_is_refused_at_the_start() -> None:
    assert Hosts(allowed=["*"]).allows(b"whatever.example")
    for wrong in ("http://a", "a:80", "a b", "a.*", ""):
        with pytest.raises(ConfigError, match="is not a host name"):
            Hosts(allowed=[wrong])


def test_a_foreign_origin_stays_foreign_whatever_its_host() -> None:
    def status(headers: Mapping[str, str]) -> int | None:
        refusal = _refusal_of_origin([(name.encode(), text.encode()) for name, text in headers.items()])
        return None if refusal is None else refusal.status

    assert status({"host": "localhost:8080"}) is None
    assert status({"host": "Localhost:8080", "origin": "http://localhost:8080"}) is None
    assert status({"host": "localhost:8080", "origin": "http://localhost:3000"}) == 403
    assert status({"host": "localhost:8080", "origin": "null"}) == 403
    assert status({"host": "localhost:8080", "origin": "chrome-extension://abc"}) == 403
