"""Whatever other services put into the bands ends as the contract says, and blocks nobody.

Every bad record is produced raw, a good one before and after it in the same partition. Each bad one ends in a FAILED
with its dead letter, in a dead letter alone (no task_id can be read), or as an ordinary task (it only looked bad).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streamtask.domain.identity import derived
from streamtask.errors import RequestRefused, SubmitError
from streamtask.kafka import admin
from tests.acceptance.harness import PATIENT, WAIT_S, Bench, until
from tests.payloads import incompressible

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

FAILED, DEAD, DONE = "failed", "dead only", "completed"


def _json(**fields: Any) -> bytes:
    return json.dumps({"task_type": "noop", **fields}).encode()


def _nested(depth: int) -> bytes:
    return b'{"task_type":"noop","parameters":{"n":' + b"[" * depth + b"]" * depth + b"}}"


PLANES = "".join(chr(plane * 0x10000 + 0x1F0) for plane in range(17)) + "任务\u0001\u0000\u001f\u007f"

# name: (value, how it ends, its code)
CASES: dict[str, tuple[bytes | None, str, str]] = {
    "not JSON": (b"not json", FAILED, "invalid_request"),
    "a list": (b"[1, 2]", FAILED, "invalid_request"),
    "a number": (b"5", FAILED, "invalid_request"),
    "empty": (b"", FAILED, "invalid_request"),
    "null value": (None, FAILED, "invalid_request"),
    "avro": (b"\xc3\x01" + b"\x00" * 20, FAILED, "invalid_request"),
    "confluent": (b"\x00\x00\x00\x00\x01abc", FAILED, "invalid_request"),
    "not UTF-8": (b'{"task_type": "\xff\xfe"}', FAILED, "invalid_request"),
    "no task_type": (b"{}", FAILED, "invalid_request"),
    "empty task_type": (_json(task_type=""), FAILED, "invalid_request"),
    "long task_type": (_json(task_type="x" * 256), FAILED, "invalid_request"),
    "task_type is a number": (_json(task_type=5), FAILED, "invalid_request"),
    "unknown task_type": (_json(task_type="nobody"), FAILED, "unknown_task_type"),
    "parameters is a list": (_json(parameters=[1]), FAILED, "invalid_request"),
    "priority 0": (_json(priority=0), FAILED, "invalid_request"),
    "priority 11": (_json(priority=11), FAILED, "invalid_request"),
    "priority text": (_json(priority="5"), FAILED, "invalid_request"),
    "priority 5.5": (_json(priority=5.5), FAILED, "invalid_request"),
    "priority true": (_json(priority=True), FAILED, "invalid_request"),
    "priority 5.0": (_json(priority=5.0), DONE, ""),
    "priority of another band": (_json(priority=10), DONE, ""),
    "timeout 0": (_json(timeout_seconds=0), FAILED, "invalid_request"),
    "timeout -1": (_json(timeout_seconds=-1), FAILED, "invalid_request"),
    "timeout NaN": (b'{"task_type":"noop","timeout_seconds":NaN}', FAILED, "invalid_request"),
    "timeout Infinity": (b'{"task_type":"noop","timeout_seconds":1e999}', FAILED, "invalid_request"),
    "NaN in parameters": (b'{"task_type":"noop","parameters":{"n":NaN}}', FAILED, "invalid_request"),
    "key and not_before": (
        _json(ordering_key="k", not_before="2026-11-24T00:00:00Z"),
        FAILED,
        "invalid_request",
    ),
    "wrong parameters": (_json(parameters={"other": 1}), FAILED, "invalid_parameters"),
    "planes and controls": (_json(description=PLANES, labels={"名": PLANES[:100]}), DONE, ""),
    "unknown fields": (_json(foo={"bar": 1}), DONE, ""),
    "nested 50": (_nested(50), FAILED, "invalid_parameters"),
    "nested 100000": (_nested(100_000), FAILED, "invalid_request"),
    "an hour late": (_json(created_at=(datetime.now(UTC) - timedelta(hours=1)).isoformat()), DONE, ""),
    "an hour early": (_json(created_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat()), DONE, ""),
    "a year early": (_json(created_at=(datetime.now(UTC) + timedelta(days=365)).isoformat()), DONE, ""),
}


def test_every_bad_record_ends_as_the_contract_says_and_nothing_blocks(bench: Bench) -> None:
    bench.worker(PATIENT, engine={"unknown_type_grace_ms": 500})
    ids: dict[str, str] = {}
    origins: dict[str, str] = {}
    good: list[str] = []
    for number, (name, (value, _, _)) in enumerate(CASES.items()):
        ids[name] = str(uuid.uuid4())
        origins[name] = bench.produce(value, ids[name].encode(), partition=number % 4)
        good.append(str(uuid.uuid4()))
        bench.produce(_json(parameters={"n": number}), good[-1].encode(), partition=number % 4)
    assert {end.status for end in bench.ends(good, 60).values()} == {"completed"}
    wrong = {}
    for name, (value, ending, code) in CASES.items():
        end = bench.end(ids[name])
        expected = ("completed", None) if ending == DONE else ("failed", code)
        if (end.status, end.code) != expected:
            wrong[name] = end.event
            continue
        if ending == FAILED:
            assert bench.statuses(ids[name]) == ["created", "running", "failed"]
            letter = bench.letter(origins[name])
            assert (letter.reason, letter.value) == (code, value or b"")
    assert not wrong
    early = bench.history(ids["an hour early"])
    assert early[-1].event.updated_at is not None
    assert early[-1].event.created_at is not None
    assert early[-1].event.updated_at >= early[-1].event.created_at, "floored at created_at"
    year = bench.history(ids["a year early"])[0].event
    assert year.created_at is not None
    assert abs((year.created_at - datetime.now(UTC)).total_seconds()) < 600, "not plausible: the record's own time"
    after = bench.history(good[-1])[-1].event
    assert after.updated_at is not None
    assert (after.updated_at - datetime.now(UTC)).total_seconds() < 60, "one wrong clock does not drag the others"
    bench.finish()


def test_task_ids_that_are_missing_spelled_otherwise_or_no_uuid(bench: Bench) -> None:
    bench.worker(PATIENT)
    upper = str(uuid.uuid4()).upper()
    in_field = bench.produce(_json(task_id=upper), b"some key")
    in_header = str(uuid.uuid4())
    bench.produce(_json(), b"some key", headers=[("task_id", in_header.encode())])
    nowhere = bench.produce(_json(), None)
    bad = [
        bench.produce(_json(task_id="no uuid"), str(uuid.uuid4()).encode()),
        bench.produce(_json(task_id=5), None),
        bench.produce(_json(task_id=""), None),
        bench.produce(_json(), None, headers=[("task_id", b"no uuid")]),
    ]
    nobody = [
        bench.produce(b"not json", None),
        bench.produce(None, None),
        bench.produce(b"not json", b"\xff\x00 no uuid"),
    ]
    assert bench.end(upper.lower()).event.origin == in_field
    assert bench.end(in_header).status == "completed"

    def history_of(origin: str) -> list[Any]:
        return [seen for events in bench.histories().values() for seen in events if seen.event.origin == origin]

    until(lambda: any(seen.event.ended for seen in history_of(nowhere)), "the one without any id ends")
    for origin in (*bad, *nobody):
        letter = bench.letter(origin)
        assert (letter.reason, letter.task_id) == ("invalid_request", "")
        assert not history_of(origin), "there is no id to tell it under"
    assert bench.letter(nobody[2]).key == b"\xff\x00 no uuid"
    first = history_of(nowhere)[0]
    band, rest = nowhere.split("-")
    partition, offset = map(int, rest.split("@"))
    assert band == "normal"
    consumer = Consumer({"bootstrap.servers": bench.kafka.bootstrap, "group.id": "look"})
    consumer.assign([TopicPartition(bench.names.requests[1], partition, offset)])
    record = until(lambda: consumer.poll(0.2), "the record is read")
    consumer.close()
    cluster = admin.cluster_id(bench.kafka)
    same = derived(cluster, bench.names.requests[1], partition, offset, record.timestamp()[1])
    assert first.event.task_id == same, "whoever computes it"
    bench.finish()


def test_one_bad_clock_in_the_record_itself_is_taken_as_it_is(bench: Bench) -> None:
    bench.worker(PATIENT)
    now = time.time_ns() // 1_000_000
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for task_id, shift in zip(ids, (-3_600_000, 3_600_000, 0), strict=True):
        bench.produce(_json(), task_id.encode(), partition=0, timestamp_ms=now + shift)
    ends = bench.ends(ids)
    assert {end.status for end in ends.values()} == {"completed"}
    bench.finish()


def test_a_request_above_the_brokers_limit_is_refused_to_its_sender_and_nothing_else_is_hurt(bench: Bench) -> None:
    bench.worker(PATIENT)
    with pytest.raises((RequestRefused, SubmitError)):
        bench.client.submit("noop", {"n": incompressible(2_000_000)})
    with pytest.raises(AssertionError, match="MSG_SIZE_TOO_LARGE"):
        bench.produce(_json(description="x" * 2_000_000), None)
    assert bench.client.submit("noop", {"n": 1}).result(WAIT_S) == 1
    bench.finish()


def test_the_dead_letter_of_a_near_limit_record_fits_or_refers_to_it(bench: Bench) -> None:
    bench.worker(PATIENT)
    limit = admin.smallest_max_message_bytes(bench.kafka, (bench.names.requests[1],))
    origins = {}
    # Random digits: what compresses away would only seem to be near the limit.
    filler = uuid.uuid4().hex.encode() * (limit // 32)
    for short in (200, 1_000, 3_000, 20_000, 600_000):
        size = limit - short
        task_id = str(uuid.uuid4())
        origins[task_id] = (bench.produce(b"{" + filler[: size - 1], task_id.encode()), size)
    headers: list[tuple[str, str | bytes | None]] = [
        ("big", filler[:60_000]),
        ("traceparent", b"00-ab-cd-01"),
        ("null", None),
    ]
    crowded = str(uuid.uuid4())
    origins[crowded] = (bench.produce(b"{" + filler[:500_000], crowded.encode(), headers=headers), 500_001)
    for task_id, (origin, size) in origins.items():
        assert bench.end(task_id).code == "invalid_request"
        letter = bench.letter(origin)
        assert letter.value_bytes == size
        assert letter.value is None or len(letter.value) == size
        assert letter.source_topic == bench.names.requests[1]
    kept = {size: bench.letter(origin).value is not None for origin, size in origins.values()}
    assert kept[limit - 600_000], kept
    assert not kept[limit - 200], kept
    assert bench.letter(origins[crowded][0]).headers_dropped == 1
    bench.finish()


# --- Committed offsets that are not ours, or no longer fit --------------------------------------------------------------


def _done(bench: Bench, count: int, partition: int) -> list[str]:
    """Tasks of one partition of the normal band, run to their ends by a worker that has left since."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    for task_id in ids:
        bench.produce(_json(), task_id.encode(), partition=partition)
    worker = bench.worker(PATIENT)
    bench.ends(ids)
    assert worker.drain() == 0
    return ids


