"""The client's events() over a query service: a real client, a real server, and a service that goes away meanwhile.

Each test of a stream runs over SSE and over the WebSocket: which of them it is says the url's scheme alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve

from streamtask.client import AsyncClient, Client
from streamtask.client import service as links
from streamtask.config import load_settings
from streamtask.domain.identity import new_task_id
from streamtask.domain.model import TaskResponse
from streamtask.errors import ConfigError, RequestRefused, StreamtaskError, UnknownTask, Unreachable
from streamtask.query_service.server import Place, serving
from tests.unit.live_bench import WAIT_S, live_bench
from tests.unit.test_live import HISTORY, a_request, said
from tests.unit.view_bench import Log, bench, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["http", "ws"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by(scheme: str, url: str) -> str:
    """The url of the service, for this kind of stream."""
    return scheme + url.removeprefix("http")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMTASK_BOOTSTRAP_SERVERS", raising=False)


async def test_every_event_comes_once_from_where_the_task_stands_to_its_end(scheme: str) -> None:
    async with live_bench() as live, AsyncClient(url=by(scheme, live.url)) as client:
        task_id, origin = a_request(live.log)
        await live.view.until_read()
        events = client.events(task_id)
        assert (await anext(events)).status == "created"
        said(live.log, task_id, origin, *HISTORY)
        rest = [task async for task in events]
        assert [task.status.value for task in rest] == ["created", "running", "running", "running", "completed"]
        assert [task.progress for task in rest] == [None, None, 0.25, 0.5, 1.0]


async def test_who_stops_listening_lets_go_of_the_service(scheme: str) -> None:
    async with live_bench() as live, AsyncClient(url=by(scheme, live.url)) as client:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        async for task in client.events(task_id):
            assert task.status == "created"
            break
        await until(lambda: live.view.service.feed.count == 0)


async def test_a_service_that_goes_away_is_resumed_at_the_next_one_without_gap_or_repeat(scheme: str) -> None:
    log = Log()
    task_id, origin = a_request(log)
    said(log, task_id, origin, "created")
    async with live_bench(log) as live:
        url = live.url
        client = AsyncClient(url=by(scheme, url))
        events = client.events(task_id)
        got = [await anext(events)]
        said(log, task_id, origin, "running")
        got.append(await anext(events))
    said(log, task_id, origin, "running 0.25", "running 0.5")
    log.go_stale()  # another replica reads from the start
    host, port = url.removeprefix("http://").split(":")
    async with bench(log) as other, client:
        await other.until_ready()
        async with serving(other.app, Place(host, int(port))):
            got += [await anext(events), await anext(events)]
            said(log, task_id, origin, "completed")
            got += [task async for task in events]
            other.service.stop()
    assert [task.progress for task in got] == [None, None, 0.25, 0.5, 1.0]


async def test_a_replica_that_has_not_read_the_request_yet_is_waited_for(scheme: str) -> None:
    """A receipt knows the place of its request: that is the token."""
    async with live_bench() as live, links.ServiceLink(load_settings(url=by(scheme, live.url))) as service:
        live.log.hold()
        task_id, origin = a_request(live.log)
        events = service.events(task_id, token=str(origin))
        async with asyncio.TaskGroup() as group:
            first = group.create_task(anext(events), name="first")
            assert isinstance(await refusal_of(service.events(task_id, token=None)), UnknownTask)
            live.log.release()
        assert first.result().status == "created"
        await events.aclose()
        refused = await refusal_of(service.events(task_id, token="nowhere"))
        assert isinstance(refused, RequestRefused)


async def refusal_of(events: AsyncIterator[TaskResponse]) -> StreamtaskError:
    with pytest.raises(StreamtaskError) as refusal:
        await anext(events)
    return refusal.value


async def test_problems_are_our_errors(scheme: str) -> None:
    async with live_bench(api_key="k") as live:
        async with AsyncClient(settings=load_settings(url=by(scheme, live.url), api_key="k")) as client:
            assert isinstance(await refusal_of(client.events(new_task_id())), UnknownTask)
        async with AsyncClient(url=by(scheme, live.url)) as stranger:
            error = await refusal_of(stranger.events(new_task_id()))
            assert isinstance(error, ConfigError)
            assert "STREAMTASK_API_KEY" in str(error)
    async with AsyncClient(url=f"{scheme}://127.0.0.1:1") as nowhere:
        error = await refusal_of(nowhere.events(new_task_id()))
        assert isinstance(error, Unreachable)
        assert "streamtask serve" in str(error)


async def test_a_service_that_stays_away_is_given_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "OUTAGE_S", 0.05)
    monkeypatch.setattr(links, "AGAIN_S", 0.03)
    async with live_bench() as live:
        task_id, _ = a_request(live.log)
        await live.view.until_read()
        client = AsyncClient(url=by(scheme, live.url))
        events = client.events(task_id)
        await anext(events)
    async with client:
        with pytest.raises(Unreachable):
            await anext(events)


async def test_a_stream_that_falls_silent_is_opened_again(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that nobody closed and nobody writes to any more: signs of life would have come."""
    monkeypatch.setattr(links, "SILENCE_S", 0.2)
    monkeypatch.setattr(links, "AGAIN_S", 0.03)
    async with live_bench() as live, AsyncClient(url=by(scheme, live.url)) as client:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY[:-1])
        await live.view.until_read()
        opened: list[int] = []
        listen = live.view.service.feed.listen

        def counted(*args: Any, **kwargs: Any) -> Any:
            opened.append(1)
            return listen(*args, **kwargs)

        monkeypatch.setattr(live.view.service.feed, "listen", counted)
        events = client.events(task_id)
        assert (await anext(events)).progress == 0.5
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:

            async def next_event() -> TaskResponse:
                return await anext(events)

            last = group.create_task(next_event(), name="last")
            await until(lambda: len(opened) >= 3)
            said(live.log, task_id, origin, HISTORY[-1])
        assert last.result().status == "completed"
        assert [task async for task in events] == []


