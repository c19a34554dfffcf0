"""Queries a broker for a topic, because of what the answer triggers inside the client.

- It tells the client the leaders of the partitions before they are seated; they would otherwise wait for a refresh (260 ms).
- It lets a member of a group rejoin at once. librdkafka sends one JoinGroup a second until an answer of this kind resets its
  clock, and a shard that moves needs two of them, so it stood still for 900 ms (decision 0015).
"""

from __future__ import annotations

import contextlib

from confluent_kafka import Consumer, KafkaException

WAIT_S = 0.001  # the answer takes effect when it comes; nothing waits for it


def ask_for(consumer: Consumer, topics: set[str]) -> None:
    """Query these topics and empty the set. Not inside a callback of the consumer: confluent-kafka 2.16 ends the process."""
    while topics:
        with contextlib.suppress(KafkaException):  # nearly always: it was not answered in time
            consumer.list_topics(topics.pop(), timeout=WAIT_S)
