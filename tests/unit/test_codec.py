"""The codec: what is read, what is refused and with which words, and that what was written is read back."""

from __future__ import annotations

import json
import math
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from streamtask.codec import (
    RequestDecoder,
    decode_control,
    decode_dead,
    decode_request_strict,
    decode_status,
    encode_control,
    encode_dead,
    encode_request,
    encode_result,
    encode_status,
    peek_request,
    peek_status,
    status_headers,
    status_key,
)
from streamtask.codec.wire import time_text
from streamtask.config import TopicNames
from streamtask.domain.model import (
    ERROR_TEXT_MAX,
    MESSAGE_TEXT_MAX,
    TRACEBACK_TEXT_MAX,
    ControlAction,
    ControlMessage,
    DeadLetter,
    RequestRecord,
    StatusEvent,
    TaskRequest,
    TaskStatus,
    from_ms,
    rfc3339,
    to_ms,
)
from streamtask.errors import DecodeError

NAMES = TopicNames()
DECODER = RequestDecoder(NAMES, "cluster-1")
NOW_MS = 1_795_505_160_123  # 2026-11-24T07:26:00.123Z
ONE = "0192f0c1-2b3c-7d4e-8f50-112233445566"
TWO = "11111111-2222-4333-8444-555555555555"


def _decode(value: bytes | None, *, band: int = 0, key: bytes | None = None, headers: Any = None) -> RequestRecord:
    return DECODER.decode(band, 3, 12345, NOW_MS, key, value, headers)


def _text(**fields: Any) -> bytes:
    return json.dumps({"task_type": "census"} | fields).encode()


def _good(value: bytes) -> tuple[RequestRecord, TaskRequest]:
    record = _decode(value)
    assert record.problem is None, record.problem
    assert record.request is not None
    return record, record.request


def _problem(value: bytes | None, **more: Any) -> str:
    record = _decode(value, **more)
    assert record.request is None
    assert record.problem is not None
    code, text = record.problem
    assert code == "invalid_request"
    assert 0 < len(text) <= 1_000
    assert record.value == (value or b"")
    return text


# --- Requests on topics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "null"),
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"{", "not JSON"),
        (b'{"task_type": "census"} {}', "not JSON"),
        (b'{"task_type": "census",}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"task_type": "\xff"}', "not JSON"),
        (b'{"task_type": "\\ud800"}', "not JSON"),
        (b'{"task_type": "a\x01b"}', "not JSON"),
        (b"\xef\xbb\xbf" + _text(), "not JSON"),
        (b"[]", "array"),
        (b'"census"', "string"),
        (b"5", "number"),
        (b"true", "boolean"),
        (b"null", "null"),
        (b"{}", "task_type"),
        (_text(task_type=""), "task_type"),
        (_text(task_type="x" * 256), "task_type"),
        (_text(task_type=5), "task_type"),
        (_text(task_type=None), "task_type"),
        (_text(priority=0), "priority"),
        (_text(priority=11), "priority"),
        (_text(priority="5"), "priority"),
        (_text(priority=5.5), "priority"),
        (_text(priority=True), "priority"),
        (_text(priority=[5]), "priority"),
        (_text(priority=10**30), "priority"),
        (_text(timeout_seconds=0), "timeout_seconds"),
        (_text(timeout_seconds=-1), "timeout_seconds"),
        (_text(timeout_seconds="300"), "timeout_seconds"),
        (_text(timeout_seconds=True), "timeout_seconds"),
        (_text(timeout_seconds=math.nan), "not JSON"),
        (_text(timeout_seconds=math.inf), "not JSON"),
        (_text(parameters={"x": math.nan}), "not JSON"),
        (_text(parameters={"x": -math.inf}), "not JSON"),
        (_text(parameters={"x": [[math.inf]]}), "not JSON"),
        (b'{"task_type": "census", "parameters": {"x": 1e400}}', "not JSON"),
        (b'{"task_type": "census", "timeout_seconds": 1' + b"0" * 400 + b"}", "not JSON"),
        (b'{"task_type": "census", "parameters": {"x": ' + b"9" * 5_000 + b"}}", "not JSON"),
        (_text(parameters=[]), "parameters"),
        (_text(parameters="{}"), "parameters"),
        (_text(labels={"a": 1}), "labels.a"),
        (_text(labels={"a": None}), "labels.a"),
        (_text(labels={str(n): "x" for n in range(65)}), "labels"),
        (_text(labels=["a"]), "labels"),
        (_text(description=5), "description"),
        (_text(created_at="2026-11-24T07:26:00"), "created_at"),
        (_text(created_at="2026-11-24"), "created_at"),
        (_text(created_at=NOW_MS), "created_at"),
        (_text(created_at="1700000000"), "created_at"),
        (_text(expires_at="1700000000000"), "expires_at"),
        (_text(expires_at="tomorrow"), "expires_at"),
        (_text(expires_at="2026-02-30T00:00:00Z"), "expires_at"),
        (_text(ordering_key=""), "ordering_key"),
        (_text(not_before="2026-11-24T08:00:00Z", ordering_key="k"), "ordering_key"),
        (b"\xc3\x01" + b"\x00" * 20, "unknown schema: its fingerprint 0000000000000000"),
        (b"\x00\x00\x00\x00\x07abc", "needs registry_url"),
    ],
)
def test_what_is_no_valid_request_has_a_problem_that_names_it(value: bytes | None, word: str) -> None:
    assert word in _problem(value)


