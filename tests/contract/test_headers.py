"""Headers whose names are no UTF-8: confluent_kafka cannot read them, and nobody dies of that."""

from __future__ import annotations

import json

import pytest

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.kafka.tail import Tail
from streamtask.testing import Broker
from tests.contract.raw_names import RawName

pytestmark = pytest.mark.broker


def test_headers_that_cannot_be_read_are_none_and_those_of_other_records_are_read(
    broker: Broker, topics: TopicNames
) -> None:
    kafka = pytest.importorskip("kafka")
    foreign = kafka.KafkaProducer(bootstrap_servers=broker.bootstrap)
    count = 200  # the error takes other ways when a call has been made often
    for n in range(count):
        bad = [(RawName("x"), b"v"), ("task_id", b"y")] if n % 2 else [("task_id", b"y"), (RawName("x"), b"v")]
        headers = [("task_id", b"y")] if n % 5 == 0 else bad
        foreign.send(topics.dead, json.dumps(n).encode(), b"key", headers=headers, partition=0)
    foreign.flush(30)
    foreign.close()
    found = {}
    with Tail(KafkaSettings(broker.bootstrap, client_id="t"), [topics.dead], with_headers=True) as tail:
        ends = tail.ends()
        while not tail.caught_up(ends):
            found.update({json.loads(one.value or b""): one.headers for one in tail.poll(1_000, 0.1)})
    good = (("task_id", b"y"),)
    assert found == {n: good if n % 5 == 0 else () for n in range(count)}