def _commit(bench: Bench, partition: int, offset: int, metadata: str) -> None:
    """What a foreign tool does to the group while no worker is there."""
    consumer = Consumer({"bootstrap.servers": bench.kafka.bootstrap, "group.id": bench.names.group})
    part = TopicPartition(bench.names.requests[1], partition, offset, metadata)

    def committed() -> bool:
        try:
            consumer.commit(offsets=[part], asynchronous=False)
        except KafkaException:
            return False
        return True

    until(committed, "the group takes a commit from outside")
    consumer.close()


def _foreign(bench: Bench) -> None:
    _commit(bench, 0, 2, "written by somebody else")


def _empty(bench: Bench) -> None:
    _commit(bench, 0, 0, "")


def _beyond(bench: Bench) -> None:
    _commit(bench, 0, 1_000, "written by somebody else")


def _missing(bench: Bench) -> None:
    client = AdminClient(bench.kafka.admin())

    def deleted() -> bool:
        try:
            client.delete_consumer_groups([bench.names.group])[bench.names.group].result(10)
        except KafkaException:
            return False
        return True

    until(deleted, "the group is deleted")


@pytest.mark.parametrize(
    "spoil",
    [_foreign, pytest.param(_empty, marks=pytest.mark.slow), _beyond, _missing],
    ids=["foreign", "empty", "beyond", "missing"],
)
def test_a_position_that_is_not_ours_is_recovered_and_nothing_runs_twice(
    bench: Bench, spoil: Callable[[Bench], None]
) -> None:
    old = _done(bench, 6, 0)
    spoil(bench)
    new = [str(uuid.uuid4()) for _ in range(3)]
    for task_id in new:
        bench.produce(_json(), task_id.encode(), partition=0)
    worker = bench.worker(PATIENT)
    ends = bench.ends(new)
    assert {end.status for end in ends.values()} == {"completed"}
    told = ("position_recovered", "position_unknown", "records_lost")
    assert any(worker.events(name) for name in told), "it is told"
    bench.finish()
    assert all(len(bench.starts(task_id)) == 1 for task_id in (*old, *new))