@pytest.mark.parametrize("depth", [250, 5_000, 500_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deeply_nested_parameters_are_a_problem_not_a_crash(depth: int, pair: tuple[bytes, bytes]) -> None:
    nested = pair[0] * depth + b"1" + pair[1] * depth
    _problem(b'{"task_type": "census", "parameters": {"x": ' + nested + b"}}")


def test_parameters_of_a_hundred_levels_are_read() -> None:
    _good(b'{"task_type": "census", "parameters": {"x": ' + b"[" * 100 + b"]" * 100 + b"}}")


def test_every_wrong_field_is_named_at_once() -> None:
    text = _problem(_text(task_type="", priority=11, timeout_seconds=-1))
    assert all(name in text for name in ("task_type", "priority", "timeout_seconds"))


def test_a_problem_does_not_repeat_the_values_they_may_be_secrets() -> None:
    assert "hunter2" not in _problem(_text(priority="hunter2", tenant=["hunter2"], labels={"password": ["hunter2"]}))


def test_five_point_zero_is_five() -> None:
    record, request = _good(_text(priority=5.0))
    assert (record.priority, request.priority) == (5, 5)
    assert type(record.priority) is int


@pytest.mark.parametrize(("band", "middle"), [(0, 9), (1, 5), (2, 2)])
def test_a_request_without_priority_has_the_middle_of_its_band(band: int, middle: int) -> None:
    assert _decode(_text(), band=band).priority == middle
    assert _decode(_text(priority=None), band=band).priority == middle


def test_a_priority_outside_its_band_keeps_its_own_number() -> None:
    assert _decode(_text(priority=1), band=0).priority == 1


def test_unknown_fields_are_ignored_on_topics() -> None:
    _, request = _good(_text(colour="blue", Priority=99))
    assert request.priority is None


def test_requests_that_give_the_same_fields_keep_their_names_once_and_others_keep_their_own() -> None:
    """2,070 bytes a request before, 1,330 now: a thousand of each cell wait in memory."""
    same = [_good(_text(task_type=name, priority=9))[1] for name in ("a", "b")]
    other = _good(_text(tenant="t"))[1]
    assert same[0].model_fields_set is same[1].model_fields_set
    assert "priority" in same[1].model_fields_set
    assert other.model_fields_set == same[0].model_fields_set - {"priority"} | {"tenant"}
    copy = same[0].model_copy(update={"tenant": "t"})
    assert copy.model_fields_set == same[1].model_fields_set | {"tenant"}
    assert "tenant" not in same[1].model_fields_set, "a copy has a set of its own"


@pytest.mark.parametrize("value", [None, b"", b"[]", b"no JSON", b'{"task_type":"a"}', b"\x00\x00\x00\x00\x01"])
def test_what_does_not_name_its_task_in_json_is_not_peeked_at(value: bytes | None) -> None:
    assert peek_request(value) is None


def test_absent_and_null_are_the_same() -> None:
    nothing = dict.fromkeys(
        ["parameters", "priority", "timeout_seconds", "task_id", "created_at", "expires_at", "not_before", "labels"]
    )
    assert _good(_text(**nothing))[1] == _good(_text())[1]


@pytest.mark.parametrize("spelled", ["12", "not-a-uuid", "", 5, True, ["x"], {"a": 1}, ONE + "x"])
def test_a_task_id_that_is_no_uuid_has_no_status_key_and_nothing_else_replaces_it(spelled: Any) -> None:
    record = _decode(_text(task_id=spelled), key=ONE.encode(), headers=[("task_id", ONE.encode())])
    assert record.task_id == ""
    assert record.problem is not None
    assert "task_id" in record.problem[1]


def test_a_header_that_is_no_uuid_is_refused_like_the_field() -> None:
    record = _decode(_text(), key=ONE.encode(), headers=[("task_id", b"7")])
    assert record.task_id == ""
    assert record.problem is not None


def test_the_last_header_of_a_name_counts_and_a_null_one_is_absent() -> None:
    headers = [("task_id", ONE.encode()), ("task_id", TWO.encode())]
    assert _decode(_text(), headers=headers).task_id == TWO
    assert _decode(_text(), key=ONE.encode(), headers=[("task_id", None)]).task_id == ONE


def test_an_invalid_envelope_still_names_its_task_when_field_header_or_key_do() -> None:
    assert _decode(_text(priority=11, task_id=ONE.upper())).task_id == ONE
    assert _decode(_text(priority=11), headers=[("task_id", ONE.encode())]).task_id == ONE
    assert _decode(b"not json", key=ONE.encode()).task_id == ONE
    assert _decode(None, key=ONE.encode()).task_id == ONE
    assert _decode(_text(task_id=ONE, parameters={"x": math.nan})).task_id == ONE
    assert _decode(b"\xef\xbb\xbf" + _text(task_id=ONE)).task_id == ONE


def test_an_invalid_envelope_that_names_no_task_gets_no_derived_id() -> None:
    assert _decode(_text(priority=11)).task_id == ""
    assert _decode(b"not json", key=b"customer-7").task_id == ""


@pytest.mark.parametrize(
    ("hours", "believed"), [(0, True), (-1, True), (1, True), (23.9, True), (-23.9, True), (24.1, False), (-900, False)]
)
def test_created_at_is_believed_within_a_day_of_the_records_own_time(hours: float, believed: bool) -> None:
    when = from_ms(NOW_MS) + timedelta(hours=hours)
    record, _ = _good(_text(created_at=rfc3339(when)))
    assert record.created_ms == (to_ms(when) if believed else NOW_MS)


def test_a_request_without_created_at_was_created_when_the_broker_has_it() -> None:
    assert _good(_text())[0].created_ms == NOW_MS


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**62, -(2**62)])
def test_any_timestamp_of_a_record_gives_a_time_that_can_be_written(timestamp_ms: int) -> None:
    for value in (_text(), _text(created_at="2026-11-24T07:26:00Z"), b"not json"):
        record = DECODER.decode(0, 0, 0, timestamp_ms, None, value, None)
        assert time_text(record.created_ms).endswith("Z")


