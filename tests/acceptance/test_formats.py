"""Every format on every topic, with real workers: mixed in one partition, through a kill, with a registry that fails."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO

import fastavro
import pytest
from confluent_kafka import Producer

from streamtask.client import Client
from streamtask.codec import avro
from streamtask.codec.confluent import header
from streamtask.codec.formats import avro_encoder
from streamtask.codec.wire import AVRO_MAGIC
from streamtask.config import Settings, load_settings
from streamtask.domain.model import ControlAction, ControlMessage, TaskRequest
from streamtask.schema_registry import Formats
from streamtask.schema_registry.subjects import documents
from tests.acceptance.harness import WAIT_S, Bench, Seen, until
from tests.fake_registry import FakeRegistry, fake_registry

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

FOREIGN = {
    "type": "record",
    "name": "Job",
    "namespace": "com.acme",
    "fields": [
        {"name": "task_type", "type": "string"},
        {"name": "task_id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "parameters", "type": {"type": "map", "values": "int"}},
    ],
}
REGISTRY_WAIT_S = 1.5
# Where the registry is well, nothing is given up because the machine is busy.
PATIENT_REGISTRY = {"STREAMTASK_REGISTRY": json.dumps({"timeout": 15}), "STREAMTASK_REGISTRY_WAIT_S": "15"}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as held:
        yield held


@pytest.fixture
def known(bench: Bench, registry: FakeRegistry) -> Iterator[Formats]:
    """What the test itself knows of the registry; the bench reads by it too."""
    with closing(Formats(_settings(bench, registry, "confluent"))) as held:
        bench.reader = held.insisting
        yield held


def _settings(bench: Bench, registry: FakeRegistry, output: str) -> Settings:
    return load_settings(
        bootstrap_servers=bench.settings.bootstrap_servers,
        prefix=bench.names.prefix,
        format=output,
        registry_url=registry.url,
    )


def _environment(registry: FakeRegistry, output: str) -> dict[str, str]:
    return {
        "STREAMTASK_FORMAT": output,
        "STREAMTASK_REGISTRY_URL": registry.url,
        **PATIENT_REGISTRY,
    }


def _hasty(registry: FakeRegistry, output: str) -> dict[str, str]:
    """Of a worker whose registry will be away."""
    return {
        **_environment(registry, output),
        "STREAMTASK_REGISTRY": json.dumps({"timeout": 1}),
        "STREAMTASK_REGISTRY_WAIT_S": str(REGISTRY_WAIT_S),
    }


def _until_known(bench: Bench, schema_id: int) -> None:
    """The worker reads records of this schema."""

    def read() -> bool:
        """As the redrive does: a record is sent again that was refused because the registry did not answer."""
        one = str(uuid.uuid4())
        bench.produce(_foreign(schema_id, "noop", one, 5), one.encode(), partition=0)
        return bench.end(one).status == "completed"

    until(read, "the registry has answered")


def _foreign(schema_id: int, task_type: str, task_id: str, n: int, name: str = "n") -> bytes:
    """A record by somebody else's schema."""
    body = BytesIO(header(schema_id))
    body.seek(0, 2)
    datum = {"task_type": task_type, "task_id": uuid.UUID(task_id), "parameters": {name: n}}
    fastavro.schemaless_writer(body, fastavro.parse_schema(FOREIGN), datum)
    return body.getvalue()


def _spellings(bench: Bench, schema_id: int, task_id: str, ms: int) -> list[bytes]:
    """The same request in every format."""
    request = TaskRequest(task_type="nap", task_id=task_id, parameters={"ms": ms})
    text = json.dumps({"task_type": "nap", "task_id": task_id, "parameters": {"ms": ms}}).encode()
    single = avro_encoder(documents(bench.names)).request(bench.names.requests[1], request)
    return [text, single, _foreign(schema_id, "nap", task_id, ms, "ms")]


def _first_bytes(seen: list[Seen]) -> set[int]:
    return {one.value[0] for one in seen}


