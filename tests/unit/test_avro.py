"""Avro says what JSON says: golden bytes of every version, JSON ⇄ model ⇄ Avro, and what is no Avro."""

from __future__ import annotations

import json
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.codec import (
    RequestDecoder,
    avro,
    decode_control,
    decode_status,
    encode_control,
    encode_request,
    encode_status,
    peek_status,
    schema,
)
from streamtask.codec.formats import Encoder, avro_encoder
from streamtask.codec.reader import PLAIN
from streamtask.codec.wire import AVRO_MAGIC
from streamtask.config import TopicNames
from streamtask.domain.model import (
    ControlAction,
    ControlMessage,
    RequestRecord,
    StatusEvent,
    TaskRequest,
    TaskStatus,
    from_ms,
)
from streamtask.errors import DecodeError
from streamtask.schema_registry.subjects import documents

NAMES = TopicNames()
ENCODER = avro_encoder(documents(NAMES))
HIGH = NAMES.requests[0]
DECODER = RequestDecoder(NAMES, "cluster-1")
NOW_MS = 1_795_505_160_123
ONE = "0192f0c1-2b3c-7d4e-8f50-112233445566"
GOLDEN = [
    (version, path.name) for version in schema.versions() for path in sorted(schema.directory(version).glob("*.avro"))
]


def _decode(value: bytes, key: bytes | None = None) -> RequestRecord:
    return DECODER.decode(0, 3, 12345, NOW_MS, key, value, None)


def _single(document: str, **fields: Any) -> bytes:
    return avro.write(document, fields, avro.single_header(document))


def _problem(value: bytes) -> str:
    record = _decode(value)
    assert record.request is None
    assert record.problem is not None
    assert record.problem[0] == "invalid_request"
    assert record.value == value, "its dead letter has the bytes as they came"
    return record.problem[1]


# --- Golden bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "name"), GOLDEN, ids=lambda held: held)
def test_the_golden_bytes_of_every_version_mean_what_their_json_sample_means(version: str, name: str) -> None:
    value = (schema.directory(version) / name).read_bytes()
    sample = schema.directory() / "samples" / version / name.replace(".avro", ".json")
    document = name.partition(".")[0]
    meant = json.loads(PLAIN.json(document, value))
    wanted = json.loads(sample.read_bytes())
    if document == "task_control":
        wanted.setdefault("task_id", ONE)
    assert meant.pop("description", "") == wanted.pop("description", "")
    assert meant == wanted


def test_every_json_sample_has_its_golden_avro() -> None:
    for version in schema.versions():
        samples = {path.stem for path in (schema.directory() / "samples" / version).glob("*.json")}
        assert samples == {path.stem for path in schema.directory(version).glob("*.avro")}


def test_the_fingerprints_are_those_of_the_specification() -> None:
    # "int" and "null" by the Avro specification's own algorithm; ours as Java's SchemaNormalization has them.
    assert avro.fingerprint_of("int") == bytes.fromhex("8f5c393f1ad57572")  # type: ignore[arg-type]
    assert avro.fingerprint_of("null") == bytes.fromhex("8a8f25cce724dd63")  # type: ignore[arg-type]
    fingerprints = {name: avro.fingerprint_of(schema.read(name, "v1")).hex() for name in schema.names("v1")}
    assert fingerprints == {
        "task_control": "97ad771c43a34f5d",
        "task_request": "533c7e568660c5cb",
        "task_response": "713b98ce0ce5af45",
    }