def test_times_of_any_offset_become_milliseconds() -> None:
    record, _ = _good(_text(expires_at="2026-11-24T09:26:00.1239+02:00", not_before="2026-11-24t07:26:00z"))
    assert record.expires_ms == NOW_MS
    assert record.not_before_ms == NOW_MS - 123


@pytest.mark.parametrize("spelled", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_times_at_the_ends_of_the_calendar_are_read(spelled: str) -> None:
    record, request = _good(_text(expires_at=spelled, created_at=spelled))
    assert record.created_ms == NOW_MS
    assert request.expires_at is not None
    assert record.expires_ms == to_ms(request.expires_at)


def test_whole_numbers_beyond_64_bits_stay_exact() -> None:
    _, request = _good(b'{"task_type": "census", "parameters": {"x": 123456789012345678901234567890}}')
    assert request.parameters == {"x": 123456789012345678901234567890}
    assert b"123456789012345678901234567890" in encode_request(request)


@pytest.mark.parametrize("plane", range(17))
def test_a_text_of_every_unicode_plane_goes_through(plane: int) -> None:
    points = range(plane << 16, (plane + 1) << 16, 257)
    text = "".join(chr(point) for point in points if unicodedata.category(chr(point)) != "Cs")
    for value in (_text(description=text), json.dumps({"task_type": "c", "description": text}, ensure_ascii=False)):
        _, request = _good(value if isinstance(value, bytes) else value.encode())
        assert request.description == text
        assert decode_request_strict(encode_request(request)) == request


def test_escaped_control_characters_are_text_like_any_other() -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\u2028\u2029\ufeff"
    _, request = _good(_text(task_type=text, parameters={text: text}, ordering_key=text))
    assert (request.task_type, request.parameters, request.ordering_key) == (text, {text: text}, text)


def test_headers_are_kept_as_received() -> None:
    headers = [("traceparent", b"00-1"), ("x", b"\xff"), ("x", None)]
    assert _decode(_text(), headers=headers).headers == (("traceparent", b"00-1"), ("x", b"\xff"), ("x", b""))


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.none(), st.binary(max_size=200)),
    st.one_of(st.none(), st.binary(max_size=40)),
    st.lists(st.tuples(st.sampled_from(["task_id", "x"]), st.one_of(st.none(), st.binary(max_size=40))), max_size=3),
    st.integers(-(2**63), 2**63 - 1),
)
def test_no_bytes_make_decode_raise(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], timestamp_ms: int
) -> None:
    record = DECODER.decode(1, 0, 0, timestamp_ms, key, value, headers)
    assert (record.request is None) == (record.problem is not None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = sorted(TaskRequest.model_fields)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=8), st.integers(-1, 2**62))