def test_formats_mixed_in_every_partition_survive_the_death_of_their_worker(
    bench: Bench, registry: FakeRegistry, known: Formats
) -> None:
    schema_id = registry.held.register("acme-value", json.dumps(FOREIGN))
    ids: list[str] = []

    def submit(count: int) -> list[str]:
        for number in range(len(ids), len(ids) + count):
            ids.append(str(uuid.uuid4()))
            spelled = _spellings(bench, schema_id, ids[-1], 200 + number)[number % 3]
            bench.produce(spelled, ids[-1].encode(), band=number % 3, partition=number // 3 % 4)
        return ids[-count:]

    first, second = (bench.worker(_environment(registry, output)) for output in ("json", "avro"))
    bench.until_owning(first, 2)
    bench.until_owning(second, 2)
    for one in submit(24):
        bench.until_status(one, "running")
    first.kill()
    third = bench.worker(_environment(registry, "confluent"))
    bench.until_owning(third, 2)
    submit(24)
    ends = bench.ends(ids, 60)
    assert {end.status for end in ends.values()} == {"completed"}
    assert [ends[one].event.result for one in ids] == [200 + n for n in range(48)], "each with its own parameters"
    written = _first_bytes([seen for one in ids for seen in bench.history(one)])
    assert written == {ord("{"), 0xC3, 0x00}
    bench.finish()


@pytest.mark.parametrize("output", [pytest.param("avro", marks=pytest.mark.slow), "confluent"])
def test_a_client_that_writes_another_format_submits_waits_and_cancels(
    bench: Bench, registry: FakeRegistry, known: Formats, output: str
) -> None:
    settings = _settings(bench, registry, output)
    bench.worker(_environment(registry, output))
    with Client(settings=settings) as client:
        receipts = [client.submit("noop", {"n": n}, priority=priority) for n, priority in enumerate([9, 5, 2])]
        assert [receipt.result(timeout=WAIT_S) for receipt in receipts] == [0, 1, 2]
        held = client.submit("wait_for", {"path": str(bench.directory / "never")})
        bench.until_status(held.task_id, "running")
        client.cancel(held.task_id, "名")
        assert bench.end(held.task_id).status == "cancelled"
        assert client.status(receipts[0].task_id).result == 0
    magic = {0xC3} if output == "avro" else {0x00}
    assert _first_bytes([seen for one in receipts for seen in bench.history(one.task_id)]) == magic
    bench.finish()


def test_a_cancel_in_every_format_is_obeyed(bench: Bench, registry: FakeRegistry, known: Formats) -> None:
    topic = bench.names.control
    bench.worker(_environment(registry, "json"))
    ids = [bench.client.submit("wait_for", {"path": str(bench.directory / "never")}).task_id for _ in range(3)]
    for one in ids:
        bench.until_status(one, "running")
    encoders = [Formats(load_settings()).encoder(), avro_encoder(documents(bench.names)), known.encoder()]
    producer = Producer({"bootstrap.servers": bench.settings.bootstrap()})
    for one, encoder in zip(ids, encoders, strict=True):
        message = ControlMessage(task_id=one, action=ControlAction.CANCEL)
        producer.produce(topic, encoder.control(topic, message), one.encode())
    assert producer.flush(WAIT_S) == 0
    assert {end.status for end in bench.ends(ids).values()} == {"cancelled"}
    bench.finish()


@pytest.mark.parametrize("mode", [pytest.param("500", marks=pytest.mark.slow), "hang"])
def test_while_the_registry_is_away_known_ids_go_on_and_unknown_ones_end_in_the_dead_letters(
    bench: Bench, registry: FakeRegistry, known: Formats, mode: str
) -> None:
    schema_id = registry.held.register("acme-value", json.dumps(FOREIGN))
    bench.worker(_hasty(registry, "json"))
    ids = [str(uuid.uuid4()) for _ in range(6)]
    _until_known(bench, schema_id)
    registry.mode = mode
    unknown = bench.produce(header(777) + b"\x02x", b"no uuid", partition=0)
    bench.produce(_foreign(schema_id, "noop", ids[1], 1), ids[1].encode(), partition=1)
    assert bench.end(ids[1]).status == "completed", "another partition"
    bench.produce(_foreign(schema_id, "noop", ids[2], 2), ids[2].encode(), partition=0)
    assert bench.end(ids[2]).status == "completed", "behind it"
    letter = bench.letter(unknown)
    assert letter.reason == "schema_unavailable"
    assert letter.value == header(777) + b"\x02x"
    assert ("answers 500" if mode == "500" else "has not answered") in letter.text
    # The key holds its id, so a client that waits for it gets an answer. Waiting for another unknown id would take minutes.
    for schema in range(800, 900):
        bench.produce(header(schema) + b"\x02x", b"no uuid", partition=0)
    bench.produce(header(777) + b"\x02x", ids[3].encode(), partition=0)
    bench.produce(_foreign(schema_id, "noop", ids[4], 4), ids[4].encode(), partition=0)
    end = bench.end(ids[3])
    assert (end.status, end.code) == ("failed", "schema_unavailable")
    assert bench.end(ids[4]).status == "completed"
    registry.mode = "well"
    _until_known(bench, registry.held.register("acme2-value", json.dumps(FOREIGN | {"doc": "the second version"})))
    bench.finish()


def test_avro_that_cannot_be_read_ends_in_the_dead_letters_with_its_reason(
    bench: Bench, registry: FakeRegistry
) -> None:
    bench.worker(_environment(registry, "json"))
    request = TaskRequest(task_type="noop", task_id=str(uuid.uuid4()), parameters={"n": 1})
    whole = avro_encoder(documents(bench.names)).request(bench.names.requests[1], request)
    cases = {
        "unknown schema: its fingerprint 1111111111111111": AVRO_MAGIC + b"\x11" * 8 + b"\x02x",
        "truncated": whole[:-5],
        "garbled": whole + b"\x00",
        "knows no schema 4242": header(4242) + b"\x02x",
        "header of the Confluent wire format": b"\x00\x00",
        "a task_request is needed": avro.single_header(avro.CONTROL) + b"\x02x\x0ccancel\x00\x00",
    }
    ids: dict[str, str] = {}
    origins: dict[str, str] = {}
    for word, value in cases.items():
        ids[word] = str(uuid.uuid4())
        origins[word] = bench.produce(value, ids[word].encode(), partition=0)
    good = str(uuid.uuid4())
    bench.produce(json.dumps({"task_type": "noop", "task_id": good}).encode(), good.encode(), partition=0)
    assert bench.end(good).status == "completed"
    for word, value in cases.items():
        end = bench.end(ids[word])
        assert (end.status, end.code) == ("failed", "invalid_request")
        letter = bench.letter(origins[word])
        assert (letter.reason, letter.value) == ("invalid_request", value)
        assert word in letter.text
    bench.finish()


@pytest.mark.slow
def test_control_records_that_cannot_be_read_hold_up_no_cancel_and_no_start(
    bench: Bench, registry: FakeRegistry
) -> None:
    whole = avro_encoder(documents(bench.names)).control(
        bench.names.control, ControlMessage(task_id=str(uuid.uuid4()), action=ControlAction.CANCEL)
    )
    unreadable = (AVRO_MAGIC + b"\x11" * 8 + b"\x02x", whole[:-3], header(4242) + b"\x02x", b"{", b"\x00")
    first = bench.worker(_environment(registry, "json"))
    held = bench.client.submit("wait_for", {"path": str(bench.directory / "never")})
    bench.until_status(held.task_id, "running")
    producer = Producer({"bootstrap.servers": bench.settings.bootstrap(), "partitioner": "murmur2_random"})
    for value in unreadable:
        producer.produce(bench.names.control, value, held.task_id.encode())
    assert producer.flush(WAIT_S) == 0
    held.cancel()
    assert bench.end(held.task_id).status == "cancelled", "behind them, in the same partition"
    first.kill()
    bench.worker(_environment(registry, "json"))  # it reads them all before it starts anything
    assert bench.client.submit("noop", {"n": 3}).result(timeout=WAIT_S) == 3
    bench.finish()


def test_a_worker_that_cannot_have_its_ids_does_not_start_and_says_why(bench: Bench, registry: FakeRegistry) -> None:
    registry.mode = "500"
    worker = bench.worker(_hasty(registry, "confluent"))
    worker.expected = None
    assert worker.wait() != 0
    assert "schema registry" in worker.text()
    assert "answers 500" in worker.text()
    bench.finish()
