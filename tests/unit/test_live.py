"""Streams over real sockets: what is said, what is resumed, who is too slow, and how a stream ends."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import orjson
import pytest

from streamtask.domain.identity import Origin, new_task_id
from streamtask.projection import feed as feeds
from streamtask.projection.feed import Feed, Heard
from streamtask.projection.watch import TooManyWaiters
from streamtask.query_service import live as lives
from streamtask.query_service import past as pasts
from streamtask.query_service import sse
from streamtask.query_service.past import Gap
from tests.unit.live_bench import Block, Live, live_bench
from tests.unit.test_http import A_TASK, fields, problem
from tests.unit.view_bench import Log, bench, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def a_request(log: Log, task_id: str | None = None, partition: int = 0, **request: object) -> tuple[str, Origin]:
    task_id = task_id or new_task_id()
    return task_id, log.request(1, partition, {**A_TASK, "task_id": task_id, **request})


def said(log: Log, task_id: str, origin: Origin, *statuses: str) -> None:
    """Status events: `running 0.5` is RUNNING with that progress."""
    for text in statuses:
        status, _, progress = text.partition(" ")
        log.status(
            task_id, status, origin, attempt=1, task_type="census", progress=float(progress) if progress else None
        )


def ids(blocks: Iterable[Block]) -> list[str | None]:
    return [block.id for block in blocks]


HISTORY = ("created", "running", "running 0.25", "running 0.5", "completed")
SHOWN = ["created", "running", "running 0.25", "running 0.5", "completed 1"]


# --- One task ---------------------------------------------------------------------------------------------------------


async def test_a_stream_says_where_the_task_stands_then_each_event_and_ends_with_the_task() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events") as reader:
            first = await reader.next()
            assert (first.said, first.id, first.event) == ("created", "0:0", "message")
            said(live.log, task_id, origin, *HISTORY[1:])
            rest = await reader.rest()
        assert [block.said for block in rest] == SHOWN[1:]
        assert ids(rest) == ["0:1", "0:2", "0:3", "0:4"]
        assert [block.data for block in rest] == [record.value for record in live.log._records["t.status", 0][1:]]
        await until(lambda: live.view.service.feed.count == 0)


async def test_a_stream_of_a_task_that_has_ended_says_its_end() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY)
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id.upper()}/events") as reader:
            assert [(block.said, block.id) for block in await reader.rest()] == [("completed 1", "0:4")]


@pytest.mark.parametrize("seen", range(4))
async def test_a_stream_goes_on_behind_any_event_without_gap_or_repeat(seen: int) -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        other, of_other = a_request(live.log)
        for status in HISTORY[:-1]:
            said(live.log, other, of_other, status)
            said(live.log, task_id, origin, status)
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events", f"0:{2 * seen + 1}") as reader:
            await until(lambda: live.view.service.feed.listening)
            said(live.log, task_id, origin, HISTORY[-1])
            rest = await reader.rest()
        assert [block.said for block in rest] == SHOWN[seen + 1 :]
        assert live.log.pasts == (0 if seen == 3 else 1), "who is up to date costs no reading"


async def test_behind_the_end_there_is_nothing_and_event_source_is_told_not_to_come_again() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY)
        await live.view.until_read()
        answer = await live.get(f"/tasks/{task_id}/events", **{"Last-Event-ID": "0:4"})
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await live.get(f"/tasks/{task_id}/events?last_event_id=0:4")).status_code == 204
        assert live.view.service.feed.count == 0


async def test_a_task_of_which_only_the_request_is_known_is_created_and_that_can_be_resumed_too() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        other, of_other = a_request(live.log)
        said(live.log, other, of_other, "created", "running")
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events") as reader:
            first = await reader.next()
            assert (first.said, first.id) == ("created", "0:1")
        async with live.stream(f"/tasks/{task_id}/events", first.id) as reader:
            await until(lambda: live.view.service.feed.listening)
            said(live.log, task_id, origin, "created", "running")
            assert [(await reader.next()).said, (await reader.next()).said] == ["created", "running"]
        said(live.log, task_id, origin, "completed")
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events", first.id) as reader:
            assert [block.said for block in await reader.rest()] == ["created", "running", "completed 1"]


async def test_the_first_record_of_an_empty_topic_can_be_resumed_from_before_it() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events") as reader:
            assert (await reader.next()).id == "0:-1"
        said(live.log, task_id, origin, *HISTORY)
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events", "0:-1") as reader:
            assert [block.said for block in await reader.rest()] == SHOWN


@pytest.mark.parametrize(
    ("last_id", "why"),
    [
        ("x", "it must be <partition>"),
        ("0", "it must be <partition>"),
        ("0:1:2", "it must be <partition>"),
        ("0:-2", "it must be <partition>"),
        ("0:١", "it must be <partition>"),
        ("0:0,1:0", "it must be <partition>"),
        ("0:99999999999999999999", "it must be <partition>"),
        ("1:0", "it is of partition 1; this task's events are in partition 0"),
        ("7:0", "it is of partition 7"),
        ("0:2", "task .* has no event at or behind it: its latest is 0:1"),
        ("0:3", "partition 0 ends before offset 3; the id may be of another topic"),
        ("0:999999999999999999", "partition 0 ends before offset 999999999999999999"),
    ],
)
async def test_an_id_from_nowhere_is_refused_with_the_reason(last_id: str, why: str) -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created", "running")
        other, of_other = a_request(live.log)
        said(live.log, other, of_other, "created")
        await live.view.until_read()
        answer = await live.get(f"/tasks/{task_id}/events", **{"Last-Event-ID": last_id.encode()})  # type: ignore[arg-type]
        detail = problem(answer, 400, "last-event-id")["detail"]
        assert re.search(why, detail), detail
        assert live.view.service.feed.count == 0


async def test_an_id_that_another_replica_gave_is_waited_for() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        live.log.hold()
        said(live.log, task_id, origin, "running")
        async with asyncio.TaskGroup() as group:
            async with asyncio.timeout(60):
                asked = group.create_task(live.get(f"/tasks/{task_id}/events", **{"Last-Event-ID": "0:1"}))
                await until(lambda: live.view.service.watchers.count == 1)
                live.log.release()
                await live.view.until_read()
                said(live.log, task_id, origin, "completed")
        assert b'"completed"' in asked.result().content
        assert asked.result().content.count(b"data:") == 1


async def test_the_second_history_of_an_id_is_shown_neither_live_nor_from_the_past() -> None:
    async with live_bench() as live:
        task_id, first = a_request(live.log)
        said(live.log, task_id, first, "created", "running")
        await live.view.until_read()
        _, second = a_request(live.log, task_id)
        async with live.stream(f"/tasks/{task_id}/events") as reader, live.stream("/events") as all_:
            assert (await reader.next()).said == "running"
            said(live.log, task_id, second, "created", "failed")
            said(live.log, task_id, first, "completed")
            assert ids(await reader.rest()) == ["0:4"]
            assert (await all_.next()).id == "0:4,1:-1"
        async with live.stream(f"/tasks/{task_id}/events", "0:0") as reader:
            assert ids(await reader.rest()) == ["0:1", "0:4"]


async def test_who_comes_back_too_late_gets_the_latest_in_place_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "PAST_OFFSETS_MAX", 2)
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY)
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events", "0:0") as reader:
            assert ids(await reader.rest()) == ["0:4"]
        answer = await live.get("/events", **{"Last-Event-ID": "0:0,1:-1"})
        problem(answer, 410, "resume-too-far")


async def test_what_is_no_task_and_who_has_no_key_is_refused_as_everywhere() -> None:
    async with live_bench(api_key="k") as live:
        problem(await live.get("/events"), 401, "unauthorized")
        key = {"X-API-Key": "k"}
        problem(await live.get(f"/tasks/{new_task_id()}/events", **key), 404, "unknown-task")
        assert "task_id" in fields(problem(await live.get("/tasks/42/events", **key), 422, "invalid-request"))
        wrong = fields(problem(await live.get("/events?task_typ=x", **key), 422, "invalid-request"))
        assert "task_type" in wrong["task_typ"]
        assert "status" in fields(problem(await live.get("/events?status=done", **key), 422, "invalid-request"))


async def test_before_the_view_has_caught_up_there_are_no_streams() -> None:
    log = Log()
    task_id, _ = a_request(log)
    log.hold()
    async with bench(log) as view:
        for path in (f"/tasks/{task_id}/events", "/events"):
            answer = await view.http.get(path)
            problem(answer, 503, "not-ready")
            assert int(answer.headers["retry-after"]) > 0


async def test_json_with_line_breaks_and_separators_arrives_as_it_is() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        value = (
            b'{\r\n "task_id": "%b",\n\n "status": "completed",\r "result": "\xe2\x80\xa8\xc2\x85",\n "origin": "%b"}'
            % (task_id.encode(), str(origin).encode())
        )
        live.log.append("t.status", 0, value, task_id.encode())
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events") as reader:
            (block,) = await reader.rest()
            assert block.document["result"] == "\u2028\x85"


# --- Many tasks -------------------------------------------------------------------------------------------------------


async def test_a_filtered_stream_gives_what_matches_from_now_on() -> None:
    async with live_bench() as live:
        before, of_before = a_request(live.log)
        said(live.log, before, of_before, *HISTORY)
        await live.view.until_read()
        task_id, origin = a_request(live.log, partition=1, tenant="acme")
        other, of_other = a_request(live.log)
        async with (
            live.stream("/events?status=completed") as ended,
            live.stream("/events?task_type=census&tenant=acme") as of_acme,
            live.stream("/events?task_type=other") as nothing,
        ):
            for reader in (ended, of_acme, nothing):
                opening = await reader.block()
                assert opening is not None
                assert (opening.id, opening.data) == ("0:4,1:-1", None)
            said(live.log, other, of_other, *HISTORY)
            said(live.log, task_id, origin, *HISTORY)
            assert {(await ended.next()).document["task_id"] for _ in range(2)} == {task_id, other}
            got = [await of_acme.next() for _ in HISTORY]
            assert [block.said for block in got] == SHOWN
            live.view.service.stop()
            assert await nothing.rest() == []


async def test_an_event_that_is_read_before_its_request_still_finds_its_tenant() -> None:
    async with live_bench() as live:
        task_id = new_task_id()
        async with live.stream("/events?tenant=acme") as reader:
            await until(lambda: live.view.service.feed.listening)
            said(live.log, task_id, Origin("normal", 0, 0), "created")
            await live.view.until_read()
            a_request(live.log, task_id, tenant="acme")
            assert (await reader.next()).document["task_id"] == task_id


@pytest.mark.parametrize(
    ("query", "count"),
    [("status=running", 12), ("task_type=census", 20), ("tenant=acme", 10), ("tenant=acme&status=completed", 2)],
)
async def test_a_filtered_stream_goes_on_behind_any_event_without_gap_or_repeat(query: str, count: int) -> None:
    async with live_bench() as live:
        tasks = [
            a_request(live.log, partition=number % 2, tenant="acme" if number < 2 else None) for number in range(4)
        ]
        for status in HISTORY:
            for task_id, origin in tasks:
                said(live.log, task_id, origin, status)
        await live.view.until_read()
        async with live.stream(f"/events?{query}", "0:-1,1:-1") as reader:
            whole = [await reader.next() for _ in range(count)]
        assert len({event(block.document) for block in whole}) == count
        later, of_later = a_request(live.log, tenant="acme")
        said(live.log, later, of_later, *HISTORY)
        await live.view.until_read()
        more = sum("running" in text for text in HISTORY) if "running" in query else 1 if "completed" in query else 5
        for cut in range(count):
            async with live.stream(f"/events?{query}", whole[cut].id) as reader:
                rest = [await reader.next() for _ in range(count - cut - 1 + more)]
            found = [event(block.document) for block in rest if block.document["task_id"] != later]
            assert sorted(found) == sorted(event(block.document) for block in whole[cut + 1 :])


@pytest.mark.parametrize(
    ("last_id", "why"),
    [
        ("x", "it must list <partition>"),
        ("0:1,0:1,1:1", "it must list <partition>"),
        ("0:1;1:1", "it must list <partition>"),
        ("1:0", "it does not name partition 0: it may be of a single task's stream"),
        ("0:0,1:0,2:0", "the topic has no partition 2"),
        ("0:0,1:5", "partition 1 ends before offset 5; the id may be of another topic"),
    ],
)
async def test_an_id_of_all_from_nowhere_is_refused_with_the_reason(last_id: str, why: str) -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created", "running")
        other, of_other = a_request(live.log, partition=1)
        said(live.log, other, of_other, "created", "running")
        await live.view.until_read()
        answer = await live.get("/events", **{"Last-Event-ID": last_id})
        assert why in problem(answer, 400, "last-event-id")["detail"]


async def test_a_partition_that_was_added_since_is_read_from_its_beginning() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log, partition=1)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        async with live.stream("/events", "0:-1") as reader:
            assert (await reader.next()).id == "0:-1,1:0"


async def test_events_that_the_topic_no_longer_holds_are_reported_as_a_gap() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, *HISTORY)
        await live.view.until_read()
        live.log.log_starts["t.status", 0] = 3
        async with live.stream("/events", "0:0,1:-1") as reader:
            gap = await reader.next()
            assert (gap.event, gap.document) == ("gap", Gap(0, 1, 3)._asdict())
            assert [(await reader.next()).said for _ in range(2)] == ["running 0.5", "completed 1"]
        async with live.stream(f"/tasks/{task_id}/events", "0:0") as reader:
            assert [block.said for block in await reader.rest()] == ["running 0.5", "completed 1"]


async def test_silence_is_broken_by_a_sign_of_life_whose_id_has_moved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "HEARTBEAT_S", 0.05)
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        async with live.stream("/events?status=failed") as reader, live.stream(f"/tasks/{task_id}/events") as of_task:
            await until(lambda: live.view.service.feed.count == 2)
            said(live.log, task_id, origin, "created", "running")
            while reader.last_id != "0:1,1:-1":
                block = await reader.block()
                assert block is not None
                assert block.data is None
            assert (await of_task.next()).said == "created"
            while (block := await of_task.block()) is not None and block.data is not None:
                pass
            assert block == Block(None, "message", None)


async def test_nothing_is_lost_or_repeated_while_readers_come_and_go_and_events_flow() -> None:
    """Readers break off at random and resume; a thread writes all the while."""
    chance = random.Random(7)
    stop = threading.Event()
    log = Log()
    task_id, origin = a_request(log)
    said(log, task_id, origin, "created")

    def write() -> None:
        number = 0
        while not stop.wait(0.0005):
            number += 1
            if number % 3 == 0:
                log.status(task_id, "running", origin, attempt=1, progress=number / 1e6)
            else:
                other = new_task_id()
                log.status(other, "created", Origin("low", number % 2, number), task_type="x")

    async def read(live: Live, path: str, got: list[str], part: str) -> None:
        last: str | None = None
        for _ in range(12):
            async with live.stream(path, last) as reader:
                for _ in range(chance.randrange(1, 25)):
                    block = await reader.next()
                    if block.document["status"] == part:
                        got.append(event(block.document))
                last = reader.last_id

    async with live_bench(log) as live:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            got: list[list[str]] = [[] for _ in range(4)]
            async with asyncio.TaskGroup() as group:
                group.create_task(read(live, f"/tasks/{task_id}/events", got[0], "running"), name="one")
                group.create_task(read(live, "/events?status=running", got[1], "running"), name="running")
                group.create_task(read(live, "/events?task_type=x", got[2], "created"), name="x")
                group.create_task(read(live, "/events", got[3], "created"), name="all")
        finally:
            stop.set()
            writer.join()
        written = [[orjson.loads(record.value or b"") for record in log._records["t.status", at]] for at in (0, 1)]
        running = [event(document) for document in written[0] if document["status"] == "running"]
        created = [[event(document) for document in part if document["status"] == "created"] for part in written]
        for found in got[:2]:
            assert_slice(found, running)
        for found in got[2:]:
            for part in created:
                assert_slice([one for one in found if one in set(part)], part)
            assert len(found) == len(set(found))


def event(document: dict[str, Any]) -> str:
    return f"{document['task_id']} {document['status']} {document.get('progress')}"


def assert_slice(found: list[str], order: list[str]) -> None:
    """`found` is a piece of `order` without a gap or a repeat."""
    start = order.index(found[0])
    assert found == order[start : start + len(found)]


async def test_the_schema_documents_the_streams() -> None:
    async with bench() as view:
        paths = (await view.http.get("/openapi.json")).json()["paths"]
        for path, more in (("/tasks/{task_id}/events", {"204", "404"}), ("/events", {"410"})):
            route = paths[path]["get"]
            assert set(route["responses"]) >= {"200", "400", "422", "503"} | more
            assert set(route["responses"]["200"]["content"]) == {"text/event-stream"}
            assert "id: 3:1042" in route["responses"]["200"]["content"]["text/event-stream"]["example"]
            assert "application/problem+json" in route["responses"]["400"]["content"]
            named = {(one["name"], one["in"]) for one in route["parameters"]}
            assert {("Last-Event-ID", "header"), ("last_event_id", "query")} <= named


# --- Too slow, too many, the end --------------------------------------------------------------------------------------


def an_event(number: int, task_id: str = "a", size: int = 10) -> Heard:
    return Heard(0, number, task_id, "running", "x", "normal-0@0", b"x" * size)


async def test_a_slow_reader_of_one_task_has_the_latest_and_one_of_many_is_cut() -> None:
    feed = Feed()
    with feed.listen("a") as one, feed.listen() as many:
        for number in range(feeds.EVENTS_MAX + 1):
            assert feed.may_hand()
            feed.deliver([an_event(number)], {0: number + 1})
        assert many.cut == "slow"
        assert many.take() == []
        assert one.cut is None
        held = one.take()
        assert len(held) <= feeds.EVENTS_OF_TASK_MAX
        assert held[-1].offset == feeds.EVENTS_MAX
        assert feed.held_bytes == sum(len(event.body) for event in held)
    assert (feed.held_bytes, feed.count, feed.listening) == (0, 0, False)


async def test_bytes_are_bounded_for_each_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HELD_BYTES_MAX", 10_000_000)
    feed = Feed()
    with feed.listen() as first, feed.listen() as second, feed.listen() as third, feed.listen("a") as one:
        for number in range(8):
            assert feed.may_hand()
            feed.deliver([an_event(number, size=900_000)], {0: number + 1})
            assert feed.held_bytes <= 10_000_000
            third.take()
        assert first.cut == second.cut == "slow"
        assert third.cut is None
        assert 0 < len(one.take()) <= 4
    assert feed.held_bytes == 0


async def test_a_body_that_ten_thousand_streams_hold_is_counted_once_and_cuts_nobody() -> None:
    """Bug: counted once a stream, about 15 waiting events of 500 bytes cut ten thousand of them."""
    feed = Feed()
    with ExitStack() as stack:
        listeners = [stack.enter_context(feed.listen()) for _ in range(10_000)]
        for number in range(20):
            assert feed.may_hand()
            feed.deliver([an_event(number, size=500)], {0: number + 1})
        assert {listener.cut for listener in listeners} == {None}
        assert feed.held_bytes <= feeds.HELD_BYTES_MAX
        assert [len(listeners[0].take()), len(listeners[-1].take())] == [20, 20]
    assert feed.held_bytes == 0


async def test_only_streams_that_fall_behind_are_cut_when_all_of_them_hold_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeds, "HELD_BYTES_MAX", 3_000_000)
    feed = Feed()
    with feed.listen() as slow, ExitStack() as stack:
        quick = [stack.enter_context(feed.listen()) for _ in range(100)]
        for number in range(20):
            assert feed.may_hand()
            feed.deliver([an_event(number, size=900_000)], {0: number + 1})
            assert feed.held_bytes <= 3_000_000 + 100 * feeds.HOLDER_BYTES * 20
            for listener in quick:
                listener.take()
        assert slow.cut == "slow"
        assert {listener.cut for listener in quick} == {None}
    assert feed.held_bytes == 0


def test_heavy_batches_do_not_pile_up_between_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HANDED_WAIT_S", 0.01)
    feed = Feed()
    heavy = [an_event(0, size=9_000_000)]
    assert feed.may_hand(heavy)
    assert not feed.may_hand(heavy), "18 MB would be under way"
    feed.deliver(heavy, {0: 1})
    assert feed.may_hand([an_event(1, size=50_000_000)]), "one batch always fits"


async def test_there_are_only_so_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "LISTENERS_MAX", 1)
    async with live_bench() as live:
        async with live.stream("/events"):
            answer = await live.get("/events")
            problem(answer, 503, "too-many-waiters")
            assert (await live.get("/stats")).json()["streams"] == 1
        feed = live.view.service.feed
        await until(lambda: feed.count == 0)
        with feed.listen("a"), pytest.raises(TooManyWaiters), feed.listen("b"):
            pass


async def fill(live: Live, stop: asyncio.Event) -> None:
    """Large events, faster than anybody reads."""
    number = 0
    while not stop.is_set():
        number += 1
        task = new_task_id()
        live.log.status(task, "completed", Origin("low", 0, number), result=b'"' + b"x" * 100_000 + b'"')
        await asyncio.to_thread(threading.Event().wait, 0.001)


async def test_a_reader_that_never_reads_is_given_up_and_everybody_else_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "SEND_S", 0.3)
    async with live_bench() as live:
        host, port = live.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        feed = live.view.service.feed
        await until(lambda: feed.listening)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(fill(live, stop), name="fill")
            try:
                await until(lambda: not feed.listening)
                assert (await live.get("/health")).status_code == 200
            finally:
                stop.set()
        await until(lambda: feed.held_bytes == 0)
        writer.close()


async def test_a_slow_reader_is_cut_and_resumes_without_gap_or_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "EVENTS_MAX", 5)
    async with live_bench() as live:
        got: list[str | None] = []
        async with live.stream("/events") as reader:
            await until(lambda: live.view.service.feed.listening)
            live.log.hold()
            for number in range(300):
                live.log.status(new_task_id(), "created", Origin("low", 0, number))
            live.log.release()
            got += [block.document["task_id"] for block in await reader.rest()]
            last = reader.last_id
        assert len(got) < 300
        async with live.stream("/events", last) as reader:
            got += [(await reader.next()).document["task_id"] for _ in range(300 - len(got))]
        assert got == [record.key.decode() for record in live.log._records["t.status", 0] if record.key]


async def test_streams_end_when_the_service_does_and_nobody_holds_it_up() -> None:
    async with live_bench() as live:
        task_id, _ = a_request(live.log)
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events") as one, live.stream("/events") as many:
            assert (await one.next()).said == "created"
            assert await many.block() is not None
            live.view.service.stop()
            assert await one.rest() == await many.rest() == []
        assert live.view.service.feed.count == 0


async def test_a_view_that_begins_anew_cuts_its_streams_and_they_can_be_resumed() -> None:
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created")
        await live.view.until_read()
        async with live.stream(f"/tasks/{task_id}/events") as reader:
            assert (await reader.next()).id == "0:0"
            live.log.go_stale()
            assert await reader.rest() == []
        await until(lambda: live.log.opened == 2 and live.view.service.ready)
        async with live.stream(f"/tasks/{task_id}/events", "0:0") as reader:
            await until(lambda: live.view.service.feed.listening)
            said(live.log, task_id, origin, "running", "completed")
            assert [block.said for block in await reader.rest()] == ["running", "completed 1"]


async def test_a_reader_that_leaves_is_forgotten() -> None:
    async with live_bench() as live:
        async with live.stream("/events") as reader:
            assert await reader.block() is not None
            assert live.view.service.feed.count == 1
        await until(lambda: live.view.service.feed.count == 0)


async def test_the_past_is_read_by_a_few_at_a_time_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasts, "WAITING_MAX", 0)
    async with live_bench() as live:
        task_id, origin = a_request(live.log)
        said(live.log, task_id, origin, "created", "running")
        await live.view.until_read()
        problem(await live.get(f"/tasks/{task_id}/events", **{"Last-Event-ID": "0:0"}), 503, "too-many-waiters")
        assert live.view.service.feed.count == 0