def test_no_json_object_makes_decode_raise(fields: dict[str, Any], timestamp_ms: int) -> None:
    value = json.dumps({"task_type": "census"} | fields).encode()
    record = DECODER.decode(2, 0, 0, timestamp_ms, None, value, None)
    assert (record.request is None) == (record.problem is not None)
    if record.request is not None:
        assert record.task_id
        assert DECODER.decode(2, 0, 0, timestamp_ms, None, encode_request(record.request), None).request == (
            record.request
        )


_WHEN = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(
    lambda when: when.replace(tzinfo=UTC, microsecond=when.microsecond // 1_000 * 1_000)
)
_FINITE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_REQUESTS = st.builds(
    TaskRequest,
    task_type=st.text(min_size=1, max_size=255),
    description=st.text(),
    parameters=st.none() | st.dictionaries(st.text(), _FINITE, max_size=4),
    priority=st.none() | st.integers(1, 10),
    timeout_seconds=st.none() | st.floats(1e-6, 1e9),
    task_id=st.none() | st.uuids().map(str),
    created_at=st.none() | _WHEN,
    expires_at=st.none() | _WHEN,
    not_before=st.none() | _WHEN,
    tenant=st.none() | st.text(min_size=1, max_size=255),
    idempotency_key=st.none() | st.text(max_size=50),
    labels=st.none() | st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=8),
    st.sampled_from([ONE, ONE.upper(), TWO, "no id", 5, None]),
    st.sampled_from([None, TWO.encode(), b"k"]),
    st.sampled_from([None, [("task_id", TWO.encode())], [("task_id", b"no id")]]),
)
def test_the_id_that_is_peeked_at_is_the_one_that_decode_gives(
    fields: dict[str, Any], named: Any, key: bytes | None, headers: Any
) -> None:
    value = json.dumps({"task_type": "census"} | fields | {"task_id": named}).encode()
    document, record = peek_request(value), _decode(value, key=key, headers=headers)
    if document is None:
        assert named not in (ONE, ONE.upper(), TWO) or record.problem is not None, "numbers of 65 bits are no JSON here"
        return
    assert record.task_id == document["task_id"]
    if record.request is not None:
        assert record.request.tenant == document.get("tenant")


@given(_REQUESTS)
def test_a_request_is_read_back_as_it_was_written(request: TaskRequest) -> None:
    assert decode_request_strict(encode_request(request)) == request
    record = _decode(encode_request(request))
    assert record.request == request


# --- Requests at the doors --------------------------------------------------------------------------------------------


def _refused(value: bytes | dict[str, Any]) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode_request_strict(value)
    return caught.value


def test_the_doors_refuse_an_unknown_field_and_name_the_nearest_known_one() -> None:
    error = _refused(_text(priorty=5))
    assert error.fields == {"priorty": "unknown field; did you mean 'priority'?"}
    assert "priority" in str(error)


def test_the_doors_name_unknown_and_wrong_fields_together() -> None:
    assert set(_refused(_text(priorty=5, timeout_seconds=0, task_id="x")).fields) == {
        "priorty",
        "timeout_seconds",
        "task_id",
    }


def test_the_doors_take_a_mapping_with_times_as_datetimes() -> None:
    request = decode_request_strict({"task_type": "census", "expires_at": from_ms(NOW_MS), "task_id": ONE.upper()})
    assert request.expires_at == from_ms(NOW_MS)
    assert request.task_id == ONE


