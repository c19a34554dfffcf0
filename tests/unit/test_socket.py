"""The WebSocket over real sockets: subscriptions by task and by filter, frames that are none, and how it ends."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamtask.domain.identity import new_task_id
from streamtask.projection import feed as feeds
from streamtask.query_service import live as lives
from streamtask.query_service import socket as sockets
from tests.unit.live_bench import Live, Talk, live_bench
from tests.unit.test_live import HISTORY, a_request, fill, said
from tests.unit.view_bench import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def refused(frame: dict[str, Any], name: str, status: int, subscription: str | None = None) -> dict[str, str]:
    """The wrong fields that an error frame names."""
    assert frame["type"] == "error", frame
    assert frame.get("id") == subscription
    problem = frame["problem"]
    assert (problem["type"], problem["status"]) == (f"urn:streamtask:problem:{name}", status)
    return {error["field"]: error["message"] for error in problem.get("errors", ())}


# --- Subscriptions ----------------------------------------------------------------------------------------------------


async def test_a_task_is_followed_to_its_end() -> None:
    async with live_bench() as live, live.socket() as talk:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        assert await talk.ask(action="subscribe", id="a", task_id=task_id) == {
            "type": "subscribed",
            "id": "a",
            "last_event_id": None,
        }
        first = await talk.next()
        assert (first["type"], first["id"], first["last_event_id"]) == ("event", "a", "0:0")
        said(live.log, task_id, origin, *HISTORY[1:])
        rest = [await talk.next() for _ in HISTORY[1:]]
        assert [frame["last_event_id"] for frame in rest] == ["0:1", "0:2", "0:3", "0:4"]
        assert [frame["task"]["status"] for frame in rest] == ["running", "running", "running", "completed"]
        assert await talk.next() == {"type": "end", "id": "a", "reason": "ended"}
        assert await talk.ask(action="ping") == {"type": "pong"}


async def test_many_subscriptions_share_a_socket_and_each_is_resumed_by_itself() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created", "running")
        await live.view.until_read()
        async with live.socket() as talk:
            await talk.ask(action="subscribe", id="one", task_id=task_id, last_event_id="0:0")
            assert (await talk.next())["task"]["status"] == "running"
            opened = await talk.ask(action="subscribe", id="failed", status="failed")
            assert opened["last_event_id"] == "0:1,1:-1"
            await talk.ask(action="subscribe", id="all", task_type="census", last_event_id="0:1,1:-1")
            said(live.log, task_id, origin, "failed")
            frames = [await talk.next() for _ in range(4)]
            events = {frame["id"]: frame["last_event_id"] for frame in frames if frame["type"] == "event"}
            assert events == {"one": "0:2", "failed": "0:2,1:-1", "all": "0:2,1:-1"}
            assert [frame["id"] for frame in frames if frame["type"] == "end"] == ["one"]


async def test_what_is_unsubscribed_says_nothing_more_and_its_name_is_free_again() -> None:
    async with live_bench() as live, live.socket() as talk:
        await talk.ask(action="subscribe", id="a")
        assert await talk.ask(action="unsubscribe", id="a") == {"type": "end", "id": "a", "reason": "unsubscribed"}
        assert not live.view.service.feed.listening
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        assert (await talk.ask(action="subscribe", id="a"))["last_event_id"] == "0:0,1:-1"
        assert "unknown" in refused(await talk.ask(action="unsubscribe", id="b"), "invalid-request", 422, "b")["id"]


async def test_a_task_that_has_ended_and_was_seen_to_end_only_ends() -> None:
    async with live_bench() as live, live.socket() as talk:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY)
        await live.view.until_read()
        frame = await talk.ask(action="subscribe", id="a", task_id=task_id, last_event_id="0:4")
        assert frame == {"type": "end", "id": "a", "reason": "ended"}


async def test_a_stream_that_ends_while_the_next_frame_is_answered_ends_alone() -> None:
    """Its end minded the patience of a frame that was no longer waited for, and the whole conversation broke."""
    async with live_bench() as live, live.socket() as talk:
        for number in range(20):
            await talk.say(action="subscribe", id=str(number), task_id=new_task_id())
            await talk.say(action="ping")
        frames = [await talk.next() for _ in range(40)]
        assert sum(frame["type"] == "pong" for frame in frames) == 20
        assert {frame["id"] for frame in frames if frame["type"] == "error"} == {str(n) for n in range(20)}


async def test_a_subscription_waits_for_a_view_as_fresh_as_its_token() -> None:
    async with live_bench() as live, live.socket() as talk:
        live.log.hold()
        task_id, origin = a_request(live.log)
        await talk.say(action="subscribe", id="a", task_id=task_id, consistency_token=str(origin))
        refused(await talk.ask(action="subscribe", id="b", task_id=task_id), "unknown-task", 404, "b")
        live.log.release()
        assert (await talk.next())["type"] == "subscribed"
        assert (await talk.next())["task"]["status"] == "created"
        wrong = await talk.ask(action="subscribe", id="c", task_id=task_id, consistency_token="high-0")
        assert "Consistency-Token" in refused(wrong, "invalid-request", 422, "c")


async def test_silence_is_broken_by_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "HEARTBEAT_S", 0.02)
    async with live_bench() as live, live.socket() as talk:
        await talk.ask(action="subscribe", id="a", status="failed")
        assert await talk.next() == {"type": "alive", "id": "a", "last_event_id": "0:-1,1:-1"}


# --- Frames that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "name", "status"),
    [
        ("{", "not-json", 400),
        ("", "not-json", 400),
        ("NaN", "not-json", 400),
        (b"{}", "not-text", 400),
        (b"\xff", "not-text", 400),
        ("[]", "invalid-request", 422),
        ('"ping"', "invalid-request", 422),
        ("{}", "invalid-request", 422),
    ],
)
async def test_a_frame_of_the_wrong_shape_is_answered_and_the_socket_lives(
    frame: str | bytes, name: str, status: int
) -> None:
    async with live_bench() as live, live.socket() as talk:
        await talk.socket.send(frame)
        refused(await talk.next(), name, status)
        assert await talk.ask(action="ping") == {"type": "pong"}


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ({"action": "subscibe", "id": "a"}, "action"),
        ({"action": "subscribe", "id": "a", "taskid": "x"}, "taskid"),
        ({"action": "subscribe", "id": "a", "status": "done"}, "status"),
        ({"action": "subscribe", "id": "a", "task_id": "42"}, "task_id"),
        ({"action": "subscribe", "id": "a", "task_id": new_task_id(), "status": "failed"}, "status"),
        ({"action": "subscribe", "id": "a", "task_type": 5}, "task_type"),
        ({"action": "subscribe", "id": "a", "last_event_id": {}}, "last_event_id"),
    ],
)
async def test_a_wrong_field_is_named(frame: dict[str, Any], field: str) -> None:
    async with live_bench() as live, live.socket() as talk:
        wrong = refused(await talk.ask(**frame), "invalid-request", 422, "a")
        assert field in wrong
        if field == "taskid":
            assert "task_id" in wrong[field]


async def test_a_subscription_needs_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SUBSCRIPTIONS_MAX", 1)
    async with live_bench() as live, live.socket() as talk:
        assert "id" in refused(await talk.ask(action="subscribe"), "invalid-request", 422)
        assert "id" in refused(await talk.ask(action="subscribe", id=5), "invalid-request", 422)
        assert "id" in refused(await talk.ask(action="subscribe", id="x" * 65), "invalid-request", 422, "x" * 64)
        await talk.ask(action="subscribe", id="a")
        assert refused(await talk.ask(action="subscribe", id="a"), "invalid-request", 422, "a") == {"id": "in use"}
        many = refused(await talk.ask(action="subscribe", id="b"), "invalid-request", 422, "b")
        assert many == {"id": "too many subscriptions"}


async def test_a_subscription_is_refused_as_a_stream_is() -> None:
    async with live_bench() as live, live.socket() as talk:
        refused(await talk.ask(action="subscribe", id="a", task_id=new_task_id()), "unknown-task", 404, "a")
        refused(await talk.ask(action="subscribe", id="a", last_event_id="0:7,1:0"), "last-event-id", 400, "a")
        refused(await talk.ask(action="subscribe", id="a", last_event_id="x"), "last-event-id", 400, "a")
        assert live.view.service.feed.count == 1, "the socket itself"


@pytest.mark.parametrize("size", [sockets.FRAME_BYTES_MAX + 1, 5_000_000])
async def test_a_frame_that_is_too_large_ends_the_socket(size: int) -> None:
    async with live_bench() as live, live.socket() as talk:
        await talk.socket.send("x" * size)
        assert await talk.closed() == 1009


# --- Who may come in, and the end -------------------------------------------------------------------------------------


async def status_of_refusal(live: Live, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        async with live.socket(**options):
            pass
    return refusal.value.response.status_code


async def test_a_key_is_needed_as_a_header_or_as_a_protocol_of_a_browser() -> None:
    async with live_bench(api_key="a key/é") as live:
        assert await status_of_refusal(live) == 403
        assert await status_of_refusal(live, additional_headers={"X-API-Key": "another"}) == 403
        assert await status_of_refusal(live, subprotocols=["streamtask", "key.!"]) == 403
        assert await status_of_refusal(live, subprotocols=["streamtask"]) == 403
        key = base64.urlsafe_b64encode("a key/é".encode()).decode().rstrip("=")
        async with live.socket(subprotocols=["streamtask", f"key.{key}"]) as talk:
            assert talk.socket.subprotocol == "streamtask"
            assert await talk.ask(action="ping") == {"type": "pong"}
    bearer = {"Authorization": "Bearer plain"}
    async with live_bench(api_key="plain") as live, live.socket(additional_headers=bearer) as talk:
        assert await talk.ask(action="ping") == {"type": "pong"}


async def test_a_page_of_another_site_cannot_listen_through_its_visitors_browser() -> None:
    async with live_bench() as live:
        assert await status_of_refusal(live, origin="http://evil.test") == 403
        async with live.socket(origin=live.url) as talk:
            assert await talk.ask(action="ping") == {"type": "pong"}


async def test_there_are_only_so_many_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "LISTENERS_MAX", 2)
    async with live_bench() as live, live.socket() as talk:
        await talk.ask(action="subscribe", id="a")
        refused(await talk.ask(action="subscribe", id="b"), "too-many-waiters", 503, "b")
        assert await status_of_refusal(live) == 403


async def test_a_socket_that_leaves_is_forgotten_with_its_subscriptions() -> None:
    async with live_bench() as live:
        async with live.socket() as talk:
            await talk.ask(action="subscribe", id="a")
            assert live.view.service.feed.count == 2
        await until(lambda: live.view.service.feed.count == 0)


async def test_who_subscribes_to_nothing_and_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "IDLE_S", 0.05)
    async with live_bench() as live, live.socket() as talk:
        await talk.ask(action="subscribe", id="a")
        await talk.ask(action="ping")
        await talk.ask(action="unsubscribe", id="a")
        assert await talk.closed() == 1000


async def test_a_socket_that_never_reads_is_closed_and_everybody_else_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SEND_S", 0.3)
    async with live_bench() as live:
        feed = live.view.service.feed
        async with live.socket(max_queue=1, ping_interval=None) as talk:
            await talk.say(action="subscribe", id="a")
            await until(lambda: feed.listening)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(fill(live, stop), name="fill")
                try:
                    await until(lambda: not feed.listening)
                    assert (await live.get("/health")).status_code == 200
                finally:
                    stop.set()
            await until(lambda: (feed.count, feed.held_bytes) == (0, 0))
            talk.socket.transport.abort()


async def test_sockets_are_closed_when_the_service_ends() -> None:
    async with live_bench() as live, live.socket() as talk:
        await talk.ask(action="subscribe", id="a")
        live.view.service.stop()
        assert await talk.next() == {"type": "end", "id": "a", "reason": "stopping"}
        assert await talk.closed() == 1001
        with pytest.raises(ConnectionClosed):
            await Talk(talk.socket).say(action="ping")
