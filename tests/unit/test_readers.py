"""Every reader of every topic takes any bytes: what is strange is passed over, counted, and raised by nobody.

READERS is the list of modules that read records (or make sense of what was read). A test finds them by the names they use and
fails when one is not on the list, or when a reader on it has no test that feeds it whatever may lie in a topic.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.audit.judge import Judge
from streamtask.audit.reading import Rounds
from streamtask.client.watching import StatusWatch
from streamtask.codec import RequestDecoder, avro, decode_dead, decode_status
from streamtask.codec.confluent import WriterSchema, writer_schema
from streamtask.codec.reader import Reader
from streamtask.codec.recalled import CLOCK_AHEAD_MAX_MS, read_recalled
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.core.ledger import Ledger
from streamtask.core.offset_map import ATTEMPT_MAX
from streamtask.core.shard import Shard
from streamtask.dev.follow import Follower, Lines
from streamtask.domain.identity import Origin
from streamtask.domain.model import from_ms
from streamtask.domain.ports import RecallStatus
from streamtask.errors import DecodeError
from streamtask.kafka.tail import TailRecord
from streamtask.observability import event_log
from streamtask.projection.feed import Heard
from streamtask.projection.materialize import Materializer, heard, read_status
from streamtask.projection.sqlite import SQLiteStore
from streamtask.projection.store import LIST_MAX, Filter
from streamtask.redrive.build import Builder, Choice, plan
from streamtask.schema_registry.cache import SchemaCache
from streamtask.worker import recovery
from streamtask.worker.producer_checks import Noticing, PassedOver

PACKAGE = Path(recovery.__file__).parents[1]
NAMES = TopicNames()
ID = "0192f0c1-2b3c-7d4e-8f50-112233445566"
SHARD = 3
NOW_MS = 1_795_505_160_123
KAFKA = KafkaSettings("nowhere:9")

# Who reads records, and the tests here that feed it; a text: why none is needed.
READERS: dict[str, tuple[str, ...] | str] = {
    "worker.loop": ("test_requests",),
    "kafka.consumer": ("test_requests",),
    "worker.producer_checks": ("test_requests", "test_control", "test_recall"),
    "testing.memory_worker": "its log holds what its own client has encoded",
    "worker.recovery": ("test_control", "test_recall"),
    "kafka.side_reader": "hands over what a Tail reads to recovery",
    "codec.recalled": ("test_recall",),
    "projection.materialize": ("test_the_view",),
    "query_service.past": ("test_the_past_of_a_stream",),
    "projection.source": "a Tail: bytes are not looked at",
    "client.watching": ("test_a_client_that_waits",),
    "audit.reading": ("test_the_audit",),
    "audit.judge": ("test_the_audit",),
    "projection.topic_scan": ("test_the_view", "test_requests", "test_dead_letters_and_their_redrive"),
    "redrive.run": ("test_requests", "test_dead_letters_and_their_redrive"),
    "redrive.build": ("test_dead_letters_and_their_redrive",),
    "dev.follow": ("test_a_development_session",),
    "schema_registry.cache": ("test_schemas_of_a_registry",),
    "schema_registry.subjects": "reads our own schemas",
    "testing.running": "of tests: it shows them what is strange",
    "kafka.tail": "hands over bytes; test_headers_that_cannot_be_read_are_none_and_those_of_other_records_are_read",
}
# Whoever uses one of these has a record in hand.
USED_BY_READERS = {
    *("Tail", "TailRecord", "consume", "RequestDecoder", "decode_status", "peek_status", "decode_control"),
    *("decode_dead", "peek_request", "read_status", "read_recalled", "writer_schema"),
}


def modules_that_read() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.startswith("codec.") and module != "codec.recalled":
            continue  # what readers read with: exercised through each of them
        tree = ast.parse(path.read_text())
        names = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(tree)}
        if names & USED_BY_READERS:
            yield module


def test_every_module_that_reads_records_is_on_the_list_and_has_its_test() -> None:
    assert set(modules_that_read()) == set(READERS)
    named = {test for tests in READERS.values() if not isinstance(tests, str) for test in tests}
    assert named <= set(globals())
    assert {name for name in globals() if name.startswith("test_")} >= named


# --- Whatever may lie in a topic --------------------------------------------------------------------------------------

STATUS = {
    "task_id": ID,
    "status": "running",
    "progress": 0.5,
    "created_at": "2026-11-24T07:26:00.123Z",
    "updated_at": "2026-11-24T07:26:00.123Z",
    "message": "running",
    "task_type": "hello",
    "priority": 8,
    "attempt": 1,
    "started_at": "2026-11-24T07:26:00.123Z",
    "worker": "w",
    "labels": {"a": "b"},
    "error_details": {"code": "timeout"},
    "origin": f"high-{SHARD}@17",
}
CONTROL = {"task_id": ID, "action": "cancel", "created_at": "2026-11-24T07:26:00.123Z", "reason": "no"}
REQUEST = {"task_type": "hello", "parameters": {"a": 1}, "priority": 5, "task_id": ID, "labels": {"a": "b"}}
REQUEST |= {"expires_at": "2026-11-24T07:26:00.123Z", "timeout_seconds": 3.5, "tenant": "t", "ordering_key": "k"}
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([-5, -1, 0, ATTEMPT_MAX, ATTEMPT_MAX + 1, 2**31, 2**63, 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(["", "yesterday", "2026-11-24T07:26:00", "9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00+23:59"]),
    st.sampled_from(
        [f"high-{SHARD}@17", "high-4@17", f"low-{SHARD}@{2**62}", f"high-{SHARD}@{10**18}", "x-0@1", "@", ID]
    ),
    st.sampled_from(["created", "running", "completed", "failed", "cancelled", "COMPLETED"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    st.just(DEEP),
    st.just("\ud800"),
)


def _json(document: dict[str, Any]) -> bytes:
    import json  # which writes what orjson does not: NaN, lone surrogates, whole numbers of any length

    return json.dumps(document).encode("utf-8", "surrogatepass")


def _documents(valid: dict[str, Any], kind: str) -> st.SearchStrategy[bytes | None]:
    """Any value of a record in a topic of such documents."""
    changed = st.dictionaries(st.sampled_from(sorted(valid)), STRANGE, max_size=3).map(lambda new: {**valid, **new})
    texts = changed.map(_json)
    bodies = st.binary(max_size=60)
    avro_of = st.builds(lambda body: avro.single_header(kind) + body, bodies)
    return st.one_of(
        st.none(),
        st.binary(max_size=60),
        texts,
        texts,
        st.builds(_bitten, texts, st.randoms(use_true_random=False)),
        avro_of,
        st.builds(_bitten, st.just(_AVRO[kind]), st.randoms(use_true_random=False)),
        st.builds(lambda at, body: b"\0" + at.to_bytes(4, "big") + body, st.integers(0, 3), bodies),
        st.just(b"[" * 100_000),
        st.just(b'{"task_id":' * 5_000),
    )


def _bitten(value: bytes, rng: random.Random) -> bytes:
    """A byte changed, or the end missing."""
    at = rng.randrange(len(value))
    return value[:at] if rng.random() < 0.3 else value[:at] + bytes([rng.randrange(256)]) + value[at + 1 :]


_AVRO = {
    avro.RESPONSE: avro.write(
        avro.RESPONSE,
        {"task_id": ID, "status": "completed", "result": "1", "created_at": NOW_MS, "updated_at": NOW_MS}
        | {"message": "done", "attempt": 2, "origin": f"high-{SHARD}@17"},
        avro.single_header(avro.RESPONSE),
    ),
    avro.CONTROL: avro.write(avro.CONTROL, {"task_id": ID, "action": "cancel"}, avro.single_header(avro.CONTROL)),
    avro.REQUEST: avro.write(avro.REQUEST, {"task_type": "hello"}, avro.single_header(avro.REQUEST)),
}
_FIELDS = '[{"name": "task_id", "type": "string"}, {"name": "attempt", "type": "long"}]'
_SCHEMA = f'{{"type": "record", "name": "R", "fields": {_FIELDS}}}'


def _source(schema_id: int) -> WriterSchema:
    """A registry that knows two schemas."""
    if schema_id == 1:
        return writer_schema(1, "AVRO", _SCHEMA, references=False)
    if schema_id == 2:
        return WriterSchema(2, None)
    raise DecodeError("there is none")


READER = Reader(_source)
STATUSES = _documents(STATUS, avro.RESPONSE)
CONTROLS = _documents(CONTROL, avro.CONTROL)
REQUESTS = _documents(REQUEST, avro.REQUEST)
KEYS = st.one_of(st.none(), st.just(ID.encode()), st.just(ID.upper().encode()), st.binary(max_size=40))
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["task_id", "traceparent", "x", *(f"streamtask-{n}" for n in ("reason", "topic", "partition"))])
        | st.sampled_from([f"streamtask-{n}" for n in ("offset", "timestamp", "value", "failed-at", "attempt", "key")]),
        st.binary(max_size=30)
        | st.sampled_from([b"-5", b"99999999999999999999", b"3", b"12345", NAMES.requests[0].encode(), b"reference"])
        | st.sampled_from([ID.encode(), b"handler_error", b"0001-01-01T00:00:00+23:59"]),
    ),
    max_size=8,
).map(tuple)
TIMESTAMPS = st.sampled_from([-1, 0, NOW_MS, 2**53, 2**62])
OFFSETS = st.sampled_from([0, 17, 2**40])


def _records(topic: str, values: st.SearchStrategy[bytes | None]) -> st.SearchStrategy[list[TailRecord]]:
    made = st.builds(TailRecord, st.just(topic), st.just(SHARD), OFFSETS, TIMESTAMPS, KEYS, values, HEADERS)
    return st.lists(made, max_size=4)


class Side:
    """A SideReader that has these records, once."""

    def __init__(self, records: list[TailRecord]) -> None:
        self._records = records

    def take(self, _topic: str) -> list[TailRecord]:
        records, self._records = self._records, []
        return records

    def reached(self, _mark: object) -> bool:
        return not self._records

    def mark(self, _topic: str) -> None: ...
    def read(self, _place: object) -> None: ...
    def pause(self, _place: object) -> None: ...
    def resume(self, _place: object) -> None: ...
    def drop(self, _place: object) -> None: ...


fuzz = settings(max_examples=150, derandomize=True)


# --- Each reader ------------------------------------------------------------------------------------------------------


@given(_records(NAMES.control, CONTROLS))
@fuzz
def test_control(records: list[TailRecord]) -> None:
    reader = recovery.ControlReader(Side(records), NAMES, READER)  # type: ignore[arg-type]
    reader.await_end((SHARD,))
    cancelled, ready = reader.poll()
    assert ready == [SHARD], "nothing holds the start up"
    assert all(len(one) == 36 for one in cancelled)
    assert len(cancelled) + reader.undecodable <= sum(record.value is not None for record in records)


@given(_records(NAMES.status, STATUSES))
@fuzz
def test_recall(records: list[TailRecord]) -> None:
    recall = recovery.StatusRecall(Side(records), NAMES, READER)  # type: ignore[arg-type]
    recall.begin(RecallStatus(SHARD, 1))
    ((_, _, facts, done),) = recall.poll()
    assert done
    assert len(facts) + recall.undecodable == sum(record.value is not None for record in records)
    shard = Shard(SHARD, 1, 3)
    shard.ledgers, shard.log_ends = [Ledger(0), Ledger(0), Ledger(0)], [100, 100, 100]
    shard.recall(facts, {band.name: index for index, band in enumerate(NAMES.bands)})
    shard.recall_done()
    assert shard.clock_ms <= datetime.now(UTC).timestamp() * 1_000 + 2 * CLOCK_AHEAD_MAX_MS
    for ledger in shard.ledgers:
        for offset in (16, 17, 18):
            ledger.receive(offset, ID)
            assert 0 <= ledger.entry(offset).attempt <= ATTEMPT_MAX
        assert len(ledger.text()) < 200, "what is strange takes no room"


@given(_records(NAMES.requests[0], REQUESTS))
@fuzz
def test_requests(records: list[TailRecord]) -> None:
    decoder = RequestDecoder(NAMES, "cluster", READER)
    made = [decoder.decode(0, SHARD, *record[2:]) for record in records]
    for record in made:
        assert (record.request is None) == (record.problem is not None)
        assert record.task_id == "" or len(record.task_id) == 36
    Noticing(NAMES).look(made, 12)


@given(_records(NAMES.status, STATUSES), _records(NAMES.requests[0], REQUESTS), _records(NAMES.control, CONTROLS))
@settings(max_examples=100, derandomize=True)
def test_the_view(events: list[TailRecord], requests: list[TailRecord], controls: list[TailRecord]) -> None:
    records = [*events, *requests, *controls]
    for store in [_STORE]:
        store.reset("anew")
        view = Materializer(store, NAMES, "cluster", reader=READER, lenient=READER)
        feed: list[Heard] = []
        view.apply(records, {(NAMES.status, SHARD): 1}, feed)
        view.apply(records, {(NAMES.status, SHARD): 2})
        view.heard_again(records)
        tally = view.tally
        counted = tally.events + tally.requests + tally.cancels + tally.unreadable
        marks = sum(record.value is None for record in controls)  # of deleted keys
        assert counted == 2 * (len(records) - marks), "each is read, or counted as unreadable"
        for row in store.list(Filter(), None, LIST_MAX).rows:
            assert store.get(row.task_id) == row
            assert orjson.loads(row.body)["task_id"]


@pytest.fixture(scope="module", autouse=True)
def _store() -> Iterator[None]:
    global _STORE
    _STORE = SQLiteStore(None)
    yield
    _STORE.close()


_STORE: SQLiteStore


@given(_records(NAMES.status, STATUSES))
@fuzz
def test_the_past_of_a_stream(records: list[TailRecord]) -> None:
    for record in records:
        try:
            assert heard(record, *read_status(record, READER)).task_id
        except DecodeError:
            continue  # as view/past.py does


@given(_records(NAMES.status, STATUSES))
@fuzz
def test_a_client_that_waits(records: list[TailRecord]) -> None:
    watch = StatusWatch(KAFKA, NAMES.status, READER)
    track = watch.track(ID)
    watch._deliver(watch._pick(records), None)
    assert track.latest is None or track.latest.task_id == ID


@given(_records(NAMES.status, STATUSES), _records(NAMES.requests[0], REQUESTS), _records(NAMES.dead, REQUESTS))
@fuzz
def test_the_audit(events: list[TailRecord], requests: list[TailRecord], letters: list[TailRecord]) -> None:
    rounds = Rounds.__new__(Rounds)
    rounds._judge = judge = Judge(NAMES, READER)
    rounds._bands, rounds._decoder = {NAMES.requests[0]: 0}, RequestDecoder(NAMES, "cluster", READER)
    for band in range(3):
        judge.bounds(band, SHARD, 0, log_start=0, log_end=100)
    feeds: list[tuple[Callable[[TailRecord], None], list[TailRecord]]] = [
        *((rounds._letter, letters), (rounds._request, requests), (rounds._event, events))
    ]
    for feed, records in feeds:
        for record in records:
            feed(record._replace(offset=record.offset % 100))
    judge.conclude(last=True)
    assert judge.report().events == len(events)


@given(_records(NAMES.dead, REQUESTS))
@fuzz
def test_dead_letters_and_their_redrive(records: list[TailRecord]) -> None:
    letters = []
    for record in records:
        try:
            letters.append(decode_dead(*record[1:]))
        except DecodeError:
            continue  # as offline.read_dead does
    found = plan(letters, Choice(since_ms=0, text="a"), Builder(NAMES, "cluster", 12, READER), NOW_MS)
    found = plan(letters, Choice(), Builder(NAMES, "cluster", 12, READER), NOW_MS)
    assert len(found.ready) + len(found.refused) == len(letters)


@given(STATUSES)
@fuzz
def test_a_development_session(value: bytes | None) -> None:
    said: list[str] = []
    if value is not None:
        Follower._look(Lines(lambda _level, text: said.append(text), lambda: 0.0), value)


@given(st.sampled_from(["AVRO", "JSON", "PROTOBUF", ""]), st.text(max_size=30) | STRANGE.map(repr) | st.just(_SCHEMA))
@fuzz
def test_schemas_of_a_registry(kind: str, text: str) -> None:
    registry: Any = SimpleNamespace(schema=lambda _id: SimpleNamespace(kind=kind, text=text, references=False))
    cache = SchemaCache(registry, 1.0)
    cache._ask(1)
    assert 1 in cache._known or 1 in cache._missing


# --- What was found ---------------------------------------------------------------------------------------------------

GOOD = {name: STATUS[name] for name in ("task_id", "status", "origin", "attempt", "updated_at")}


def _fact(key: bytes | None = ID.encode(), **changed: Any) -> tuple[Origin | None, int, int]:
    fact = read_recalled(SHARD, key, orjson.dumps(GOOD | changed), READER, NOW_MS)
    return Origin.parse(fact.origin), fact.attempt, fact.updated_ms


def test_an_event_that_a_worker_wrote_is_a_fact() -> None:
    assert _fact() == (Origin("high", SHARD, 17), 1, 1_795_505_160_123)
    assert _fact(attempt=None, updated_at=None) == (Origin("high", SHARD, 17), 0, 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"updated_at": "yesterday"},
        {"updated_at": "2026-11-24T07:26:00"},
        {"updated_at": 7},
        {"attempt": "two"},
        {"attempt": [1]},
        {"attempt": True},
        {"attempt": 1.0},
        {"attempt": -5},
        {"attempt": ATTEMPT_MAX + 1},
        {"origin": "high-4@17"},
        {"origin": "high"},
        {"origin": None},
        {"key": b"another"},
    ],
    ids=repr,
)
def test_a_record_that_only_its_bytes_make_strange_ends_no_worker_that_recovers_its_shard(
    changed: dict[str, Any],
) -> None:
    """Bug: ValueError or TypeError in the owner thread of every worker that got the shard."""
    with pytest.raises(DecodeError):
        _fact(**changed)


def test_a_time_far_ahead_does_not_drag_the_clock_of_the_shard_along() -> None:
    """Bug: one event of the year 9999, and every later event of the shard was of that time."""
    assert _fact(updated_at=from_ms(NOW_MS + CLOCK_AHEAD_MAX_MS + 1).isoformat())[2] == 0
    assert _fact(updated_at=from_ms(NOW_MS + CLOCK_AHEAD_MAX_MS).isoformat())[2] == NOW_MS + CLOCK_AHEAD_MAX_MS


def test_an_event_whose_key_names_another_task_is_not_offered_to_whoever_waits_for_that_one() -> None:
    """Bug: an AssertionError on the client's event loop; the events behind it in the batch were lost."""
    watch = StatusWatch(KAFKA, NAMES.status)
    track = watch.track(ID)
    other = orjson.dumps({**GOOD, "task_id": ID[:-1] + "7", "created_at": GOOD["updated_at"], "message": "m"})
    assert decode_status(other)
    watch._deliver(watch._pick([TailRecord(NAMES.status, SHARD, 0, 0, ID.encode(), other, ())]), None)
    assert track.latest is None