@pytest.mark.parametrize(
    "value",
    [
        {"task_type": "census", "parameters": {"x": math.nan}},
        {"task_type": "census", "parameters": {"x": object()}},
        {"task_type": "\ud800"},
        {"task_type": "census", "expires_at": datetime(2026, 11, 24)},
    ],
)
def test_the_doors_refuse_a_mapping_that_is_no_json(value: dict[str, Any]) -> None:
    assert _refused(value).code == "invalid_request"


@pytest.mark.parametrize("held", [math.nan, math.inf, "\ud800", object(), {1, math.nan}])
def test_parameters_that_are_no_json_are_refused_before_they_are_sent(held: Any) -> None:
    with pytest.raises(DecodeError, match="parameters") as caught:
        encode_request(TaskRequest(task_type="census", parameters={"x": held}))
    assert "parameters" in caught.value.fields


# --- Status events ----------------------------------------------------------------------------------------------------


def _event(status: TaskStatus = TaskStatus.RUNNING, **fields: Any) -> StatusEvent:
    return StatusEvent(
        task_id=ONE,
        partition=3,
        status=status,
        created_ms=NOW_MS,
        updated_ms=NOW_MS + 1,
        origin="high-3@12345",
        **fields,
    )


def _written(event: StatusEvent, locale: str = "en") -> dict[str, Any]:
    document = json.loads(encode_status(event, locale=locale, worker="worker-1"))
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize(
    ("status", "en", "zh"),
    [
        (TaskStatus.CREATED, "Task created", "任务已创建"),
        (TaskStatus.RUNNING, "Task status: running", "任务状态: running"),
        (TaskStatus.COMPLETED, "Task status: completed", "任务状态: completed"),
        (TaskStatus.FAILED, "Task status: failed", "任务状态: failed"),
        (TaskStatus.CANCELLED, "Task status: cancelled", "任务状态: cancelled"),
    ],
)
def test_messages_default_in_both_languages(status: TaskStatus, en: str, zh: str) -> None:
    assert _written(_event(status))["message"] == en
    assert _written(_event(status), "zh")["message"] == zh
    assert _written(_event(status, message="half way"))["message"] == "half way"


def test_null_fields_are_left_out() -> None:
    assert set(_written(_event())) == {
        "task_id",
        "status",
        "created_at",
        "updated_at",
        "message",
        "worker",
        "origin",
    }
    assert "result" not in _written(_event(TaskStatus.COMPLETED, result=b"null"))


def test_completed_has_progress_one() -> None:
    assert _written(_event(TaskStatus.COMPLETED, progress=0.2))["progress"] == 1.0


def test_a_result_is_embedded_byte_for_byte() -> None:
    result = b'{"big":123456789012345678901234567890,"f":1.10,"t":"\xc3\xa4"}'
    assert b'"result":' + result in encode_status(_event(TaskStatus.COMPLETED, result=result), locale="en", worker="w")
    assert decode_status(
        encode_status(_event(TaskStatus.COMPLETED, result=result), locale="en", worker="w")
    ).result == json.loads(result)


def test_long_texts_are_cut_and_a_traceback_keeps_its_end() -> None:
    event = _event(
        TaskStatus.FAILED,
        message="m" * 2_000,
        error="e" * 10_000,
        error_code="handler_error",
        exception="x" * 10_000,
        traceback="t" * 50_000 + "THE END",
    )
    document = _written(event)
    details = document["error_details"]
    assert (len(document["message"]), len(document["error"])) == (MESSAGE_TEXT_MAX, ERROR_TEXT_MAX)
    assert (len(details["exception"]), len(details["traceback"])) == (ERROR_TEXT_MAX, TRACEBACK_TEXT_MAX)
    assert details["traceback"].endswith("THE END")


def test_texts_with_lone_surrogates_are_spelled_out_not_raised() -> None:
    document = _written(
        _event(
            TaskStatus.FAILED,
            error="no such file: \udcff",
            error_code="handler_error",
            exception="E\ud800",
            traceback="\udfff",
            message="\ud83d",
            labels={"\ud800": "\ud800"},
            result=b'{"a":1}',
        )
    )
    assert document["error"] == "no such file: \\udcff"
    assert document["error_details"]["traceback"] == "\\udfff"
    assert document["result"] == {"a": 1}


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_a_time_is_written_as_rfc_3339_in_utc_with_milliseconds(ms: int) -> None:
    assert time_text(ms) == rfc3339(from_ms(ms))
    assert to_ms(datetime.fromisoformat(time_text(ms))) == ms


