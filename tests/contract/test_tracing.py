"""Every way to submit makes one span for each request, whose context its record carries; on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streamtask.client import AsyncClient, Client
from streamtask.codec import RequestDecoder
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import TaskRequest
from streamtask.errors import RequestRefused
from streamtask.kafka.tail import Tail
from streamtask.testing import Broker
from tests.payloads import incompressible

pytestmark = pytest.mark.broker


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    held = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(held))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield held
    provider.shutdown()


def carried(broker: Broker, names: TopicNames) -> dict[str, str]:
    """{task_id: the span that its record names}"""
    decoder, found = RequestDecoder(names, "cluster"), {}
    with Tail(KafkaSettings(broker.bootstrap, client_id="test"), names.requests, with_headers=True) as tail:
        ends = tail.ends()
        while not tail.caught_up(ends):
            for topic, partition, offset, timestamp_ms, key, value, headers in tail.poll(100, 1.0):
                band = names.requests.index(topic)
                request = decoder.decode(band, partition, offset, timestamp_ms, key, value, headers)
                found[request.task_id] = dict(headers)["traceparent"].decode().split("-")[2]
    return found


def sent(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """{task_id: its span}"""
    spans = [span for span in exporter.get_finished_spans() if span.name.startswith("send ")]
    found = {str((span.attributes or {})["messaging.message.id"]): span for span in spans}
    assert len(found) == len(spans)
    return found


def test_one_by_one_many_at_once_and_in_bulk(
    broker: Broker, topics: TopicNames, exporter: InMemorySpanExporter
) -> None:
    asked = [TaskRequest(task_type="census", priority=1 + n) for n in range(10)]

    async def submit() -> None:
        async with AsyncClient(broker.bootstrap, prefix=topics.prefix) as client:
            await client.submit("census")
            await client.submit_many(asked)
            await client.submit_bulk(asked)
            await client.flush()
            with pytest.raises(RequestRefused):
                await client.submit("too_large", {"x": incompressible(2_000_000)})

    with trace.get_tracer("test").start_as_current_span("root") as root:
        asyncio.run(submit())
        with Client(broker.bootstrap, prefix=topics.prefix) as client:
            client.submit("census")
    spans = sent(exporter)
    (refused,) = [task_id for task_id, span in spans.items() if span.name == "send too_large"]
    assert (spans.pop(refused).attributes or {})["error.type"] == "not_acknowledged"
    named = {task_id: f"{span.context.span_id:016x}" for task_id, span in spans.items()}
    assert named == carried(broker, topics)
    assert len(named) == 22
    above = {span.parent.span_id for span in spans.values() if span.parent is not None}
    assert above == {root.get_span_context().span_id}, "also from the thread of the plain client"
    acknowledged = [span for span in spans.values() if "messaging.kafka.offset" in (span.attributes or {})]
    assert len(acknowledged) == 12, "of the bulk nobody knows"