# --- JSON ⇄ model ⇄ Avro ----------------------------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_times = st.integers(0, 4_102_444_800_000).map(from_ms)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=10,
)
_requests = st.builds(
    TaskRequest,
    task_type=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    description=_texts,
    parameters=st.none() | st.dictionaries(_texts, _json, max_size=4),
    priority=st.none() | st.integers(1, 10),
    timeout_seconds=st.none() | st.floats(0.001, 1e9),
    task_id=st.none() | st.uuids().map(str),
    created_at=st.none() | _times,
    expires_at=st.none() | _times,
    not_before=st.none() | _times,
    tenant=st.none() | _texts,
    idempotency_key=st.none() | _texts,
    labels=st.none() | st.dictionaries(_texts, _texts, max_size=3),
)
_events = st.builds(
    StatusEvent,
    task_id=st.uuids().map(str),
    partition=st.just(3),
    status=st.sampled_from(TaskStatus),
    created_ms=st.integers(0, 4_102_444_800_000),
    updated_ms=st.integers(0, 4_102_444_800_000),
    origin=st.just("high-3@12345"),
    task_type=st.none() | _texts,
    priority=st.none() | st.integers(1, 10),
    attempt=st.none() | st.integers(1, 2**31 - 1),
    progress=st.none() | st.floats(0, 1),
    result=st.none() | _json.map(lambda held: json.dumps(held).encode()),
    error=st.none() | _texts,
    error_code=st.none() | st.just("handler_error"),
    exception=st.none() | _texts,
    traceback=st.none() | _texts,
    message=st.none() | _texts,
    started_ms=st.none() | st.integers(0, 4_102_444_800_000),
    finished_ms=st.none() | st.integers(0, 4_102_444_800_000),
    labels=st.none() | st.dictionaries(_texts, _texts, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(_requests)
def test_a_request_means_the_same_in_avro_and_in_json(request: TaskRequest) -> None:
    by_avro, by_json = _decode(ENCODER.request(HIGH, request)), _decode(encode_request(request))
    assert by_avro.problem is None, by_avro.problem
    assert by_avro.request == by_json.request
    assert (by_avro.task_id, by_avro.priority, by_avro.created_ms) == (
        by_json.task_id,
        by_json.priority,
        by_json.created_ms,
    )
    assert by_avro.request is not None
    assert encode_request(by_avro.request) == encode_request(request)


@settings(max_examples=150, deadline=None)
@given(_events, st.sampled_from(["en", "zh"]))
def test_a_status_event_means_the_same_in_avro_and_in_json(event: StatusEvent, locale: str) -> None:
    text = encode_status(event, locale=locale, worker="w")
    value = ENCODER.status(NAMES.status, event, locale=locale, worker="w")
    assert value[:2] == AVRO_MAGIC
    assert decode_status(value) == decode_status(text)
    assert peek_status(value) == peek_status(text)


@settings(max_examples=50, deadline=None)
@given(st.uuids().map(str), st.none() | _times, st.none() | _texts)
def test_a_control_message_means_the_same_in_avro_and_in_json(
    task_id: str, when: datetime | None, why: str | None
) -> None:
    message = ControlMessage(task_id=task_id, action=ControlAction.CANCEL, created_at=when, reason=why)
    value = ENCODER.control(NAMES.control, message)
    assert value[:2] == AVRO_MAGIC
    assert decode_control(task_id.encode(), value) == decode_control(task_id.encode(), encode_control(message))


def test_what_was_not_given_is_null_and_null_is_absent() -> None:
    record = _decode(_single(avro.REQUEST, task_type="census"))
    assert record.request == TaskRequest(task_type="census")
    assert json.loads(PLAIN.json(avro.REQUEST, _single(avro.REQUEST, task_type="x"))) == {
        "task_type": "x",
        "description": "",
    }


def test_times_are_cut_to_milliseconds_in_both_formats() -> None:
    request = TaskRequest(task_type="x", created_at=datetime(2026, 11, 24, 7, 26, 0, 123_999, UTC))
    by_avro, by_json = _decode(ENCODER.request(HIGH, request)), _decode(encode_request(request))
    assert by_avro.created_ms == by_json.created_ms == NOW_MS


def test_an_invalid_request_in_avro_is_refused_in_the_words_of_json_and_names_its_task() -> None:
    value = _single(avro.REQUEST, task_type="census", priority=11, task_id=ONE)
    by_json = _decode(orjson.dumps({"task_type": "census", "priority": 11, "task_id": ONE}))
    record = _decode(value)
    assert record.problem == by_json.problem
    assert record.task_id == by_json.task_id == ONE


def test_json_text_inside_avro_cannot_add_fields_beside_itself() -> None:
    assert "parameters" in _problem(_single(avro.REQUEST, task_type="x", parameters='{},"priority":10'))
    assert "parameters" in _problem(_single(avro.REQUEST, task_type="x", parameters=""))
    assert "parameters" in _problem(_single(avro.REQUEST, task_type="x", parameters="[1]"))
    assert _decode(_single(avro.REQUEST, task_type="x", parameters="null")).request == TaskRequest(task_type="x")


def test_what_json_cannot_say_is_refused_in_avro_too() -> None:
    for number in (float("nan"), float("inf")):
        assert "timeout_seconds" in _problem(_single(avro.REQUEST, task_type="x", timeout_seconds=number))
    for ms in (2**62, -(2**62)):
        assert "created_at" in _problem(_single(avro.REQUEST, task_type="x", created_at=ms))
    value = _single(avro.REQUEST, task_type="x", task_id=ONE, parameters="not JSON")
    assert _decode(value).task_id == ONE, "its owner is told"


# --- What is no Avro --------------------------------------------------------------------------------------------------


def test_every_beginning_of_an_avro_record_is_refused_as_truncated() -> None:
    request = TaskRequest(task_type="census", parameters={"path": "a.py"}, priority=8, labels={"a": "b"})
    value = ENCODER.request(HIGH, request)
    for size in range(2, len(value)):
        assert "Avro" in _problem(value[:size])
    assert "bytes follow" in _problem(value + b"\x00")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_behind_a_known_header_make_decode_raise(body: bytes) -> None:
    record = _decode(avro.single_header(avro.REQUEST) + body)
    assert (record.problem is None) == (record.request is not None)


def test_an_unknown_fingerprint_is_named_with_ours_beside_it() -> None:
    text = _problem(b"\xc3\x01" + b"\x11" * 8 + b"\x02a")
    assert "1111111111111111" in text
    assert "533c7e568660c5cb" in text


def test_a_document_of_another_kind_is_refused_by_its_name() -> None:
    control = ENCODER.control(NAMES.control, ControlMessage(task_id=ONE, action=ControlAction.CANCEL))
    assert _problem(control) == "Avro of a task_control; a task_request is needed"
    with pytest.raises(DecodeError, match="Avro of a task_request"):
        decode_status(ENCODER.request(HIGH, TaskRequest(task_type="x")))


@pytest.mark.parametrize("value", [b"\xc3", b"\xc3\x02abc", b"\xc3\x28"])
def test_bytes_that_only_look_like_a_magic_are_no_json(value: bytes) -> None:
    assert "not JSON" in _problem(value)


# --- The encoder ------------------------------------------------------------------------------------------------------


def _event(**fields: Any) -> StatusEvent:
    known = {"task_id": ONE, "partition": 3, "status": TaskStatus.FAILED, "created_ms": NOW_MS, "updated_ms": NOW_MS}
    return StatusEvent(**{**known, "origin": "high-3@1", **fields})


def test_a_status_event_with_lone_surrogates_is_written_readably() -> None:
    event = _event(error="file \udcff", error_code="handler_error", exception="E\ud800", labels={"a": "b"})
    value = ENCODER.status(NAMES.status, event, locale="en", worker="w")
    assert value[:2] == AVRO_MAGIC
    assert decode_status(value) == decode_status(encode_status(event, locale="en", worker="w"))


def test_a_status_event_that_avro_cannot_hold_goes_out_as_json() -> None:
    event = _event(attempt=2**63)
    value = ENCODER.status(NAMES.status, event, locale="en", worker="w")
    assert json.loads(value)["status"] == "failed"


def test_a_request_that_avro_cannot_hold_is_refused_before_it_is_sent() -> None:
    for held in (object(), float("nan"), "\ud800"):
        with pytest.raises(DecodeError, match="parameters: the value cannot be written"):
            ENCODER.request(HIGH, TaskRequest(task_type="x", parameters={"n": held}))


def test_without_a_header_for_its_topic_a_record_is_json() -> None:
    encoder = Encoder()
    assert encoder.json
    event = _event()
    text = encode_status(event, locale="en", worker="w")
    assert encoder.status(NAMES.status, event, locale="en", worker="w") == text
    assert encoder.status_writer(NAMES.status, locale="en", worker="w")(event) == text
    assert encoder.request(HIGH, TaskRequest(task_type="x")) == b'{"task_type":"x"}'
    assert encoder.control(NAMES.control, ControlMessage(task_id=ONE, action=ControlAction.CANCEL))[:1] == b"{"


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_producer_on_the_page_writes_what_we_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "task_request.avsc").write_text(schema.text("task_request"))
    monkeypatch.chdir(tmp_path)
    held: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the page leaves its file to the interpreter
        exec(block, held)
    record = _decode(held["value"])
    assert record.request == TaskRequest(task_type="file_census", parameters={"path": "a.py"}, priority=8)
