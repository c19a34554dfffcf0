"""Which dead letters are run again, and as what. Letters are written by the worker's own encoder."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from streamtask.codec import DeadRecord, RequestDecoder, decode_dead, decode_request_strict, encode_dead
from streamtask.codec.formats import avro_encoder
from streamtask.config import TopicNames
from streamtask.domain.identity import new_task_id, redriven
from streamtask.domain.model import DeadLetter, TaskRequest
from streamtask.domain.partitioner import partition_of
from streamtask.redrive import REDRIVE_OF, Builder, Choice, Plan, Redrive, Refusal, plan, select
from streamtask.schema_registry.subjects import documents

NAMES = TopicNames()
CLUSTER = "cluster-1"
PARTITIONS = 4
NOW_MS = 1_795_505_160_123
OLD = "0192f0c1-2b3c-7d4e-8f50-112233445566"
DECODER = RequestDecoder(NAMES, CLUSTER)
BUILDER = Builder(NAMES, CLUSTER, PARTITIONS)
A_TASK = {"task_type": "census", "task_id": OLD, "parameters": {"path": "a.py"}, "priority": 9}


def a_letter(
    request: dict[str, Any] | bytes,
    *,
    reason: str = "handler_error",
    text: str = "ValueError: no",
    band: int = 0,
    partition: int = 3,
    offset: int = 70,
    key: bytes | None = None,
    headers: tuple[tuple[str, bytes], ...] = (),
    place: tuple[int, int] = (1, 9),
    failed_ms: int = NOW_MS,
    bytes_max: int = 1_000_000,
) -> DeadRecord:
    value = request if isinstance(request, bytes) else orjson.dumps(request)
    record = DECODER.decode(band, partition, offset, NOW_MS - 5_000, key, value, headers)
    origin = f"{NAMES.bands[band].name}-{partition}@{offset}"
    letter = DeadLetter(record, reason, text, origin, record.task_id)
    held, value, own = encode_dead(letter, NAMES, value_bytes_max=bytes_max, worker="w", failed_at_ms=failed_ms)
    return decode_dead(*place, failed_ms + 7, held, value, own)


def made(letter: DeadRecord, builder: Builder = BUILDER) -> Redrive:
    item = builder.build(letter, NOW_MS)
    assert isinstance(item, Redrive), item
    return item


def refused(letter: DeadRecord) -> str:
    item = BUILDER.build(letter, NOW_MS)
    assert isinstance(item, Refusal), item
    return item.why


def request_of(item: Redrive) -> dict[str, Any]:
    return dict(orjson.loads(item.value))


# --- Building ---------------------------------------------------------------------------------------------------------


def test_a_redrive_is_the_old_request_with_a_new_id_and_a_label_that_names_the_old_one() -> None:
    full = {
        **A_TASK,
        "description": "量",
        "timeout_seconds": 2.5,
        "created_at": "2026-11-24T07:00:00.000Z",
        "expires_at": "2036-11-24T07:26:00.123Z",
        "tenant": "acme",
        "idempotency_key": "k",
        "ordering_key": "customer-7",
        "labels": {"team": "blue"},
        "of_a_newer_release": {"n": [1, 2]},
    }
    item = made(a_letter(full))
    assert item.task_id == redriven("tasks.dead", 1, 9, NOW_MS + 7)
    assert (item.topic, item.partition, item.notes) == ("tasks.requests.high", 3, ())
    del full["created_at"]
    assert request_of(item) == {**full, "task_id": item.task_id, "labels": {"team": "blue", REDRIVE_OF: OLD}}


def test_the_same_letter_gives_the_same_task_and_another_letter_another_one() -> None:
    letter = a_letter(A_TASK)
    assert made(letter).task_id == made(letter).task_id
    assert made(letter).task_id != made(a_letter(A_TASK, place=(1, 10))).task_id
    assert made(letter).task_id != made(a_letter(A_TASK, failed_ms=NOW_MS + 1)).task_id


def test_what_was_not_given_is_not_added() -> None:
    item = made(a_letter({"task_type": "census"}, band=2, headers=(("task_id", OLD.encode()), ("team", b"x"))))
    assert request_of(item) == {"task_type": "census", "task_id": item.task_id, "labels": {REDRIVE_OF: OLD}}
    assert item.headers == [("team", b"x")]
    assert item.topic == "tasks.requests.low"


def test_the_trace_of_the_request_goes_on() -> None:
    trace = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert made(a_letter(A_TASK, headers=(trace,))).headers == [trace]


def test_a_request_that_named_no_id_is_known_by_its_derived_one() -> None:
    letter = a_letter({"task_type": "census"})
    assert request_of(made(letter))["labels"] == {REDRIVE_OF: letter.task_id}


def test_an_expiry_that_has_passed_is_left_out_and_said() -> None:
    item = made(a_letter({**A_TASK, "expires_at": "2026-01-02T03:04:05.678Z"}))
    assert "expires_at" not in request_of(item)
    assert item.notes == ("expires_at 2026-01-02T03:04:05.678Z has passed; omitted",)


def test_a_redrive_of_a_redrive_names_the_task_before_it() -> None:
    item = made(a_letter({**A_TASK, "labels": {REDRIVE_OF: new_task_id()}}))
    assert request_of(item)["labels"] == {REDRIVE_OF: OLD}


def test_whole_numbers_beyond_64_bits_keep_their_digits() -> None:
    value = b'{"task_type": "census", "parameters": {"n": 123456789012345678901234567890, "x": 1.0}}'
    assert b'"n":123456789012345678901234567890,"x":1.0' in made(a_letter(value)).value


def test_what_is_made_is_a_request_that_the_doors_take() -> None:
    item = made(a_letter({**A_TASK, "labels": {"a": "b"}}))
    request = decode_request_strict(item.value)
    assert (request.task_id, request.task_type, request.priority) == (item.task_id, "census", 9)
    record = BUILDER.record(item, 5, NOW_MS)
    assert (record.task_id, record.problem, record.band, record.partition) == (item.task_id, None, 0, 3)


def test_a_request_in_avro_is_redriven_in_json() -> None:
    request = TaskRequest(task_type="census", task_id=OLD, parameters={"path": "a.py"}, priority=9)
    item = made(a_letter(avro_encoder(documents(NAMES)).request(NAMES.requests[0], request)))
    assert {name: held for name, held in request_of(item).items() if held not in (None, "")} == {
        **A_TASK,
        "task_id": item.task_id,
        "labels": {REDRIVE_OF: OLD},
    }


def test_a_key_is_kept_where_it_belongs_and_left_out_where_it_does_not() -> None:
    key = next(b"k%d" % n for n in range(100) if partition_of(b"k%d" % n, PARTITIONS) == 3)
    assert made(a_letter(A_TASK, key=key)).key == key
    assert made(a_letter(A_TASK, key=key, partition=2)).key is None
    assert made(a_letter(A_TASK, key=key, partition=2)).partition == 2


# --- Refusing ---------------------------------------------------------------------------------------------------------


def test_a_letter_that_only_refers_to_its_bytes_is_refused_with_their_place() -> None:
    why = refused(a_letter({**A_TASK, "description": "x" * 5_000}, bytes_max=3_000))
    assert "reference" in why
    assert "tasks.requests.high-3@70" in why


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (b"not json", "not JSON"),
        (b'{"task_type": "census", "priority": 11}', "priority"),
        (b'{"task_type": "census", "task_id": "no-uuid"}', "UUID"),
        (b"\xc3\x01truncated", ""),
        (b"\x00\x00\x00\x00\x07x", "registry_url"),
    ],
)
def test_what_could_not_be_read_then_cannot_be_read_now(value: bytes, word: str) -> None:
    why = refused(a_letter(value, reason="invalid_request"))
    assert why.startswith("cannot be read: ")
    assert word in why


def test_a_letter_of_another_prefix_or_of_a_partition_that_is_gone_is_refused() -> None:
    other = Builder(TopicNames("other"), CLUSTER, PARTITIONS).build(a_letter(A_TASK), NOW_MS)
    assert isinstance(other, Refusal)
    assert "prefix other" in other.why
    fewer = Builder(NAMES, CLUSTER, 3).build(a_letter(A_TASK), NOW_MS)
    assert isinstance(fewer, Refusal)
    assert "no longer has partition 3" in fewer.why


def test_a_request_without_room_for_a_label_is_refused() -> None:
    full = {f"l{n}": "" for n in range(64)}
    assert "64 labels" in refused(a_letter({**A_TASK, "labels": full}))


# --- Choosing ---------------------------------------------------------------------------------------------------------


def planned(letters: list[DeadRecord], **choice: Any) -> Plan:
    return plan(letters, Choice(**choice), BUILDER, NOW_MS)


def test_ids_name_the_old_task_or_its_request() -> None:
    mine, other = a_letter(A_TASK), a_letter({**A_TASK, "task_id": new_task_id()}, offset=71, place=(1, 10))
    for one in (OLD, "high-3@70"):
        assert select([mine, other], Choice(ids=frozenset({one}))) == [mine]
    found = planned([mine, other], ids=frozenset({OLD, "high-0@1"}))
    assert ([item.letter for item in found.ready], found.missing) == ([mine], ["high-0@1"])


def test_filters_must_all_hold() -> None:
    letter = a_letter(A_TASK, reason="timeout", text="took longer than 3 s")
    holds = {"code": "timeout", "text": "LONGER", "since_ms": NOW_MS, "until_ms": NOW_MS + 1, "task_type": "census"}
    assert len(planned([letter], **holds).ready) == 1
    wrong = {"code": "expired", "text": "shorter", "since_ms": NOW_MS + 1, "until_ms": NOW_MS, "task_type": "other"}
    for name, held in wrong.items():
        found = planned([letter], **{**holds, name: held})
        assert (found.ready, found.refused) == ([], []), name


def test_a_letter_whose_type_nobody_can_read_is_named_and_not_dropped_by_a_filter_of_types() -> None:
    found = planned([a_letter(b"garbage", reason="invalid_request")], task_type="census")
    assert len(found.refused) == 1


def test_a_duplicate_runs_only_when_it_is_meant() -> None:
    letter = a_letter(A_TASK, reason="duplicate")
    for vague in ({"ids": frozenset({OLD})}, {"task_type": "census"}):
        found = planned([letter], **vague)
        assert (len(found.ready), len(found.refused)) == (0, 1)
        assert "duplicate" in found.refused[0].why
    for meant in ({"ids": frozenset({letter.origin})}, {"code": "duplicate"}):
        assert len(planned([letter], **meant).ready) == 1


def test_requests_are_redriven_in_the_order_in_which_they_were_made() -> None:
    places = [(2, 0, 1), (1, 3, 7), (1, 3, 30), (0, 3, 4), (1, 2, 100), (0, 3, 100)]
    letters = [
        a_letter({"task_type": "census"}, band=band, partition=partition, offset=offset, place=(offset % 3, offset))
        for band, partition, offset in places
    ]
    ready = planned(letters, code="handler_error").ready
    assert [(item.band, item.partition, item.letter.source_offset) for item in ready] == sorted(places)