_MS = st.integers(0, 253_402_300_799_999)
_EVENTS = st.builds(
    StatusEvent,
    task_id=st.uuids().map(str),
    partition=st.integers(0, 100),
    status=st.sampled_from(list(TaskStatus)),
    created_ms=_MS,
    updated_ms=_MS,
    origin=st.just("low-0@7"),
    task_type=st.none() | st.text(),
    priority=st.none() | st.integers(1, 10),
    attempt=st.none() | st.integers(1, 10**6),
    progress=st.none() | st.floats(0, 1),
    result=st.none() | _FINITE.map(encode_result),
    error=st.none() | st.text(),
    error_code=st.none() | st.sampled_from(["timeout", "handler_error"]),
    exception=st.none() | st.text(),
    traceback=st.none() | st.text(),
    message=st.none() | st.text(),
    started_ms=st.none() | _MS,
    finished_ms=st.none() | _MS,
    labels=st.none() | st.dictionaries(st.text(), st.text(), max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(_EVENTS, st.sampled_from(["en", "zh"]))
def test_a_status_event_is_read_back_as_it_was_written(event: StatusEvent, locale: str) -> None:
    value = encode_status(event, locale=locale, worker="w")
    response = decode_status(value)
    assert (response.task_id, response.status, response.origin) == (event.task_id, event.status, event.origin)
    assert response.created_at == from_ms(event.created_ms)
    assert response.updated_at == from_ms(event.updated_ms)
    assert response.progress == (1.0 if event.status is TaskStatus.COMPLETED else event.progress)
    assert (response.task_type, response.priority, response.attempt) == (event.task_type, event.priority, event.attempt)
    assert response.result == (None if event.result is None else json.loads(event.result))
    assert (response.error, response.labels or None) == (event.error, event.labels or None)
    assert (response.error_details is None) == (event.error_code is None)
    assert peek_status(value)["status"] == event.status.value


def test_the_key_of_an_event_is_its_task_id_and_only_the_trace_context_travels_in_headers() -> None:
    headers = (("traceparent", b"00-1"), ("task_id", b"x"), ("tracestate", b"a=1"))
    assert status_key(_event()) == ONE.encode()
    assert status_headers(_event(headers=headers)) == [("traceparent", b"00-1"), ("tracestate", b"a=1")]
    assert status_headers(_event()) is None
    assert status_headers(_event(headers=(("x", b"1"),))) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        b"[]",
        orjson.dumps({"task_id": ONE}),
        orjson.dumps({"task_id": ONE, "status": "paused"}),
        orjson.dumps({"task_id": ONE, "status": "RUNNING"}),
        orjson.dumps({"task_id": "x", "status": "running"}),
        orjson.dumps({"task_id": 5, "status": "running"}),
        b'{"task_id": "%s", "status": "running", "progress": NaN}' % ONE.encode(),
    ],
)
def test_what_is_no_status_event_is_refused(value: bytes | None) -> None:
    for read in (decode_status, peek_status):
        with pytest.raises(DecodeError):
            read(value)


def test_a_status_event_of_another_release_is_read_with_its_unknown_fields_ignored() -> None:
    value = orjson.dumps({"task_id": ONE.upper(), "status": "running", "mood": "fine"})
    assert decode_status(value).task_id == peek_status(value)["task_id"] == ONE


# --- Control ----------------------------------------------------------------------------------------------------------


@given(st.uuids().map(str), st.none() | _WHEN, st.none() | st.text(max_size=1_000))
def test_a_control_message_is_read_back_as_it_was_written(task_id: str, when: datetime | None, why: str | None) -> None:
    message = ControlMessage(task_id=task_id, action=ControlAction.CANCEL, created_at=when, reason=why)
    assert decode_control(task_id.encode(), encode_control(message)) == message


