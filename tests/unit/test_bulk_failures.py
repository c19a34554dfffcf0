"""Records of the client's bulk path that are not acknowledged are counted, whatever the producer raises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamtask.client.sending import Sender
from streamtask.config.kafka import KafkaSettings
from streamtask.kafka.producer import FLUSHES_MAX, BulkResult, ClientProducer

pytestmark = pytest.mark.anyio
NOBODY = KafkaSettings("127.0.0.1:1")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Raising:
    """A producer of librdkafka that holds two records. Its first `times` flushes raise `error`."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.error, self.times, self.flushes = error, times, 0

    def produce(self, *_record: Any, **_more: Any) -> None:
        pass

    def flush(self, _timeout_s: float) -> int:
        self.flushes += 1
        if self.flushes <= self.times:
            raise self.error
        return 0

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "error", [SystemError("flush returned a result with an exception set"), KafkaException("fatal")]
)
@pytest.mark.parametrize(("times", "pending"), [(1, 0), (FLUSHES_MAX, 2)])
def test_a_flush_that_raises_is_tried_again_and_what_it_does_not_report_is_pending(
    error: BaseException, times: int, pending: int
) -> None:
    with ClientProducer(NOBODY) as producer:
        raising = Raising(error, times)
        producer._bulk = raising  # type: ignore[assignment]
        result = producer.produce_bulk("t", [(b"k", b"v", None)] * 2, timeout_s=1.0)
        assert (result.sent, result.pending) == (2, pending)
        assert producer._bulk is None, "the next records go through a new client"


def test_a_flush_that_raises_a_refusal_of_the_broker_says_that_this_client_may_not_write() -> None:
    with ClientProducer(NOBODY) as producer:
        error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "no", fatal=True)
        producer._bulk = Raising(KafkaException(error), 1)  # type: ignore[assignment]
        producer.produce_bulk("t", [(b"k", b"v", None)], timeout_s=1.0)
        assert producer.denied


async def test_a_load_that_raises_anything_counts_as_failed_and_the_other_topics_are_sent() -> None:
    sent: list[str] = []

    class Broken:
        def produce_bulk(self, topic: str, records: Any) -> BulkResult:
            if topic == "bad":
                next(records)
                raise ValueError("unexpected")
            sent.append(topic)
            return BulkResult(sent=len(list(records)))

        def close(self) -> None:
            pass

    sender = Sender(NOBODY)
    real = sender._producer
    sender._producer = Broken()  # type: ignore[assignment]
    for topic in ("bad", "bad", "good"):
        sender.load(topic, (b"k", b"v", None))
    assert await sender.drain(10)
    assert sender.take_failures() == (2, "ValueError: unexpected")
    assert sent == ["good"]
    await sender.close()
    await asyncio.to_thread(real.close)
