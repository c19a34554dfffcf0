"""The fast way to write a status event says, byte by byte, what the general one says."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtask.codec import encode_status
from streamtask.codec.plain import plain_writer
from streamtask.domain.model import LOCALES, StatusEvent, TaskStatus

WORKER = 'bench"mark@host\\1:12345'
WRITERS = {locale: plain_writer(locale=locale, worker=WORKER) for locale in LOCALES}
MS = st.integers(0, 4_102_444_800_000)


def mostly(value: st.SearchStrategy[Any], otherwise: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(value, value, value, otherwise)


NONE = st.none()
EVENTS = st.builds(
    StatusEvent,
    task_id=st.uuids().map(str),
    partition=st.just(1),
    status=st.sampled_from(TaskStatus),
    created_ms=MS,
    updated_ms=MS,
    origin=st.just("normal-1@22"),
    task_type=mostly(
        st.sampled_from(["noop", 'a "quoted" one', "größe", "日本"]), st.one_of(NONE, st.text(max_size=8))
    ),
    priority=mostly(st.integers(1, 10), NONE),
    attempt=mostly(st.integers(1, 32_767), NONE),
    progress=mostly(NONE, st.floats(0, 1)),
    result=st.one_of(NONE, st.just(b"null"), st.just(b'{"path":"lib","size":1}'), st.just('"größe"'.encode())),
    error=mostly(NONE, st.text(max_size=20)),
    error_code=mostly(NONE, st.just("handler_error")),
    message=mostly(NONE, st.text(max_size=20)),
    started_ms=mostly(MS, NONE),
    finished_ms=mostly(NONE, MS),
    labels=mostly(NONE, st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)),
)


@given(event=EVENTS, locale=st.sampled_from(LOCALES))
def test_it_writes_the_same_bytes(event: StatusEvent, locale: str) -> None:
    expected = encode_status(event, locale=locale, worker=WORKER)
    assert WRITERS[locale](event) == expected
    assert WRITERS[locale](event) == expected, "and once it knows the task type"


@pytest.mark.parametrize("status", [TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.COMPLETED])
def test_the_three_events_of_nearly_every_task_are_written_without_the_general_way(
    status: TaskStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = StatusEvent("0190a0a0-0000-7000-8000-000000000000", 1, status, 5, 6, "high-0@1", "noop", 5)
    if status is not TaskStatus.CREATED:
        event.attempt, event.started_ms = 1, 6
    if status is TaskStatus.COMPLETED:
        event.progress, event.finished_ms, event.result = 1.0, 7, b"1"
    write = plain_writer(locale="en", worker=WORKER)
    expected = write(event)
    monkeypatch.setattr("streamtask.codec.plain.encode_status", None)
    assert write(event) == expected
    assert orjson.loads(expected)["worker"] == WORKER


def test_a_task_type_that_is_no_utf_8_is_written_the_general_way_each_time() -> None:
    event = StatusEvent("0190a0a0-0000-7000-8000-000000000000", 1, TaskStatus.CREATED, 5, 6, "high-0@1", "\ud800", 5)
    assert WRITERS["en"](event) == WRITERS["en"](event) == encode_status(event, locale="en", worker=WORKER)