def test_a_control_message_written_by_hand_may_leave_the_id_to_its_key() -> None:
    assert decode_control(ONE.upper().encode(), b'{"action": "cancel"}').task_id == ONE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (ONE.encode(), None),
        (ONE.encode(), b"cancel"),
        (ONE.encode(), b"{}"),
        (ONE.encode(), b'{"action": "pause"}'),
        (None, b'{"action": "cancel"}'),
        (b"7", b'{"action": "cancel"}'),
        (b"\xff", b'{"action": "cancel", "task_id": "7"}'),
        (ONE.encode(), orjson.dumps({"action": "cancel", "task_id": TWO})),
        (ONE.encode(), orjson.dumps({"action": "cancel", "created_at": "1700000000"})),
        *(
            (ONE.encode(), b'{"action":"cancel","x":' + b"[" * deep + b"]" * deep + b"}")
            for deep in (255, 1_000, 9_000)
        ),
    ],
)
def test_what_is_no_control_message_is_refused(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(DecodeError):
        decode_control(key, value)


# --- Dead letters -----------------------------------------------------------------------------------------------------


def _letter(value: bytes, *, key: bytes | None = None, headers: Any = None, **fields: Any) -> DeadLetter:
    record = _decode(value, key=key, headers=headers)
    told: dict[str, Any] = {"record": record, "reason": "invalid_request", "text": "why", "origin": "high-3@12345"}
    return DeadLetter(**(told | fields))


def _dead(letter: DeadLetter, bytes_max: int = 1_000_000) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
    return encode_dead(letter, NAMES, value_bytes_max=bytes_max, worker="worker-1", failed_at_ms=NOW_MS)


def _size(key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]) -> int:
    return len(key or b"") + len(value) + sum(len(name.encode()) + len(held) + 2 for name, held in headers)


def test_a_dead_letter_has_the_original_bytes_and_says_where_they_came_from() -> None:
    value = b"\x00not json\xff"
    letter = _letter(value, key=ONE.encode(), headers=[("traceparent", b"00-1"), ("x", b"\xff")], attempt=3)
    key, written, headers = _dead(letter)
    assert (key, written) == (ONE.encode(), value)
    read = decode_dead(0, 9, NOW_MS + 5, key, written, headers)
    assert (read.task_id, read.reason, read.text, read.origin) == (ONE, "invalid_request", "why", "high-3@12345")
    assert (read.source_topic, read.source_partition, read.source_offset, read.source_timestamp_ms) == (
        "tasks.requests.high",
        3,
        12345,
        NOW_MS,
    )
    assert (read.value, read.value_bytes, read.attempt, read.worker) == (value, len(value), 3, "worker-1")
    assert read.headers == (("traceparent", b"00-1"), ("x", b"\xff"))
    assert read.failed_at == "2026-11-24T07:26:00.123Z"
    assert (read.partition, read.offset, read.timestamp_ms, read.headers_dropped) == (0, 9, NOW_MS + 5, 0)


def test_a_record_without_a_task_id_keeps_its_own_key() -> None:
    key, _, headers = _dead(_letter(b"x", key=b"customer-7"))
    assert key == b"customer-7"
    read = decode_dead(0, 0, 0, key, b"x", headers)
    assert (read.task_id, read.key) == ("", b"customer-7")
    assert _dead(_letter(b"x"))[0] is None


def test_the_original_key_is_kept_beside_the_task_id() -> None:
    key, value, headers = _dead(_letter(_text(task_id=ONE, ordering_key="k"), key=b"k"))
    assert key == ONE.encode()
    assert decode_dead(0, 0, 0, key, value, headers).key == b"k"


@pytest.mark.parametrize("spare", range(-400, 401, 16))
def test_a_record_near_the_limit_fits_as_a_letter_or_as_a_reference(spare: int) -> None:
    limit = 20_000
    letter = _letter(b"\xff" * (limit - 600 + spare), key=ONE.encode(), text="ä" * 50_000)
    key, value, headers = _dead(letter, limit)
    assert _size(key, value, headers) <= limit
    read = decode_dead(0, 0, 0, key, value, headers)
    assert read.value_bytes == len(letter.record.value)
    assert read.value in (None, letter.record.value)
    assert (read.value is None) == (value == b"")


def test_a_letter_that_the_broker_refused_is_sent_as_a_reference() -> None:
    key, value, headers = _dead(_letter(b"small", reference=True))
    assert value == b""
    read = decode_dead(0, 0, 0, key, value, headers)
    assert (read.value, read.value_bytes) == (None, 5)


def test_huge_keys_and_headers_do_not_make_a_letter_that_no_broker_takes() -> None:
    headers = [("h" * 500, b"v" * 500)] * 100 + [("last", b"x" * 900_000)]
    key, value, written = _dead(_letter(b"y" * 900_000, key=b"k" * 900_000, headers=headers))
    assert _size(key, value, written) <= 1_000_000
    read = decode_dead(0, 0, 0, key, value, written)
    assert read.value_bytes == 900_000
    assert read.headers_dropped > 0
    assert len(read.headers) + read.headers_dropped == 101


