"""Asking a broker for a topic, for what the answer sets off inside the client.

- It tells who leads the topic's partitions before they are seated; they would otherwise wait for a refresh (260 ms).
- It lets a member of a group join again at once. librdkafka sends one JoinGroup a second until an answer of this kind
  resets its clock, and a shard that moves needs two of them, so it stood still for 900 ms (decision 0015).
"""

from __future__ import annotations

import contextlib

from confluent_kafka import Consumer, KafkaException

WAIT_S = 0.001  # the answer works when it comes; nobody waits for it


def ask_for(consumer: Consumer, topics: set[str]) -> None:
    """Ask for these topics; the set is empty then. Not inside a callback of this consumer: confluent-kafka 2.16 ends
    the process for it."""
    while topics:
        with contextlib.suppress(KafkaException):  # nearly always: it was not answered in time
            consumer.list_topics(topics.pop(), timeout=WAIT_S)