async def test_where_too_many_listen_it_is_no_wrong_key(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtask.projection.feed.LISTENERS_MAX", 0)
    async with live_bench() as live, AsyncClient(url=by(scheme, live.url)) as client:
        task_id, _ = a_request(live.log)
        await live.view.until_read()
        monkeypatch.setattr(links, "OUTAGE_S", 0.0)
        assert isinstance(await refusal_of(client.events(task_id)), Unreachable)


async def test_plain_code_follows_a_task_too(scheme: str) -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY[:-1])
        await live.view.until_read()

        def follow() -> list[str]:
            with Client(url=by(scheme, live.url)) as client:
                return [task.status.value for task in client.events(task_id)]

        async with asyncio.TaskGroup() as group:
            following = group.create_task(asyncio.to_thread(follow), name="plain")
            await until(lambda: live.view.service.feed.listening)
            said(live.log, task_id, origin, HISTORY[-1])
        assert following.result() == ["running", "completed"]


async def test_a_number_beyond_64_bits_keeps_its_digits(scheme: str) -> None:
    async with live_bench() as live, AsyncClient(url=by(scheme, live.url)) as client:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY[:-1])
        live.log.status(task_id, "completed", origin, attempt=1, result=b"[123456789012345678901234567890]")
        await live.view.until_read()
        (end,) = [task async for task in client.events(task_id)]
        assert end.result == [123456789012345678901234567890]


# --- What only a WebSocket can meet -----------------------------------------------------------------------------------


async def test_only_the_scheme_tells_and_all_else_goes_over_http() -> None:
    async with live_bench() as live, AsyncClient(url=by("WS", live.url)) as client:
        receipt = await client.submit("census")
        assert (await receipt.status()).status == "created"
        async for _ in receipt.events():
            break
        assert live.view.service.feed.count <= 2, "the socket and its subscription"


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(404, StreamtaskError, "use http://127.0.0.1"), (502, Unreachable, "HTTP 502")],
)
async def test_a_place_that_opens_no_websocket_is_named(status: int, kind: type[StreamtaskError], said: str) -> None:
    def refuse(socket: ServerConnection, request: Any) -> Any:
        return socket.respond(status, "a proxy")

    async with (
        serve(babble, "127.0.0.1", 0, process_request=refuse) as server,
        AsyncClient(url=f"ws://127.0.0.1:{port_of(server)}") as client,
    ):
        error = await refusal_of(client.events(new_task_id()))
    assert (type(error), said in str(error)) == (kind, True), error


async def test_frames_that_are_none_are_no_service_of_ours() -> None:
    async with serve(babble, "127.0.0.1", 0) as server, AsyncClient(url=f"ws://127.0.0.1:{port_of(server)}") as client:
        assert "does not look like a streamtask query service" in str(await refusal_of(client.events(new_task_id())))


async def babble(socket: ServerConnection) -> None:
    await socket.recv()
    await socket.send("[]")


def port_of(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    settings = load_settings(url="ws://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"pip install 'streamtask-kafka\[server\]'"):
        links.ServiceLink(settings)
    links.ServiceLink(load_settings(url="http://127.0.0.1:1"))