def test_a_letter_keeps_the_end_of_its_traceback_when_it_is_asked_to() -> None:
    letter = _letter(b"x" * 100)
    letter.traceback = "é" * 20_000 + "\ud800 ValueError: the end"
    for limit in (2_500, 100_000):
        more: dict[str, Any] = {"value_bytes_max": limit, "worker": "w", "failed_at_ms": 0}
        assert decode_dead(0, 0, 0, *encode_dead(letter, TopicNames(), **more)).traceback is None
        key, value, headers = encode_dead(letter, TopicNames(), **more, traceback=True)
        assert _size(key, value, headers) <= limit
        read = decode_dead(0, 0, 0, key, value, headers)
        assert (read.value, (read.traceback or "")[-8:]) == (b"x" * 100, " the end")
        assert len((read.traceback or "").encode()) <= 16_384


def test_headers_of_an_earlier_letter_are_not_mixed_with_its_own() -> None:
    key, value, headers = _dead(_letter(b"x", headers=[("streamtask-reason", b"old"), ("x", b"1")]))
    read = decode_dead(0, 0, 0, key, value, headers)
    assert (read.reason, read.headers) == ("invalid_request", (("x", b"1"),))


def test_a_record_that_is_no_dead_letter_is_refused() -> None:
    for headers in (None, [], [("x", b"1")]):
        with pytest.raises(DecodeError):
            decode_dead(0, 0, 0, None, b"x", headers)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=3_000),
    st.none() | st.binary(max_size=2_000),
    st.lists(st.tuples(st.text(min_size=1, max_size=30), st.none() | st.binary(max_size=300)), max_size=10),
    st.text(max_size=2_000),
    st.integers(2_500, 8_000),
)
def test_every_letter_stays_within_the_limit_and_is_read_back(
    value: bytes, key: bytes | None, headers: list[tuple[str, bytes | None]], text: str, limit: int
) -> None:
    letter = _letter(value, key=key, headers=headers, text=text)
    key_out, value_out, headers_out = _dead(letter, limit)
    assert _size(key_out, value_out, headers_out) <= limit
    read = decode_dead(1, 2, 3, key_out, value_out, headers_out)
    assert read.value in (None, value)
    assert read.value_bytes == len(value)
    assert text.startswith(read.text)


# --- Results ----------------------------------------------------------------------------------------------------------


class _Model(BaseModel):
    lines: int = 1
    ratio: float | None = None


@dataclass
class _Plain:
    path: Path
    inner: _Model


class _Typed(TypedDict):
    when: datetime


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        (True, True),
        ({"a": [1, 2.5, "ä𝄞", None]}, {"a": [1, 2.5, "ä𝄞", None]}),
        ("NaN and null and Infinity", "NaN and null and Infinity"),
        (2**70, 2**70),
        (_Model(), {"lines": 1, "ratio": None}),
        (_Plain(Path("/x"), _Model(ratio=0.5)), {"path": "/x", "inner": {"lines": 1, "ratio": 0.5}}),
        (_Typed(when=from_ms(NOW_MS)), {"when": "2026-11-24T07:26:00.123000Z"}),
        (UUID(ONE), ONE),
        (TaskStatus.FAILED, "failed"),
        ((1, 2), [1, 2]),
        ({1: 2}, {"1": 2}),
    ],
)
def test_what_a_handler_may_return(value: Any, wanted: Any) -> None:
    assert json.loads(encode_result(value)) == wanted


def _circular() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class _Spiteful:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


def _failing() -> Any:
    yield 1
    raise RuntimeError("half way")


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        {"a": [math.inf]},
        _Model(ratio=math.nan),
        {"a": _Model(ratio=math.inf)},
        [_Plain(Path("/"), _Model(ratio=-math.inf))],
        object(),
        ValueError("x"),
        lambda: 1,
        b"\xff",
        "\ud800",
        {"\ud800": 1},
        _circular(),
        _nested(121),
        _nested(5_000),
        _Spiteful(),
        _failing(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_json_is_refused_as_not_serializable(value: Any) -> None:
    with pytest.raises(DecodeError) as caught:
        encode_result(value)
    assert caught.value.code == "not_serializable"
    assert len(str(caught.value)) <= 1_000


def test_the_deepest_result_that_is_taken_is_read_by_every_reader_of_ours() -> None:
    value = encode_status(_event(TaskStatus.COMPLETED, result=encode_result(_nested(120))), locale="en", worker="w")
    assert decode_status(value).result == _nested(120)
    assert peek_status(value)["result"] == _nested(120)
