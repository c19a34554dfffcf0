"""The client's parts without a broker: records from requests, tracks of tasks, problems of the service."""

from __future__ import annotations

import asyncio
import inspect
import time
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from streamtask.client import AsyncClient, Client
from streamtask.client.build import bulk, from_arguments, prepare, prepare_arguments
from streamtask.client.receipt import result_of
from streamtask.client.service import error_of
from streamtask.client.tracking import EVENTS_KEPT_MAX, Track
from streamtask.codec.formats import Encoder
from streamtask.codec.wire import Format
from streamtask.config import TopicNames
from streamtask.domain.identity import canonical, new_task_id
from streamtask.domain.model import ErrorDetails, TaskRequest, TaskResponse, TaskStatus
from streamtask.domain.options import RequestOptions, SubmitOptions, request_fields
from streamtask.errors import (
    ConfigError,
    RequestRefused,
    StreamtaskError,
    TaskCancelled,
    TaskFailed,
    UnknownTask,
    Unreachable,
    WaitTimeout,
)

NAMES = TopicNames()
TASK_ID = "0193a5b0-0000-7000-8000-000000000001"


def event(status: TaskStatus, origin: str = "high-0@1", **more: Any) -> TaskResponse:
    return TaskResponse(task_id=TASK_ID, status=status, origin=origin, **more)


def test_plain_code_submits_with_the_arguments_of_the_async_client() -> None:
    for name in ("submit", "submit_request"):
        plain, asynchronous = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(plain).parameters == inspect.signature(asynchronous).parameters
        assert (plain.__doc__, plain.__qualname__) == (asynchronous.__doc__, f"Client.{name}")


def test_an_option_that_a_submit_does_not_take_is_refused_before_anything_is_opened() -> None:
    with Client("127.0.0.1:1") as client:
        with pytest.raises(TypeError, match=r"submit\(\) got .* 'priorty'. Did you mean 'priority'"):
            client.submit("census", priorty=8)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"'timeout_seconds'\. Did you mean"):
            client.submit("census", timeout_seconds=8)  # type: ignore[call-arg]


def test_the_options_of_a_submit_are_the_fields_of_a_request() -> None:
    """A field that is added to TaskRequest is an option too."""
    fields = {*TaskRequest.model_fields} - {"task_type", "parameters", "timeout_seconds"} | {"timeout"}
    assert set(RequestOptions.__annotations__) == fields
    assert set(SubmitOptions.__annotations__) == fields | {"headers"}


def test_options_become_fields_and_what_is_none_is_left_out() -> None:
    labels = MappingProxyType({"from": "shop"})
    fields = request_fields("submit()", {"timeout": 2.5, "labels": labels, "tenant": None})
    assert fields == {"timeout_seconds": 2.5, "labels": {"from": "shop"}}
    assert type(fields["labels"]) is dict


# --- Records ----------------------------------------------------------------------------------------------------------


def test_what_a_request_leaves_out_is_filled_in_and_nothing_else_changes() -> None:
    made = prepare({"task_type": "x", "parameters": {"n": 1}, "labels": {"a": "b"}}, NAMES)
    document = orjson.loads(made.value)
    assert document == {
        "task_type": "x",
        "parameters": {"n": 1},
        "labels": {"a": "b"},
        "task_id": made.task_id,
        "priority": 5,
    }
    assert canonical(made.task_id) == made.task_id
    assert made.task_id[14] == "7"
    assert (made.key, made.band, made.headers) == (made.task_id.encode(), 1, None)


@pytest.mark.parametrize("given", [{"priority": 9}, {"task_id": TASK_ID}, {"priority": 9, "task_id": TASK_ID}, {}])
def test_a_typed_request_and_a_mapping_make_the_same_record(given: dict[str, Any]) -> None:
    typed = prepare(TaskRequest(task_type="x", **given), NAMES)
    mapped = prepare({"task_type": "x", **given}, NAMES)
    assert (typed.band, set(orjson.loads(typed.value))) == (mapped.band, set(orjson.loads(mapped.value)))
    for name, value in given.items():
        assert orjson.loads(typed.value)[name] == orjson.loads(mapped.value)[name] == value


