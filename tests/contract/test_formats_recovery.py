"""Reading in a claim with a registry that is slow or away: a cancel is set aside, a status event is waited for.

And the view: what is written as Avro is served as JSON.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest
from confluent_kafka import Producer

from streamtask.codec import encode_control, encode_status
from streamtask.codec.confluent import WriterSchema, header, writer_schema
from streamtask.codec.formats import Encoder, avro_encoder, confluent_encoder
from streamtask.codec.reader import Reader
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import ControlAction, ControlMessage, StatusEvent, TaskRequest, TaskStatus
from streamtask.domain.ports import Recalled, RecallStatus
from streamtask.errors import DecodeError, RegistryUnreachable, SchemaPending, SchemaUnavailable
from streamtask.kafka.side_reader import SideReader
from streamtask.projection.materialize import Materializer
from streamtask.projection.sqlite import SQLiteStore
from streamtask.schema_registry.subjects import documents, text_of
from streamtask.worker.recovery import ControlReader, StatusRecall
from tests.contract.member import wait_until
from tests.unit.view_bench import LogRecord

NAMES = TopicNames()
NOW_MS = 1_795_505_160_123
IDS = [f"0192f0c1-2b3c-7d4e-8f50-11223344556{n}" for n in range(6)]


class Source:
    """A registry that answers when it is told to: `state` is "pending", "away", "insisting" or "known"."""

    def __init__(self) -> None:
        self.state = "pending"
        texts = sorted(set(documents(NAMES).values()))
        self.ids = {document: number for number, document in enumerate(texts, 1)}
        self._schemas = {
            number: writer_schema(number, "AVRO", text_of(document), references=False)
            for document, number in self.ids.items()
        }

    def encoder(self, names: TopicNames) -> Encoder:
        return confluent_encoder({topic: self.ids[document] for topic, document in documents(names).items()})

    def __call__(self, schema_id: int) -> WriterSchema:
        if schema_id not in self._schemas:
            raise DecodeError(f"knows no schema {schema_id}")
        if self.state == "pending":
            raise SchemaPending("being asked for", lambda: self.state != "pending")
        if self.state == "away":
            raise SchemaUnavailable("it is away")
        if self.state == "insisting":
            raise RegistryUnreachable("it is away")
        return self._schemas[schema_id]


@pytest.fixture
def kafka(broker: object) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap, client_id="contract")  # type: ignore[attr-defined]


@pytest.fixture
def put(kafka: KafkaSettings) -> Callable[[str, str, bytes], None]:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})

    def put(topic: str, key: str, value: bytes) -> None:
        producer.produce(topic, value, key.encode(), partition=0)
        assert producer.flush(20) == 0

    return put


def _cancel(task_id: str) -> ControlMessage:
    return ControlMessage(task_id=task_id, action=ControlAction.CANCEL)


@pytest.mark.broker
def test_a_cancel_whose_schema_is_asked_for_holds_the_barrier_and_no_other_cancel(
    kafka: KafkaSettings, topics: TopicNames, put: Callable[[str, str, bytes], None]
) -> None:
    source = Source()
    put(topics.control, IDS[0], source.encoder(topics).control(topics.control, _cancel(IDS[0])))
    put(topics.control, IDS[1], encode_control(_cancel(IDS[1])))
    put(topics.control, IDS[2], header(99) + b"\x02x")
    side = SideReader(kafka, (topics.control,))
    reader = ControlReader(side, topics, Reader(source))
    reader.await_end((0,))
    cancelled: list[str] = []
    ready: list[int] = []

    def turn() -> None:
        told, reached = reader.poll()
        cancelled.extend(told)
        ready.extend(reached)

    wait_until(lambda: reader.undecodable, turn=turn)
    for _ in range(20):
        turn()
    assert (cancelled, ready) == ([IDS[1]], [])
    source.state = "away"
    wait_until(lambda: ready, turn=turn)
    assert (cancelled, ready) == ([IDS[1]], [0]), "an outage holds nobody up"
    source.state = "known"
    wait_until(lambda: len(cancelled) == 2, turn=turn)
    assert cancelled == [IDS[1], IDS[0]], "late, and not lost"
    assert reader.undecodable == 1
    side.close()


@pytest.mark.broker
def test_a_shard_does_not_start_before_every_status_event_is_understood(
    kafka: KafkaSettings, topics: TopicNames, put: Callable[[str, str, bytes], None]
) -> None:
    source = Source()
    encoders = [None, source.encoder(topics), avro_encoder(documents(topics)), None]
    for number, encoder in enumerate(encoders):
        event = StatusEvent(
            IDS[number], 0, TaskStatus.COMPLETED, NOW_MS, NOW_MS + number, f"high-0@{number}", attempt=number + 1
        )
        if encoder is None:
            put(topics.status, IDS[number], encode_status(event, locale="en", worker="w"))
        else:
            put(topics.status, IDS[number], encoder.status(topics.status, event, locale="en", worker="w"))
    put(topics.status, IDS[4], header(99) + b"somebody else's")
    side = SideReader(kafka, (topics.control,))
    recall = StatusRecall(side, topics, Reader(source))
    recall.begin(RecallStatus(0, 7))
    facts: list[Recalled] = []
    done: list[bool] = []

    def turn() -> None:
        for shard, epoch, more, over in recall.poll():
            assert (shard, epoch) == (0, 7)
            facts.extend(more)
            done.append(over)

    for state in ("pending", "away"):
        source.state = state
        wait_until(lambda: facts, turn=turn)
        for _ in range(20):
            turn()
        assert [fact.task_id for fact in facts] == IDS[:1]
        assert not any(done)
    source.state = "known"
    wait_until(lambda: any(done), turn=turn)
    assert [(fact.task_id, fact.attempt, fact.updated_ms) for fact in facts] == [
        (IDS[number], number + 1, NOW_MS + number) for number in range(4)
    ]
    side.close()


@pytest.mark.parametrize("output", ["avro", "confluent"])
def test_the_view_serves_every_format_as_json(output: str) -> None:
    source = Source()
    source.state = "known"
    encoder = avro_encoder(documents(NAMES)) if output == "avro" else source.encoder(NAMES)
    reader = Reader(source)
    store = SQLiteStore(None)
    view = Materializer(store, NAMES, "c", reader=reader, lenient=reader)
    request = TaskRequest(task_type="census", task_id=IDS[0], tenant="acme", priority=9)
    event = StatusEvent(
        IDS[0], 0, TaskStatus.COMPLETED, NOW_MS, NOW_MS, "high-0@0", result=b'{"n":1}', error_code="x", attempt=1
    )
    text = encode_status(event, locale="en", worker="w")
    key = IDS[0].encode()
    records = [
        LogRecord(NAMES.requests[0], 0, 0, NOW_MS, key, encoder.request(NAMES.requests[0], request), ()),
        LogRecord(NAMES.control, 0, 0, NOW_MS, key, encoder.control(NAMES.control, _cancel(IDS[0])), ()),
    ]
    view.apply(records, {})
    row = store.get(IDS[0])
    assert row is not None
    assert orjson.loads(row.body)["task_type"] == "census"
    assert (view.tally.requests, view.tally.cancels, view.tally.unreadable) == (1, 1, 0)
    value = encoder.status(NAMES.status, event, locale="en", worker="w")
    view.apply([LogRecord(NAMES.status, 0, 5, NOW_MS, key, value, ())], {})
    row = store.get(IDS[0])
    assert row is not None
    assert orjson.loads(row.body) == orjson.loads(text)
    assert (row.status, row.tenant, row.version) == ("completed", "acme", 6)
    store.close()


def test_the_view_does_not_pass_a_status_event_whose_schema_is_not_known() -> None:
    source = Source()
    source.state = "insisting"
    store = SQLiteStore(None)
    view = Materializer(store, NAMES, "c", reader=Reader(source))
    event = StatusEvent(IDS[0], 0, TaskStatus.RUNNING, NOW_MS, NOW_MS, "high-0@0")
    value = source.encoder(NAMES).status(NAMES.status, event, locale="en", worker="w")
    with pytest.raises(RegistryUnreachable):  # its tail thread waits for what a ClusterError says, and comes again
        view.apply([LogRecord(NAMES.status, 0, 5, NOW_MS, IDS[0].encode(), value, ())], {(NAMES.status, 0): 6})
    assert store.offsets() == {}
    store.close()