def test_our_own_position_beyond_the_log_end_goes_on_at_the_end_and_is_told(bench: Bench) -> None:
    """A log that was truncated: what was written above its end is gone, and what is written there next is new."""
    _done(bench, 3, 0)
    client = AdminClient(bench.kafka.admin())
    place = TopicPartition(bench.names.requests[1], 0)
    asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(bench.names.group, [place])])
    (committed,) = asked[bench.names.group].result(10).topic_partitions
    assert committed.offset == 3
    _commit(bench, 0, 1_000, committed.metadata)
    worker = bench.worker(PATIENT)
    told = until(lambda: worker.events("records_lost"), "it is told")
    assert (told[0]["from"], told[0]["to"]) == (3, 1_000)
    after = str(uuid.uuid4())
    bench.produce(_json(), after.encode(), partition=0)
    assert bench.end(after).status == "completed"
    bench.finish()


@pytest.mark.slow
def test_a_position_behind_the_log_start_goes_on_there_and_reports_the_gap(bench: Bench) -> None:
    _done(bench, 3, 0)
    lost = [str(uuid.uuid4()) for _ in range(4)]
    for task_id in lost:
        bench.produce(_json(), task_id.encode(), partition=0)
    client = AdminClient(bench.kafka.admin())
    place = TopicPartition(bench.names.requests[1], 0, 5)
    client.delete_records([place])[place].result(10)
    worker = bench.worker(PATIENT)
    ends = bench.ends(lost[2:])
    assert {end.status for end in ends.values()} == {"completed"}
    told = until(lambda: worker.events("records_lost"), "the gap is told")
    assert (told[0]["from"], told[0]["to"]) == (3, 5)
    bench.finish()
    assert not [task_id for task_id in lost[:2] if bench.starts(task_id)]