def test_the_key_is_the_ordering_key_if_there_is_one() -> None:
    assert prepare({"task_type": "x", "ordering_key": "客户"}, NAMES).key == "客户".encode()


def test_times_may_be_given_as_text_or_as_aware_datetimes() -> None:
    when = datetime(2026, 11, 24, 7, 26, tzinfo=UTC)
    for given in (when, "2026-11-24T08:26:00+01:00"):
        made = prepare({"task_type": "x", "not_before": given}, NAMES)
        assert orjson.loads(made.value)["not_before"] == "2026-11-24T07:26:00.000Z"


@pytest.mark.parametrize("way", ["dict", "model", "arguments", "bulk", "avro"])
def test_a_start_more_than_an_hour_ahead_is_refused_before_it_is_sent(way: str) -> None:
    """Bug: it was accepted, and failed later. A worker accepts what the client's clock accepts, give or take their clocks."""

    def made(at: datetime) -> object:
        request = TaskRequest(task_type="x", not_before=at)
        match way:
            case "dict":
                return prepare({"task_type": "x", "not_before": at}, NAMES)
            case "model":
                return prepare(request, NAMES)
            case "arguments":
                return prepare_arguments(None, NAMES, None, Encoder(), task_type="x", not_before=at)
            case "bulk":
                return list(bulk([{"task_type": "x", "not_before": at}], NAMES, Encoder()))
            case _:
                return prepare(request, NAMES, None, Encoder(Format.AVRO, dict.fromkeys(NAMES.requests, b"\x00header")))

    now = datetime.now(UTC)
    assert made(now + timedelta(minutes=59))
    with pytest.raises(RequestRefused, match="not_before: is more than an hour ahead") as refused:
        made(now + timedelta(minutes=61))
    assert set(refused.value.fields) == {"not_before"}


def test_parameters_may_be_a_model() -> None:
    class Census(BaseModel):
        path: str
        since: datetime

    since = datetime(2026, 1, 1, tzinfo=UTC)
    for request in (
        from_arguments(Census(path="a", since=since), task_type="x"),
        {"task_type": "x", "parameters": Census(path="a", since=since)},
    ):
        assert orjson.loads(prepare(request, NAMES).value)["parameters"]["path"] == "a"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"task_type": "x", "task_id": "no"}, "task_id"),
        ({"task_type": "x", "prioritty": 1}, "prioritty"),
        ({"task_type": "x", "priority": True}, "priority"),
        ({"task_type": "x", "priority": 5.5}, "priority"),
        ({"task_type": "x", "timeout_seconds": -1}, "timeout_seconds"),
        ({"task_type": "\ud800"}, "surrogates"),
        ({"parameters": {}}, "task_type"),
        (
            {"task_type": "x", "ordering_key": "k", "not_before": datetime.now(UTC) + timedelta(hours=1)},
            "not_before",
        ),
    ],
)
def test_each_wrong_field_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        prepare(given, NAMES)
    assert field in str(refused.value)


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(RequestRefused, match="not list"):
        prepare([("task_type", "x")], NAMES)  # type: ignore[arg-type]


# --- Tracks -----------------------------------------------------------------------------------------------------------


def test_past_and_present_may_come_in_any_order() -> None:
    track = Track(TASK_ID)
    track.offer(7, event(TaskStatus.RUNNING))
    track.offer(3, event(TaskStatus.CREATED))  # a scan of the past that came late
    track.offer(7, event(TaskStatus.CREATED))
    assert track.latest is not None
    assert (track.latest.status, track.seen) == (TaskStatus.RUNNING, 7)


def test_nothing_follows_an_end_nor_comes_from_another_history() -> None:
    track = Track(TASK_ID)
    track.offer(1, event(TaskStatus.RUNNING, "high-0@1"))
    track.offer(2, event(TaskStatus.COMPLETED, "high-0@9"))
    assert not track.ended
    track.offer(3, event(TaskStatus.COMPLETED, "high-0@1", result=1))
    track.offer(4, event(TaskStatus.CREATED, "high-0@1"))
    assert track.latest is not None
    assert track.latest.result == 1


