"""A real schema registry and Confluent's own serializers: what they write we read, what we write they read.

The registry is Apicurio (tests/registry.py), started once for this file.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streamtask.codec import RequestDecoder, decode_control, decode_status, schema
from streamtask.config import Settings, TopicNames, load_settings
from streamtask.domain.model import ControlAction, ControlMessage, StatusEvent, TaskRequest, TaskStatus
from streamtask.errors import ClusterError, RegistryUnreachable, SchemaPending
from streamtask.schema_registry import Formats, open_registry, subjects
from streamtask.schema_registry.client import FULL_TRANSITIVE
from tests import certificates
from tests.registry import Registry, running_registry

pytestmark = pytest.mark.broker

NAMES = TopicNames()
HIGH = NAMES.requests[0]
ONE = "0192f0c1-2b3c-7d4e-8f50-112233445566"
NOW_MS = 1_795_505_160_123


@pytest.fixture(scope="module")
def real_registry() -> Iterator[Registry]:
    yield from running_registry()


@pytest.fixture
def settings(real_registry: Registry) -> Settings:
    return load_settings(registry_url=real_registry.url, registry={"timeout": 10}, format="confluent")


@pytest.fixture
def formats(settings: Settings) -> Iterator[Formats]:
    held = Formats(settings)
    yield held
    held.close()


@pytest.fixture
def reading(settings: Settings) -> Iterator[Formats]:
    """Another process: it knows nothing yet."""
    held = Formats(settings.model_copy(update={"format": "json"}))
    yield held
    held.close()


def _confluent(name: str) -> Any:
    """A part of Confluent's own client, where what it needs is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it leans on
        return importlib.import_module(f"confluent_kafka.{name}")


@pytest.fixture
def theirs(real_registry: Registry) -> Iterator[Any]:
    try:
        client = _confluent("schema_registry").SchemaRegistryClient
    except ImportError as error:
        pytest.skip(f"Confluent's client needs {error.name}: pip install 'streamtask-kafka[dev]'")
    with client({"url": real_registry.url, "timeout": 10}) as held:
        yield held


def _context(topic: str) -> Any:
    serialization = _confluent("serialization")
    return serialization.SerializationContext(topic, serialization.MessageField.VALUE)


def test_our_schemas_are_registered_once_under_full_transitive_compatibility(real_registry: Registry) -> None:
    registry = open_registry(real_registry.url, {"timeout": 10})
    names = TopicNames("registered")
    first = list(subjects.register(registry, names))
    again = list(subjects.register(registry, names))
    assert [done.schema_id for done in first] == [done.schema_id for done in again]
    assert [done.new for done in again] == [False] * 5
    status = subjects.subject_of(names.status)
    assert registry.compatibility(status) == FULL_TRANSITIVE
    assert [json.loads(version.text) for version in registry.versions(status)] == [schema.read("task_response")]
    bad = schema.read("task_response")
    bad["fields"] = [field for field in bad["fields"] if field["name"] != "task_id"]
    bad["fields"].append({"name": "colour", "type": "string"})
    assert registry.compatible(status, json.dumps(bad))
    with pytest.raises(ClusterError):
        registry.register(status, json.dumps(bad))
    good = schema.read("task_response")
    good["fields"].append({"name": "colour", "type": ["null", "string"], "default": None})
    assert registry.compatible(status, json.dumps(good)) == []
    assert registry.schema(2**31 - 1) is None
    registry.close()


def test_what_confluents_serializer_writes_we_read(theirs: Any, reading: Formats) -> None:
    serializer = _confluent("schema_registry.avro").AvroSerializer(theirs, schema.text("task_request"))
    request = {"task_type": "census", "parameters": '{"path": "名.py"}', "priority": 8, "timeout_seconds": 300.0}
    request["created_at"] = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    value = serializer({"description": "", **request}, _context(HIGH))
    record = RequestDecoder(NAMES, "c", reading.waiting).decode(0, 0, 0, NOW_MS, None, value, None)
    assert record.problem is None, record.problem
    assert record.request is not None
    assert record.request.parameters == {"path": "名.py"}
    assert (record.priority, record.created_ms, record.request.timeout_seconds) == (8, NOW_MS, 300.0)