def test_what_is_passed_over_is_counted_and_told_once_an_hour() -> None:
    before = event_log.COUNTS["record_passed_over"]
    passed = PassedOver()
    for offset in range(5):
        passed.add(TailRecord(NAMES.status, SHARD, offset, 0, None, b"", ()), DecodeError("strange"))
    assert (passed.count, event_log.COUNTS["record_passed_over"] - before) == (5, 1)


def test_a_list_of_tasks_leaves_out_what_no_worker_wrote() -> None:
    """Bug: `streamtask tasks list` ended with a DecodeError as long as the topic held the event."""
    from streamtask.projection import topic_scan

    _STORE.reset("anew")
    view = Materializer(_STORE, NAMES, "cluster")
    strange = orjson.dumps({**STATUS, "progress": "half"})
    view.apply([TailRecord(NAMES.status, SHARD, 0, 0, ID.encode(), strange, ())], {})
    (row,) = _STORE.list(Filter(), None, 10).rows
    assert topic_scan._task(row) is None


def test_facts_about_records_that_the_log_does_not_hold_take_no_memory() -> None:
    shard = Shard(SHARD, 1, 3)
    shard.ledgers, shard.log_ends = [Ledger(0), Ledger(0), Ledger(0)], [100, 100, 100]
    facts = [
        read_recalled(SHARD, None, orjson.dumps(GOOD | {"origin": f"high-{SHARD}@{at << 20}"}), READER, NOW_MS)
        for at in range(1, 50)
    ]
    shard.recall(facts, {"high": 0})
    assert not shard.ledgers[0].recalling