def test_a_follower_gets_what_is_known_and_then_each_event() -> None:
    async def scenario() -> list[str]:
        track = Track(TASK_ID)
        track.offer(1, event(TaskStatus.CREATED))
        follower = track.follow()
        track.offer(2, event(TaskStatus.RUNNING))
        track.offer(3, event(TaskStatus.COMPLETED))
        return [task.status.value async for task in follower]

    assert asyncio.run(scenario()) == ["created", "running", "completed"]


def test_a_follower_that_is_slow_keeps_the_newest_within_its_bound() -> None:
    async def scenario() -> list[TaskResponse]:
        track = Track(TASK_ID)
        follower = track.follow()
        for offset in range(2 * EVENTS_KEPT_MAX):
            track.offer(offset, event(TaskStatus.RUNNING, progress=offset / (2 * EVENTS_KEPT_MAX)))
        track.offer(2 * EVENTS_KEPT_MAX, event(TaskStatus.COMPLETED))
        return [task async for task in follower]

    got = asyncio.run(scenario())
    assert len(got) == EVENTS_KEPT_MAX
    assert got[-1].status is TaskStatus.COMPLETED


def test_waiting_ends_with_the_task_or_the_time_or_an_error() -> None:
    async def scenario() -> None:
        track = Track(TASK_ID)
        with pytest.raises(WaitTimeout):
            await track.end(time.monotonic())
        waiting = asyncio.ensure_future(track.end(None))
        await asyncio.sleep(0)
        track.break_off(StreamtaskError("the tail is gone"))
        with pytest.raises(StreamtaskError, match="gone"):
            await waiting
        waiting = asyncio.ensure_future(track.end(time.monotonic() + 10))
        await asyncio.sleep(0)
        track.offer(1, event(TaskStatus.COMPLETED))
        assert (await waiting).status is TaskStatus.COMPLETED

    asyncio.run(scenario())


# --- Answers ----------------------------------------------------------------------------------------------------------


def test_an_end_is_a_value_or_an_error() -> None:
    assert result_of(event(TaskStatus.COMPLETED, result={"a": 1})) == {"a": 1}
    assert result_of(event(TaskStatus.COMPLETED)) is None
    with pytest.raises(TaskFailed) as failed:
        result_of(event(TaskStatus.FAILED, error="no", error_details=ErrorDetails(code="timeout", attempt=2)))
    assert (failed.value.code, failed.value.details, failed.value.task_id) == (
        "timeout",
        {"code": "timeout", "attempt": 2},
        TASK_ID,
    )
    assert (failed.value.text, failed.value.attempt) == ("no", None)
    with pytest.raises(TaskCancelled, match="cancelled"):
        result_of(event(TaskStatus.CANCELLED))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"task_type": "charge", "attempt": 3, "error": "a negative amount"},
            f"Task {TASK_ID} (charge) failed after 3 attempts [handler_error]: a negative amount",
        ),
        ({"task_type": "charge", "attempt": 1}, f"Task {TASK_ID} (charge) failed [handler_error]."),
        ({"error": "a negative amount"}, f"Task {TASK_ID} failed [handler_error]: a negative amount"),
    ],
)
def test_a_failure_says_which_task_why_and_after_how_many_attempts(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskFailed) as failed:
        result_of(event(TaskStatus.FAILED, **fields))
    assert str(failed.value) == said


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, RequestRefused),
        (401, ConfigError),
        (403, ConfigError),
        (404, UnknownTask),
        (409, RequestRefused),
        (413, RequestRefused),
        (422, RequestRefused),
        (500, StreamtaskError),
        (503, Unreachable),
    ],
)
def test_every_problem_of_the_service_is_an_error_of_ours(code: int, kind: type[StreamtaskError]) -> None:
    problem = {"title": "t", "detail": "d", "errors": [{"field": "priority", "message": "too much"}]}
    error = error_of(code, problem, task_id=new_task_id(), url="http://127.0.0.1:1")
    assert type(error) is kind
    if isinstance(error, RequestRefused):
        assert error.fields == {"priority": "too much"}