def test_what_a_newer_producer_adds_is_ignored(theirs: Any, reading: Formats) -> None:
    newer = schema.read("task_request")
    newer["fields"].append({"name": "colour", "type": ["null", "string"], "default": None})
    serializer = _confluent("schema_registry.avro").AvroSerializer(theirs, json.dumps(newer))
    value = serializer({"task_type": "census", "description": "", "colour": "red"}, _context("newer"))
    record = RequestDecoder(NAMES, "c", reading.waiting).decode(0, 0, 0, NOW_MS, None, value, None)
    assert record.request == TaskRequest(task_type="census")


def test_what_we_write_confluents_deserializer_reads(theirs: Any, formats: Formats) -> None:
    encoder = formats.encoder()
    deserializer = _confluent("schema_registry.avro").AvroDeserializer(theirs)
    request = TaskRequest(task_type="census", parameters={"n": 1}, priority=9)
    held = deserializer(encoder.request(HIGH, request), _context(HIGH))
    assert (held["task_type"], json.loads(held["parameters"]), held["priority"]) == ("census", {"n": 1}, 9)
    event = StatusEvent(ONE, 3, TaskStatus.COMPLETED, NOW_MS, NOW_MS, "high-3@1", result=b'{"files":3}')
    held = deserializer(encoder.status(NAMES.status, event, locale="zh", worker="w"), _context(NAMES.status))
    assert (held["status"], held["progress"], held["result"]) == ("completed", 1.0, '{"files":3}')
    assert held["created_at"] == datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    message = ControlMessage(task_id=ONE, action=ControlAction.CANCEL)
    held = deserializer(encoder.control(NAMES.control, message), _context(NAMES.control))
    assert (held["task_id"], held["action"]) == (ONE, "cancel")


def test_what_one_process_writes_another_reads(formats: Formats, reading: Formats) -> None:
    encoder = formats.encoder()
    event = StatusEvent(ONE, 3, TaskStatus.RUNNING, NOW_MS, NOW_MS, "high-3@1", attempt=1)
    value = encoder.status(NAMES.status, event, locale="en", worker="w")
    with pytest.raises(SchemaPending):
        decode_status(value, reading.reader)
    assert decode_status(value, reading.waiting).attempt == 1
    message = ControlMessage(task_id=ONE, action=ControlAction.CANCEL, reason="名")
    assert decode_control(None, encoder.control(NAMES.control, message), reading.waiting) == message


def test_a_registry_behind_tls_is_talked_with_by_its_authority_alone(real_registry: Registry, tmp_path: Path) -> None:
    pem = certificates.make(tmp_path)
    with Registry(pem) as registry:
        settings = load_settings(registry_url=registry.url, registry={"timeout": 10}, format="confluent")
        stranger = Formats(settings)
        with pytest.raises(RegistryUnreachable, match=r"ssl\.ca\.location"):
            stranger.encoder()
        stranger.close()
        trusting = Formats(settings.model_copy(update={"registry": {"timeout": 10, "ssl.ca.location": str(pem.ca)}}))
        value = trusting.encoder().request(HIGH, TaskRequest(task_type="x"))
        assert RequestDecoder(NAMES, "c", trusting.insisting).decode(0, 0, 0, 0, None, value, None).problem is None
        trusting.close()


def test_a_registry_that_died_takes_nothing_with_it_that_was_known(settings: Settings) -> None:
    with Registry() as registry:
        mortal = settings.model_copy(update={"registry_url": registry.url, "registry_wait_s": 0.5})
        formats = Formats(mortal)
        value = formats.encoder().request(HIGH, TaskRequest(task_type="x"))
        registry.kill()
        decoder = RequestDecoder(NAMES, "c", formats.insisting)
        assert decoder.decode(0, 0, 0, 0, None, value, None).problem is None
        with pytest.raises(RegistryUnreachable):
            decoder.decode(0, 0, 0, 0, None, b"\x00\x00\x00\x77\x77\x02x", None)
        formats.close()
